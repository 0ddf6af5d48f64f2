"""Cases that only another PyTorch has measured are measured again; the suites themselves are a stand-in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.nightly import renew
from harness.nightly.night import Night
from harness.nightly.steps import take
from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store
from tests.nightly.examples import CASE, MACHINE, night

OLD = MACHINE | {"packages": {"torch": "2.12.1"}}
NEWER = MACHINE | {"packages": {"torch": "2.14.0"}}
ANOTHER = Case("zero", "zero2", "deepspeed", Topology(dp=2), Workload())
COMMAND = "pytest suites/ --depth full --topics zero --store sqlite:///x.db -k zero2"


def measured(store: Store, case: Case, machine: Mapping[str, Any], command: str = COMMAND) -> None:
    run = store.begin(machine, command)
    store.add(run, case, "cpu", [Measurement("memory", "peak", 1.0, "B", "pass", "")])
    store.finish(run, "finished")


@pytest.fixture
def tonight(tmp_path: Path) -> Night:
    """A night under PyTorch 2.13.0 that has measured CASE."""
    return night(tmp_path)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of the suites, which measure ANOTHER under tonight's PyTorch."""
    found: list[list[str]] = []

    def launch(tonight: Night, arguments: list[str]) -> tuple[int, list[str]]:
        found.append(arguments)
        measured(tonight.store, ANOTHER, MACHINE)
        return 0, []

    monkeypatch.setattr(renew, "launch", launch)
    return found


def test_a_case_of_another_pytorch_is_measured_again_with_its_options_and_once(
    tonight: Night, given: list[list[str]]
) -> None:
    measured(tonight.store, CASE, MACHINE)
    measured(tonight.store, ANOTHER, OLD)
    result = take(tonight, "renew")
    assert (result.state, result.line) == ("ok", "1 cases measured again under PyTorch 2.13.0, 0 left")
    (arguments,) = given
    assert arguments[1:6] == ["--topics", "zero", "--depth", "full", f"-k=-{ANOTHER.id}]"]
    assert arguments[6] == f"--store={tonight.config.store}"
    assert take(tonight, "renew").line == "0 cases measured again under PyTorch 2.13.0, 0 left"
    assert len(given) == 1


def test_a_case_of_other_hardware_is_left(tonight: Night, given: list[list[str]]) -> None:
    measured(tonight.store, ANOTHER, OLD | {"cpu": "another"})
    assert take(tonight, "renew").state == "ok"
    assert given == []


def test_after_a_downgrade_nothing_is_measured_again(tonight: Night, given: list[list[str]]) -> None:
    measured(tonight.store, ANOTHER, NEWER)
    assert take(tonight, "renew").line == "the newest PyTorch of the store is not tonight's"
    assert given == []


def test_what_a_night_has_no_time_for_is_left_to_the_next_and_the_newest_come_first(
    tonight: Night, given: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renew, "MOST", 1)
    gone = Case("zero", "zero1", "deepspeed", Topology(dp=2), Workload())
    measured(tonight.store, gone, OLD)
    measured(tonight.store, ANOTHER, OLD)
    assert take(tonight, "renew").line == "1 cases measured again under PyTorch 2.13.0, 1 left"
    assert given[0][5] == f"-k=-{ANOTHER.id}]"


@pytest.mark.parametrize(("code", "state"), [(1, "failed"), (5, "ok"), (3, "broke"), (-9, "broke")])
def test_the_suites_status_is_that_of_the_step(
    tonight: Night, monkeypatch: pytest.MonkeyPatch, code: int, state: str
) -> None:
    measured(tonight.store, ANOTHER, OLD)
    monkeypatch.setattr(renew, "launch", lambda *_: (code, []))
    result = take(tonight, "renew")
    assert result.state == state
    assert result.facts["left"] == 1
