"""An engine is compared with the most frugal engine that is right in the same setting."""

from types import SimpleNamespace
from typing import Any

import pytest

from harness.measures import peers
from harness.run.runner import Checked
from harness.spec import Case, Measurement, Topology, Workload
from harness.spec.run import Memory, Traffic, TrainerRun

MIB = 2.0**20
ENGINES = {
    "reference": (100.0 * MIB, 10),
    "lean": (80.0 * MIB, 4),
    "wrong": (10.0 * MIB, 1),
    "wasteful": (101.0 * MIB, 9),
    "same": (80.0 * MIB, 8),
}


def case(engine: str, topology: Topology) -> Case:
    return Case("zero", "zero1", engine, topology, Workload())


def run(peak: float, calls: int) -> Checked:
    traffic = [Traffic({"all_reduce": {"calls": calls, "bytes": 1.0, "control": 0.0}})]
    return Checked((TrainerRun(memory=[Memory(peak=peak)], traffic=traffic),))


def judged(engine: str, among: tuple[str, ...] = tuple(ENGINES), dp: int = 2) -> dict[str, Measurement]:
    topology = Topology(dp=dp)
    runner = SimpleNamespace(
        peers=lambda mine: [case(name, topology) for name in among],
        checked=lambda mine: run(*ENGINES[mine.engine]),
    )
    lab: Any = SimpleNamespace(runner=runner, right=lambda mine: mine.engine != "wrong")
    return {each.quantity: each for each in peers.take(lab, case(engine, topology))}


def test_a_peak_above_a_quarter_more_than_the_leanest_fails_the_reference_too() -> None:
    assert {name: judged(name)["peak"].verdict for name in ("reference", "lean", "wasteful")} == {
        "reference": "pass",  # exactly 1.25 ×
        "lean": "pass",
        "wasteful": "fail",
    }


def test_more_than_twice_the_fewest_calls_fail() -> None:
    found = judged("reference")["calls"]
    assert (found.verdict, found.law, found.bound) == ("fail", 4.0, 8.0)
    assert found.reason == "10 calls in a step, 2.50 × lean's 4"
    assert judged("same")["calls"].verdict == "pass"


def test_a_wrong_engine_is_no_measure_of_others_but_is_measured() -> None:
    assert judged("reference")["peak"].law == 80.0 * MIB
    assert judged("wrong")["peak"].law == 10.0 * MIB


def test_a_surplus_below_a_mebibyte_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "lean", (0.1 * MIB, 4))
    monkeypatch.setitem(ENGINES, "wasteful", (1.0 * MIB, 9))
    assert judged("wasteful")["peak"].verdict == "pass"


def test_one_rank_makes_no_calls_and_one_engine_has_no_peers() -> None:
    assert "calls" not in judged("reference", dp=1)
    assert judged("reference", among=("reference", "wrong"))["run"].verdict == "skipped"
