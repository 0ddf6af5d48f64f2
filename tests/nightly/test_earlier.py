"""A resumed run keeps what it measured, where that is still whole."""

from pathlib import Path

import pytest

from harness.run.earlier import earlier
from harness.run.recorder import Recorder
from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store
from harness.store.resume import changes, selection
from tests.nightly.examples import CASE, MACHINE

PEER = Case("zero", "zero3", "torch", Topology(dp=2), Workload())
ELSEWHERE = Case("zero", "zero3", "torch", Topology(dp=4), Workload())
FIGURE = Measurement("memory", "peak", 0.1 + 0.2, "B", "fail", "much", 1.0, 2.0, "lower", {"finding": "x", "by": [1]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "plumbline.db"))


@pytest.fixture
def run(store: Store) -> str:
    """A run that was interrupted."""
    run = store.begin(MACHINE, "pytest suites --depth=full --report=a")
    store.add(run, CASE, "cpu", [FIGURE])
    store.finish(run, "interrupted")
    return run


def test_measurements_come_back_as_they_were(store: Store, run: str) -> None:
    found = earlier(store.records(run), [("memory", CASE), ("parity", CASE)])
    assert found.kept == {("memory", CASE.id): [FIGURE]}
    recorder = Recorder(lambda case, measurements: None, earlier=found)
    assert recorder.judged == {CASE.id: [FIGURE]}
    assert [record["value"] for record in recorder.records([CASE])] == [0.1 + 0.2]


def test_cases_that_are_timed_in_turns_are_kept_or_timed_together(store: Store, run: str) -> None:
    times = FIGURE.but(measure="throughput", quantity="step")
    tests = [("throughput", case) for case in (CASE, PEER, ELSEWHERE)] + [("memory", CASE)]
    for case in (CASE, ELSEWHERE):
        store.add(run, case, "cpu", [times])
    found = earlier(store.records(run), tests, quiet=("throughput",))
    assert found.kept.keys() == {("throughput", ELSEWHERE.id), ("memory", CASE.id)}
    store.add(run, PEER, "cpu", [times])
    assert len(earlier(store.records(run), tests, quiet=("throughput",)).kept) == 4


def test_a_rank_that_was_told_to_end_with_the_run_is_measured_again(store: Store, run: str) -> None:
    for case, how in ((CASE, "killed by SIGTERM"), (PEER, "killed by SIGSEGV")):
        store.add(run, case, "cpu", [FIGURE.but(measure="parity", verdict="error", reason=f"{how}\nlog")])
    found = earlier(store.records(run), [("parity", CASE), ("parity", PEER)])
    assert found.kept.keys() == {("parity", PEER.id)}
    assert found.replaced == {("parity", CASE.id)}
    assert found.attempts == {}


def test_the_kernels_share_of_memory_is_no_change() -> None:
    assert changes(MACHINE, {**MACHINE, "memory": 2**33 + 4096}) == []
    assert changes({**MACHINE, "process": {"pid": 1}}, {**MACHINE, "process": {"pid": 2}}) == []


def test_outputs_and_the_resumed_run_are_no_part_of_the_selection() -> None:
    assert selection("pytest -q suites --resume x --report=a --junitxml b -x -k 'a b'") == [
        "pytest",
        "suites",
        "-k",
        "a b",
    ]
