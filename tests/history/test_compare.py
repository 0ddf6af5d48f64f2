"""What counts as a change between runs, and what does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness import cli
from harness.history import Change
from harness.history.compare import compare
from harness.history.select import select
from harness.spec import Measurement
from harness.store import Store, StoreError
from tests.history.examples import (
    BESIDE,
    BYTES,
    CASE,
    ELSEWHERE,
    GRADIENT,
    HERE,
    PEAK,
    STATES,
    UPGRADED,
    night,
    stepping,
)


def change(store: Store, before: list[str], after: list[str]) -> Change:
    (found,) = compare(store, before, after).changes
    return found


def pair(store: Store, before: Measurement, after: Measurement, environment: dict = HERE) -> Change:
    """The change of one figure from one run to another one."""
    return change(store, [night(store, before)], [night(store, after, environment=environment)])


def test_a_parity_that_fails_regressed_and_tells_both_figures(store: Store) -> None:
    found = pair(store, GRADIENT, GRADIENT.but(value=90.0, verdict="fail", reason="90 × floor"), UPGRADED)
    assert (found.verdict, found.before, found.after) == ("regressed", 0.5, 90.0)
    assert "was 0.5 × floor, pass" in found.reason
    assert "90 × floor" in found.reason


def test_a_parity_within_its_bound_is_the_same_whatever_its_size(store: Store) -> None:
    assert pair(store, GRADIENT, GRADIENT.but(value=4.0)).verdict == "same"


def test_a_parity_that_passes_again_improved(store: Store) -> None:
    assert pair(store, GRADIENT.but(value=9.0, verdict="fail"), GRADIENT).verdict == "improved"


def test_traffic_must_be_equal_to_the_byte(store: Store) -> None:
    assert pair(store, BYTES, BYTES).verdict == "same"
    more = pair(store, BYTES, BYTES.but(value=4097.0))
    assert (more.verdict, more.low, more.high) == ("regressed", 4097 / 4096, 4097 / 4096)
    assert pair(store, BYTES, BYTES.but(value=4095.0)).verdict == "improved"


def test_memory_may_differ_by_less_than_a_block_of_the_allocator(store: Store) -> None:
    assert pair(store, STATES, STATES.but(value=1e6 + 512)).verdict == "same"
    assert pair(store, STATES, STATES.but(value=1e6 + 513)).verdict == "regressed"


def test_a_figure_that_must_equal_its_law_regressed_the_farther_it_is_from_it(store: Store) -> None:
    assert pair(store, STATES, STATES.but(value=5e5)).verdict == "regressed"
    assert pair(store, STATES.but(value=5e5), STATES).verdict == "improved"


def test_a_figure_that_should_be_high_regressed_when_it_falls(store: Store) -> None:
    figure = STATES.but(direction="higher", law=None)
    assert pair(store, figure, figure.but(value=5e5)).verdict == "regressed"


def test_a_peak_is_undecided_by_one_earlier_run_and_decided_by_several(store: Store) -> None:
    first = night(store, PEAK)
    later = night(store, PEAK.but(value=2.1e6), environment=UPGRADED)
    assert change(store, [first], [later]).verdict == "inconclusive"
    again = night(store, PEAK.but(value=2.01e6))
    assert change(store, [first, again], [later]).verdict == "regressed"


def test_a_peak_is_as_uncertain_as_the_least_repeatable_case_of_its_engine(store: Store) -> None:
    other = replace(CASE, variant="zero2")
    before = [night(store, PEAK, more={other: [PEAK.but(value=peak)]}) for peak in (2e6, 2.2e6)]
    after = night(store, PEAK.but(value=2.1e6), more={other: [PEAK]}, environment=UPGRADED)
    assert {found.verdict for found in compare(store, before, [after]).changes} == {"same"}


def test_another_meter_decides_nothing(store: Store) -> None:
    first, second = STATES.but(detail={"meter": "allocator"}), STATES.but(value=2e6, detail={"meter": "storages"})
    assert pair(store, first, second).verdict == "inconclusive"


def test_a_slower_step_regressed_if_the_reference_beside_it_is_not_slower(store: Store) -> None:
    found = pair(store, stepping(0.1, {"reference": 0.1}), stepping(0.12, {"reference": 0.1}))
    assert found.verdict == "regressed"
    assert found.low is not None
    assert found.low < 1.2 < (found.high or 0)
    assert "beside reference" in found.reason
    assert pair(store, stepping(0.1, {"reference": 0.1}), stepping(0.12, {"reference": 0.12})).verdict == "same"
    assert pair(store, stepping(0.1, {"reference": 0.1}), stepping(0.08, {"reference": 0.1})).verdict == "improved"


def test_a_difference_below_the_noise_is_no_regression(store: Store) -> None:
    assert pair(store, stepping(0.1, {"torch": 0.1}), stepping(0.1005, {"torch": 0.1})).verdict == "same"


def test_a_noisy_speed_decides_nothing(store: Store) -> None:
    before, after = (stepping(seconds, {"torch": 0.1}, noise=0.3) for seconds in (0.1, 0.11))
    assert pair(store, before, after).verdict == "inconclusive"


def test_the_spread_of_earlier_runs_is_noise_too(store: Store) -> None:
    before = [night(store, stepping(0.1 * off, {"torch": 0.1})) for off in (1.0, 1.04, 1.08)]
    assert change(store, before, [night(store, stepping(0.11, {"torch": 0.1}))]).verdict == "same"


def test_a_speed_that_nothing_was_timed_beside_needs_earlier_runs(store: Store) -> None:
    first, after = night(store, stepping(0.1)), night(store, stepping(0.12), environment=UPGRADED)
    assert change(store, [first], [after]).verdict == "inconclusive"
    again = night(store, stepping(0.1005))
    assert change(store, [first, again], [after]).verdict == "regressed"


def test_speeds_of_different_hardware_are_not_compared_and_counts_are(store: Store) -> None:
    timed = stepping(0.1, {"torch": 0.1})
    assert pair(store, timed, stepping(0.2, {"torch": 0.1}), ELSEWHERE).verdict == "inconclusive"
    found = pair(store, BYTES, BYTES.but(value=5000.0), ELSEWHERE)
    assert found.verdict == "regressed"
    assert "on other hardware" in found.reason


def test_figures_come_and_go_and_a_new_failure_is_a_regression(store: Store) -> None:
    before = night(store, GRADIENT, BYTES)
    failed = Measurement("parity", "run", None, "", "error", "the case crashed")
    after = night(store, failed, STATES)
    found = {each.quantity: each.verdict for each in compare(store, [before], [after]).changes}
    assert found == {"run": "regressed", "states": "new", "gradient": "gone", "bytes": "gone"}


def test_the_environment_tells_versions_first(store: Store) -> None:
    before = night(store, GRADIENT)
    after = night(store, GRADIENT, environment={**UPGRADED, "cores": 4, "commit": "abc"})
    found = compare(store, [before], [after])
    assert list(found.environment.items()) == [
        ("packages deepspeed", ("0.19.6", "0.19.7")),
        ("commit", ("absent", "abc")),
        ("cores", ("8", "4")),
    ]


def test_the_worst_change_is_first(store: Store) -> None:
    more = [BYTES, BYTES.but(quantity="across_groups"), STATES, GRADIENT]
    before = night(store, *more)
    worse = [more[0].but(value=5000.0), more[1].but(value=9000.0), STATES.but(value=2e6, direction="higher"), GRADIENT]
    found = compare(store, [before], [night(store, *worse)]).changes
    assert [each.quantity for each in found] == ["across_groups", "bytes", "states", "gradient"]


def test_runs_are_named_by_id_by_place_and_by_dates(store: Store) -> None:
    runs = [night(store, STATES, started=f"2026-11-0{day}T03:00:00") for day in (1, 2, 3)]
    store.begin({}, "a run without records")
    listed = store.runs()
    assert select(listed, runs[0]) == [runs[0]]
    assert select(listed, "latest") == [runs[2]]
    assert select(listed, "latest~1") == [runs[1]]
    assert select(listed, "2026-11-01..2026-11-02") == runs[:2]
    assert select(listed, "2026-11-02..") == runs[1:]
    for unknown in ("latest~3", "2025-01-01..2025-02-01", "lates", f"{runs[0]}x"):
        with pytest.raises(StoreError):
            select(listed, unknown)


def test_the_command_exits_with_1_if_something_regressed(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (4096.0, 4096.0, 5000.0):
        night(store, BYTES.but(value=value), environment=HERE if value == 4096 else UPGRADED)
    where = ["--store", str(tmp_path / "history.db")]
    assert cli.main(["compare", "latest~2", "latest~1", *where]) == 0
    assert "the environment is the same" in capsys.readouterr().out
    assert cli.main(["compare", "latest~1", *where]) == 1
    printed = capsys.readouterr().out
    assert "0.19.6" in printed
    assert "5,000 B, was 4,096 B" in printed
    assert cli.main(["compare", "latest~1", "latest", "--format", "json", *where]) == 1
    assert json.loads(capsys.readouterr().out)["changes"][0]["verdict"] == "regressed"
    assert cli.main(["compare", "latest~1", "--engines", "torch", *where]) == cli.USAGE
    assert cli.main(["compare", "latest", "latest", *where]) == cli.USAGE
    capsys.readouterr()
    assert cli.main(["compare", "2026-01-01..", "latest", *where]) == 1
    assert "before: 2 runs" in capsys.readouterr().out


def test_figures_of_a_case_that_come_or_go_together_are_one_row(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night(store, BYTES, more={BESIDE: [STATES, GRADIENT]})
    night(store, BYTES.but(value=1.0), STATES)
    assert cli.main(["compare", "latest~1", "--store", str(tmp_path / "history.db")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "zero3" in line]
    assert len(rows) == 3
    assert sum("2 figures" in row for row in rows) == 1
