"""Which changes of which series become alarms, and what an alarm says."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from harness import cli
from harness.history.series import environments, series
from harness.history.trend import FALSE, paired, trend
from harness.spec import Measurement
from harness.store import Store
from tests.history import planted
from tests.history.examples import BYTES, ELSEWHERE, HERE, UPGRADED, night
from tests.history.planted import STEP, Plant


@pytest.fixture(autouse=True)
def otava(request: pytest.FixtureRequest) -> None:
    if "without_otava" not in request.node.name:
        pytest.importorskip("otava.analysis", reason="needs Apache Otava: pip install 'plumbline[trend]'")


def nights(store: Store, *figures: Measurement, environment: dict = HERE, month: int = 11) -> list[str]:
    return [
        night(store, figure, environment=environment, started=f"2026-{month}-{day:02}T03:00:00")
        for day, figure in enumerate(figures, start=1)
    ]


@pytest.mark.parametrize(
    ("plant", "soon", "later"),
    [
        (Plant(0.01, 0.03), 0.88, 0.97),
        (Plant(0.01, 0.03, history=40), 0.82, 0.94),
        (Plant(0.01, 0.03, spikes=0.03), 0.86, 0.95),
        (Plant(0.01, 0.03, heavy=True), 0.92, 0.97),
        (Plant(0.02, 0.10), 0.97, 0.99),
    ],
    ids=["3 % in 1 %", "after 40 nights", "stray runs", "heavy tails", "10 % in 2 %"],
)
def test_steps_are_found_within_5_nights(plant: Plant, soon: float, later: float) -> None:
    """The shares that the table of ``tests.history.planted`` shows, less three standard deviations of 100 series."""
    late = planted.delays(plant, seed=11, count=100)
    assert median(late) <= 4
    assert sum(delay <= 5 for delay in late) >= soon * 100
    assert sum(delay <= 10 for delay in late) >= later * 100


@pytest.mark.parametrize(
    "plant", [Plant(0.01, spikes=0.03), Plant(0.01, spikes=0.03, missing=0.2)], ids=["stray runs", "missing nights too"]
)
def test_a_month_of_80_series_without_a_step_gives_one_alarm_at_most(plant: Plant) -> None:
    """Under one in 500 series, so that two in 80 are one chance in a hundred."""
    assert planted.false_alarms(plant, seed=12, count=80) <= 1


def test_two_machines_that_take_turns_are_two_levels_and_no_change() -> None:
    assert planted.mixed(seed=3, count=20) == 0


def test_a_machines_drift_is_divided_out_by_the_control_and_the_step_stays() -> None:
    drifting = Plant(0.01, drift=0.2)
    assert planted.named(planted.planted(drifting, 20, seed=4))
    assert planted.named(planted.planted(replace(drifting, controlled=True), 20, seed=4)) == set()
    found = planted.named(planted.planted(Plant(0.01, 0.1, drift=0.2, controlled=True), 10, seed=4))
    assert {case for case, at in found if abs(at - STEP) <= planted.NEAR and "deepspeed" in case} == {
        f"case{number}-deepspeed-dp2-fp32" for number in range(10)
    }


def test_runs_without_a_control_are_left_out_and_a_rare_control_is_none() -> None:
    ours = planted.series(np.full(20, 2.0), "zero1", "torch", range(20))
    often = planted.series(np.full(20, 4.0), "zero1", "reference", range(12))
    seldom = planted.series(np.full(20, 4.0), "zero1", "reference", range(8))
    assert [point.run for point in paired(ours, [often]).points] == [point.run for point in often.points]
    assert {point.value for point in paired(ours, [often]).points} == {2.0}
    assert paired(ours, [seldom]) is ours


def test_a_weak_change_is_an_alarm_alone_and_none_in_a_large_family() -> None:
    (found,) = planted.planted(Plant(0.01, 0.012), 1, seed=5, nights=STEP + 5)
    (alone,) = trend([found])
    assert alone.p <= FALSE
    flat = [planted.series(np.ones(STEP), f"flat{n}", "torch", range(STEP)) for n in range(5000)]
    assert trend([found, *flat]) == []


def test_an_alarm_names_the_first_bad_run_and_what_changed_with_it(store: Store) -> None:
    runs = nights(store, *[BYTES] * 6)
    runs += nights(store, *[BYTES.but(value=5000.0)] * 4, environment=UPGRADED, month=12)
    nights(store, *[BYTES.but(value=9000.0)] * 8, environment=ELSEWHERE)
    (alarm,) = trend(series(store), environments(store))
    assert (alarm.run, alarm.before, alarm.after, alarm.improved) == (runs[6], 4096.0, 5000.0, False)
    assert alarm.environment == {"packages deepspeed": ("0.19.6", "0.19.7")}


@pytest.mark.parametrize(
    ("direction", "after", "improved"),
    [
        ("lower", 5.0, True),
        ("lower", 50.0, False),
        ("higher", 50.0, True),
        ("equal", 5.0, False),
        ("equal", 50.0, False),
    ],
)
def test_the_direction_of_the_figure_tells_better_from_worse(
    store: Store, direction: str, after: float, improved: bool
) -> None:
    figure = BYTES.but(direction=direction, value=10.0)
    nights(store, *[figure] * 5, *[figure.but(value=after)] * 5)
    (alarm,) = trend(series(store))
    assert alarm.improved == improved


def test_the_command_exits_with_1_only_for_late_changes_for_the_worse(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", str(tmp_path / "history.db")]
    nights(store, *[BYTES] * 6)
    assert cli.main(["trend", *where]) == 0
    assert "0 worse, 0 better, of 1 series" in capsys.readouterr().out
    runs = nights(store, *[BYTES.but(value=5000.0)] * 4, environment=UPGRADED, month=12)
    assert cli.main(["trend", *where]) == 1
    printed = capsys.readouterr().out
    assert f"since run {runs[0]} (2026-12-01)" in printed
    assert "0.19.7" in printed
    assert cli.main(["trend", "--last", "3", *where]) == 0
    assert cli.main(["trend", "--topics", "fsdp", *where]) == 0
    capsys.readouterr()
    assert cli.main(["trend", "--format", "json", *where]) == 1
    assert json.loads(capsys.readouterr().out)[0]["run"] == runs[0]


def test_the_command_without_otava_says_how_to_get_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "otava", None)
    monkeypatch.setitem(sys.modules, "otava.analysis", None)
    nights(store, *[BYTES] * 6, *[BYTES.but(value=5000.0)] * 4)
    assert cli.main(["trend", "--store", str(tmp_path / "history.db")]) == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'plumbline[trend]'" in line


@pytest.mark.parametrize(("words", "printed"), [([], ["table", "timed"]), (["time"], ["timed"])])
def test_the_command_prints_both_parts_or_the_one_that_is_named(
    words: list[str], printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    for part in ("table", "timed"):
        monkeypatch.setattr(planted, part, lambda *given, part=part: found.append(part))
    planted.main(words)
    assert found == printed
