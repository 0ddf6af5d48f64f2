"""Each step of a night has its result, and none keeps another from running."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness import findings
from harness.history.model import Alarm, Change, Comparison, Series
from harness.nightly import config, whole
from harness.nightly.night import Night, Result, worst
from harness.nightly.steps import STEPS, take
from harness.nightly.summary import summary
from tests.nightly.examples import CASE, MACHINE, finished, night, written

ENTRY = f'[[quarantine]]\ncase = "{CASE.id}"\nowner = "ada"\nuntil = 2999-01-01\nreason = "known"\n'


def plant(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    planted = ModuleType(module)
    vars(planted).update(functions)
    monkeypatch.setitem(sys.modules, module, planted)


def change(verdict: str) -> Change:
    return Change(CASE.id, "memory", "peak", "B", 1.0, 2.0, 1.9, 2.1, verdict, "twice as much")


def compared(monkeypatch: pytest.MonkeyPatch, *verdicts: str) -> list[Any]:
    """What the comparison was asked."""
    asked: list[Any] = []

    def compare(store: Any, before: Any, after: Any) -> Comparison:
        asked.append((before, after))
        changes = tuple(change(verdict) for verdict in verdicts)
        return Comparison(tuple(before), tuple(after), changes, {"torch": ("2.12", "2.13")})

    plant(monkeypatch, "harness.history.compare", compare=compare)
    return asked


@pytest.mark.parametrize(("verdict", "code"), [("regressed", 1), ("improved", 0), ("inconclusive", 0), ("same", 0)])
def test_a_regression_since_last_night_fails(
    verdict: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared(monkeypatch, verdict, "same")
    finished(night(tmp_path).store)
    tonight = night(tmp_path)
    found = take(tonight, "compare")
    assert (found.state, found.code) == (("failed", 1) if code else ("ok", 0)), found
    assert found.facts["environment"] == {"torch": ["2.12", "2.13"]}
    assert len(found.facts["regressions"]) == code
    assert json.loads(json.dumps(found.facts)) == found.facts


def test_a_regression_in_quarantine_is_shown_and_does_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(monkeypatch, "regressed")
    finished(night(tmp_path).store)
    tonight = night(tmp_path, ENTRY)
    tonight.results.append(take(tonight, "compare"))
    found = summary(tonight)
    assert (found["exit_code"], found["regressions"]) == (0, [])
    assert [each["owner"] for each in found["quarantined"]] == ["ada"]


def test_last_night_is_the_latest_that_finished_with_these_options_on_this_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = compared(monkeypatch)
    store = night(tmp_path, command="pytest --depth=quick").store
    finished(store, command="pytest --depth=full")
    last = finished(store, command="pytest --depth=full --report=x")
    finished(store, command="pytest --depth=full", machine={**MACHINE, "cores": 4})
    killed = store.begin(MACHINE, "pytest --depth=full")
    store.finish(killed, "interrupted")
    finished(store, command="pytest --depth=quick")
    tonight = night(tmp_path, command="pytest --depth=full")
    finished(store, command="pytest --depth=full")
    take(tonight, "compare")
    assert asked == [([last], [tonight.run])]


def test_the_first_night_has_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(monkeypatch)
    found = take(night(tmp_path), "compare")
    assert (found.state, found.code) == ("skipped", 0)
    assert "no earlier night" in found.line


def alarmed(monkeypatch: pytest.MonkeyPatch, *alarms: tuple[str, bool]) -> None:
    series = Series(CASE.id, "memory", "peak", "B", "lower", "2 x x")
    found = [Alarm(series, run, 1.0, 2.0, improved, 0.001) for run, improved in alarms]
    plant(monkeypatch, "harness.history.series", series=lambda store: [series])
    plant(monkeypatch, "harness.history.trend", trend=lambda *_: found)


def test_an_alarm_fails_the_night_that_tells_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alarmed(monkeypatch, ("run-7", False), ("run-8", True))
    tonight = night(tmp_path)
    tonight.results.append(take(tonight, "trend"))
    found = summary(tonight)
    assert found["exit_code"] == 1
    assert [(alarm["run"], alarm["new"]) for alarm in found["alarms"]] == [("run-7", True)]
    (tonight.folder / "summary.json").write_text(json.dumps(found))
    again = take(night(tmp_path), "trend")
    assert again.code == 0
    assert [alarm["new"] for alarm in again.facts["alarms"]] == [False]
    alarmed(monkeypatch, ("run-7", False), ("run-9", False))
    assert take(night(tmp_path), "trend").code == 1


@pytest.mark.parametrize(("state", "code"), [(findings.GONE, 1), (findings.STILL, 0), (findings.UNKNOWN, 0)])
def test_a_finding_that_is_gone_fails(state: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "check", lambda path: findings.Checked(state))
    found = take(night(tmp_path), "findings")
    assert found.code == code
    assert {each["state"] for each in found.facts["findings"]} == {state}


def test_a_report_is_written_of_the_nights_run(tmp_path: Path) -> None:
    found = take(night(tmp_path), "report")
    assert found.state == "ok", found.line
    assert Path(found.facts["report"]).exists()


def test_a_part_that_is_not_there_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reports.site", None)
    plant(monkeypatch, "harness.history.series")
    tonight = night(tmp_path)
    assert take(tonight, "publish").state == "skipped"
    found = take(tonight, "trend")
    assert (found.state, found.line) == ("skipped", "this Plumbline has no harness.history.series:series")


def raises(_: Night) -> Result:
    raise ValueError("of\nnothing")


def test_a_step_that_breaks_is_a_line_and_the_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"trend": raises, "report": lambda night: Result("report", "ok", "done")}
    monkeypatch.setattr("harness.nightly.steps.RUN_NEEDED", ())
    assert whole.nightly(config.read(written(tmp_path, "")), steps=steps) == 3
    out = capsys.readouterr().out
    assert "nightly: trend: broke: ValueError: of nothing\nnightly: report: ok: done\n" in out
    assert "Traceback" not in out
    assert "ValueError" in (tmp_path / "nightly" / "log.txt").read_text()
    assert not (tmp_path / "nightly" / "unfinished.json").exists()


@pytest.mark.parametrize(
    ("codes", "code"), [([], 0), ([0, 0], 0), ([1, 0], 1), ([0, 3, 1], 3), ([1, 2], 2), ([5, 1], 5), ([3, 4], 3)]
)
def test_the_worst_code_counts(codes: list[int], code: int) -> None:
    assert worst(codes) == code


def test_without_a_run_the_steps_that_need_one_are_skipped(tmp_path: Path) -> None:
    tonight = night(tmp_path)
    tonight.run = ""
    states = {name: take(tonight, name).state for name in STEPS if name not in ("suites", "findings")}
    assert set(states.values()) == {"skipped"}
