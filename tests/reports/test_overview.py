"""The first screen names the engines that are right, lean and fast, and the work that was not tested."""

from typing import Any

from reports import overview, pages, tidy
from reports.overview import MatrixCell, MatrixRow, Winners
from tests.reports import planted
from tests.reports.planted import measurement

Record = dict[str, Any]


def record(engine: str, topology: str = "dp2", variant: str = "zero1", **found: Any) -> Record:
    return planted._base("zero", variant, engine, topology, "fp32", "cpu") | found


def right(engine: str, verdict: str = "pass", value: float = 1.0, **where: str) -> Record:
    return record(engine, **where, **measurement("parity", "gradient", value, "× floor", verdict, bound=3.0))


def peak(engine: str, size: float, **where: Any) -> Record:
    detail = {"meter": where.pop("meter", "counting allocator")}
    return record(engine, **where, **measurement("memory", "peak", size, "bytes", "pass", detail=detail))


def timed(engine: str, seconds: float, **where: Any) -> Record:
    detail = {"minimum_detectable_effect": where.pop("effect", 0.0)}
    return record(engine, **where, **measurement("throughput", "step_time", seconds, "s", "pass", detail=detail))


def row(*records: Record) -> MatrixRow:
    (only,) = overview.matrix(tidy.view(records, planted.run(), {}))
    return only


def cell(found: MatrixRow, engine: str) -> MatrixCell:
    return next(cell for cell in found.cells if cell.engine == engine)


def test_a_wrong_engine_is_neither_fastest_nor_leanest() -> None:
    found = row(
        *(right("torch"), right("deepspeed"), right("megatron", "fail", 99.0)),
        *(peak("torch", 100), peak("deepspeed", 120), peak("megatron", 50)),
        *(timed("torch", 2.0), timed("deepspeed", 1.5), timed("megatron", 1.0)),
    )
    assert found.leanest == Winners(("torch",), 1, 1)
    assert found.fastest == Winners(("deepspeed",), 1, 1)
    assert found.wrong == (("megatron", "fail", "1 of 1"),)


def test_the_reference_is_measured_but_never_recommended() -> None:
    found = row(
        *(right("reference"), right("torch"), right("deepspeed")),
        *(peak("reference", 50), peak("torch", 100), peak("deepspeed", 110)),
    )
    assert found.leanest.engines == ("torch",)
    assert cell(found, "torch").lean is not None
    assert cell(found, "torch").lean.text == "2.00×"  # type: ignore[union-attr]


def test_an_engine_that_ran_few_settings_does_not_win_the_topic() -> None:
    settings = [{"variant": f"zero{stage}"} for stage in (1, 2, 3)]
    found = row(
        *(right(engine, **where) for engine in ("torch", "deepspeed") for where in settings),
        *(timed("torch", 1.0, **where) for where in settings),
        *(timed("deepspeed", 1.2, **where) for where in settings),
        *(right("megatron"), timed("megatron", 0.9)),
    )
    assert found.fastest == Winners(("torch",), 2, 3)


def test_differences_below_the_detectable_effect_are_a_tie() -> None:
    found = row(
        *(right("torch"), right("deepspeed")),
        *(timed("torch", 1.0, effect=0.02), timed("deepspeed", 1.01, effect=0.02)),
    )
    assert found.fastest.engines == ("deepspeed", "torch")


def test_memory_of_two_meters_is_not_compared() -> None:
    found = row(
        *(right("torch"), right("deepspeed")),
        *(peak("torch", 100, meter="cuda"), peak("deepspeed", 120, meter="dispatch mode")),
    )
    assert found.leanest == Winners()
    assert cell(found, "torch").lean.text == "no peer"  # type: ignore[union-attr]


def test_one_engine_alone_has_no_competitor() -> None:
    found = row(right("reference"), right("trl"), timed("reference", 2.0), timed("trl", 1.0))
    assert found.fastest == Winners()


def test_right_shows_the_worst_error_or_how_many_cases_fail() -> None:
    found = row(
        *(right("torch", value=1.2), right("torch", value=2.4, topology="dp4")),
        *(right("deepspeed"), right("deepspeed", "fail", 50.0, topology="dp4")),
    )
    assert cell(found, "torch").right.text == "2.40×"  # type: ignore[union-attr]
    assert cell(found, "deepspeed").right.text == "1 of 2"  # type: ignore[union-attr]


def test_a_broken_law_shows_in_the_matrix() -> None:
    over = record("torch", **measurement("memory", "states", 9, "bytes", "fail", law=5))
    found = row(right("torch"), right("deepspeed"), peak("torch", 100), peak("deepspeed", 120), over)
    assert cell(found, "torch").lean.verdict == "fail"  # type: ignore[union-attr]


def test_an_engine_that_was_skipped_says_why_and_one_without_adapter_says_so() -> None:
    card = record("", **measurement("card", "card", None, "", "pass", detail={"engines": ["torch", "horovod"]}))
    card["case"] = ""
    skipped = record("fairscale", **measurement("parity", "", None, "", "skipped", reason="needs fairscale"))
    found = row(card, right("torch"), skipped)
    assert (cell(found, "fairscale").state, cell(found, "fairscale").why) == ("skipped", "needs fairscale")
    assert cell(found, "horovod").state == "skipped"
    assert "no case of it was selected" in cell(found, "horovod").why
    other = [right(engine, topic="other") for engine in ("torch", "megatron")]
    first, _, _ = overview.matrix(
        tidy.view([right("torch"), *other, right("megatron", topic="third")], planted.run(), {})
    )
    assert cell(first, "megatron").state == "absent"


def test_an_unavailable_engine_has_a_cell_with_the_reason() -> None:
    detail = {"engines": ["torch"], "unavailable": {"alpa": "a repository only"}}
    card = record("", **measurement("card", "card", None, "", "pass", detail=detail)) | {"case": ""}
    view = tidy.view([card, right("torch")], planted.run(), {})
    rows = overview.matrix(view)
    assert (cell(rows[0], "alpa").state, cell(rows[0], "alpa").why) == ("skipped", "a repository only")
    assert pages.summary(view, rows)["Cases"].startswith("1 (topics: 1, engines: 1), ")


def test_an_engine_of_one_topic_has_no_column_but_a_cell_in_its_topic_s_row() -> None:
    view = tidy.view(planted.records(), planted.run(), {})
    columns = overview.shared(view)
    for engine in view.engines:
        rows = [row for row in overview.matrix(view) if engine in [cell.engine for cell in row.cells]]
        serves = [t for t in view.topics if engine in (*t.engines, *t.adapters)]
        assert rows
        assert len(rows) == len(view.topics) if engine in columns else len(rows) == len(serves) == 1
    assert set(columns) < set(view.engines)


def test_reasons_for_skipping_are_counted_by_case_the_most_frequent_first() -> None:
    view = tidy.view(planted.records(), planted.run(), {})
    reasons = overview.not_tested(view)
    counts = {reason.text: len(reason.cases) for reason in reasons}
    assert counts[planted.SKIPS["horovod"]] == 12
    assert counts[planted.SKIPS["flash_attn"]] == 10
    assert counts["bf16 on the CPU is emulated: not timed"] == 6
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_not_tested_reasons_and_cases_are_on_the_page(html: str) -> None:
    section = html.split('<section id="not-tested"')[1].split("</section>")[0]
    for reason in planted.SKIPS.values():
        assert reason.replace(">", "&gt;") in section
    assert "naive-horovod-dp2-fp32" in section


def test_coverage_tells_gpus_shared_gpus_cpu_ranks_and_simulations_apart() -> None:
    places = {"cpu": "CPU ranks", "NVIDIA H100 80GB HBM3": "GPU", "simulated H100": "simulated"}
    for device, place in places.items():
        (counted,) = overview.coverage(tidy.view([right("torch") | {"device": device}], planted.run(), {}))
        assert counted.places[place] == 1
    shared = right("torch") | {"device": "NVIDIA H100 80GB HBM3", "detail": {"device_note": "shared device"}}
    (counted,) = overview.coverage(tidy.view([shared], planted.run(), {}))
    assert (counted.places["shared GPU"], counted.places["GPU"]) == (1, 0)


def test_coverage_counts_judged_cases_of_each_measure() -> None:
    first = overview.coverage(tidy.view(planted.records(), planted.run(), {}))[0]
    assert first.measures["parity"] == (48, 60)
    assert first.measures["throughput"] == (42, 60)
    assert first.measures["quality"] == (0, 0)
    assert first.places["not run"] == 12


def test_speeds_from_cpu_ranks_are_marked_as_such(html: str) -> None:
    assert "All step times were measured on CPU ranks" in html
    assert "none of them is judged" in html
    assert not overview.timed_on_cpu_only(tidy.view(planted.records(gpu=True), planted.run(), {}))


def test_the_last_record_of_a_figure_counts() -> None:
    found = row(right("torch", "fail", 80.0), right("torch", "pass", 1.5))
    assert cell(found, "torch").right.verdict == "pass"  # type: ignore[union-attr]
