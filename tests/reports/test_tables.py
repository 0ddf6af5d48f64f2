"""The tables of a topic: promised and measured values, folded if they are long."""

from reports import overview, pivot, tidy
from reports.pages import issues, notes
from tests.reports import planted


def topic(name: str) -> tidy.TopicView:
    view = tidy.view(planted.records(), planted.run(), {})
    return next(topic for topic in view.topics if topic.name == name)


def test_a_table_of_a_law_shows_the_promise_and_the_ratio_to_it() -> None:
    table = pivot.figure_tables(topic("zero"))[0]
    assert (table.title, table.has_law, table.columns) == ("Model states", True, ("variant", "topology", "dtype"))
    last = next(row for row in table.all_rows if row.head == ("zero3", "dp4", "fp32"))
    assert last.law == "3.50\u202fMiB"  # 16 Ψ / N = 16 × 918,400 / 4
    over = last.cells[table.engines.index("reference")]
    assert over is not None
    assert (over.verdict, over.main, over.sub) == ("fail", "4.59\u202fMiB", "1.311× law")


def test_a_long_table_is_folded_by_variant_and_keeps_every_setting() -> None:
    table = pivot.parity_table(topic("zero"))
    assert table is not None
    assert [row.head for row in table.rows] == [("zero1",), ("zero2",), ("zero3",)]
    assert len(table.all_rows) == 12
    folded = table.rows[1].cells[table.engines.index("torch")]
    assert folded is not None
    assert folded.verdict == "fail"
    assert folded.main.endswith("–2\u2009310×")
    assert folded.sub.startswith("2 of 4 fail")


def test_an_untested_setting_is_an_empty_cell_and_not_a_pass() -> None:
    table = pivot.parity_table(topic("zero"))
    assert table is not None
    assert table.rows[2].cells[table.engines.index("megatron")] is None


def test_a_folded_cell_says_how_many_settings_were_skipped() -> None:
    table = next(t for t in pivot.figure_tables(topic("data_parallel")) if t.title == "Step time")
    cell = table.rows[0].cells[table.engines.index("deepspeed")]
    assert cell is not None
    assert (cell.verdict, cell.sub) == ("pass", "2 of 4 skipped")


def test_the_resolution_stands_below_each_parity_figure() -> None:
    table = pivot.parity_table(topic("zero"))
    assert table is not None
    subs = {cell.sub for row in table.all_rows for cell in row.cells if cell}
    assert {"sees 4.0·10⁻⁷", "sees 0.8\u202f%"} <= subs


def test_errors_with_one_message_are_one_issue() -> None:
    (error,) = [issue for issue in issues(topic("tensor_parallel"), "pytest suites/") if issue.verdict == "error"]
    assert len(error.cases) == 4
    assert error.headline == planted.TRACEBACK.splitlines()[0]


def test_a_step_time_stands_with_its_interval_and_a_slow_reference_is_marked_and_does_not_fail() -> None:
    detail = {"low": 0.0118, "high": 0.0131, "ratio_to_fastest": 1.7, "fastest": "torch", "marked": "1.7 × torch"}
    timed = planted.measurement("throughput", "step_time", 0.0123, "s", "pass", bound=None, detail=detail)
    quick = planted.measurement(
        "throughput", "step_time", 0.0072, "s", "inconclusive", detail={"low": 0.007, "high": 0.009}
    )
    records = [
        planted._base("zero", "zero1", "reference", "dp2", "fp32", "cuda") | timed,
        planted._base("zero", "zero1", "torch", "dp2", "fp32", "cuda") | quick,
    ]
    view = tidy.view(records, planted.run(), {})
    (only,) = view.topics
    (table,) = pivot.figure_tables(only)
    slow, fast = table.rows[0].cells
    assert slow is not None
    assert fast is not None
    assert (slow.verdict, slow.main) == ("pass", "12.3\u202fms")
    assert slow.sub == "11.8\u202fms to 13.1\u202fms, 1.70× best, marked"
    assert fast.sub == "7.00\u202fms to 9.00\u202fms, 1.00× best"
    assert "marked: 1.7 × torch" in slow.note
    assert issues(only, "pytest suites/") == []
    assert [note.cases for note in notes(only, "marked")] == [["zero1-reference-dp2-fp32"]]
    (row,) = overview.matrix(view)
    assert row.cells[0].fast is not None
    assert row.cells[0].fast.verdict == ""
    assert row.cells[0].fast.note.endswith("; 1.7 × torch")
