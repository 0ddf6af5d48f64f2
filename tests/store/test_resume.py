"""A run that ended early goes on, in a file and on a server; and only one night uses a store."""

import subprocess
import sys

import pytest

from harness.nightly.lock import Locked, lock
from harness.store import Store, StoreError
from tests.store.examples import CASE, FINDING

MACHINE = {"cpu": "x", "cores": 2, "memory": 2**33, "gpus": [], "packages": {"torch": "2.13.0"}}
COMMAND = "pytest suites --depth=full --report=a"


@pytest.fixture
def run(store: Store) -> str:
    """A run that was interrupted."""
    run = store.begin(MACHINE, COMMAND)
    store.add(run, CASE, "cpu", [FINDING])
    store.finish(run, "interrupted")
    return run


def test_a_resumed_run_is_running_again_with_its_command_and_can_be_finished(store: Store, run: str) -> None:
    before = store.runs(run)[0]
    store.resume(run, MACHINE, f"pytest suites --depth=full --report=b --resume {run}")
    again = store.runs(run)[0]
    assert (again["status"], again["finished"]) == ("running", None)
    same = ("command", "started", "environment", "records")
    assert [again[name] for name in same] == [before[name] for name in same]
    with pytest.raises(StoreError, match=f"run {run} is still running"):
        store.resume(run, MACHINE, COMMAND)
    store.finish(run, "finished")
    assert store.runs(run)[0]["status"] == "finished"


def test_a_run_that_was_killed_goes_on(store: Store) -> None:
    script = (
        "import os, signal, sys; from harness.store import Store\n"
        f"print(Store.open(sys.argv[1]).begin({MACHINE!r}, {COMMAND!r}), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    url = store.engine.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True)
    run = done.stdout.strip()
    assert store.runs(run)[0]["status"] == "killed", done.stderr
    store.resume(run, MACHINE, COMMAND)
    assert store.runs(run)[0]["status"] == "running"


@pytest.mark.parametrize(
    ("machine", "command", "message"),
    [
        (MACHINE, "pytest suites --depth=quick", "had other options; give the same ones: pytest suites --depth=full"),
        ({**MACHINE, "packages": {"torch": "2.14.0"}}, "", r"another environment \(torch: 2.13.0 → 2.14.0\)"),
        ({**MACHINE, "cores": 4}, "", r"another environment \(cores: 2 → 4\)"),
        ({**MACHINE, "memory": 2**34}, "", r"another environment \(memory: 8 GiB → 16 GiB\)"),
    ],
)
def test_a_run_goes_on_only_as_it_began(
    machine: dict[str, object], command: str, message: str, store: Store, run: str
) -> None:
    with pytest.raises(StoreError, match=message):
        store.resume(run, machine, command or COMMAND)
    assert store.runs(run)[0]["status"] == "interrupted"


def test_the_records_of_one_test_can_be_forgotten(store: Store, run: str) -> None:
    store.add(run, CASE, "cpu", [FINDING.but(quantity="other"), FINDING.but(measure="traffic")])
    earlier = store.begin(MACHINE, COMMAND)
    store.add(earlier, CASE, "cpu", [FINDING])
    store.forget(run, CASE, FINDING.measure)
    assert [record["measure"] for record in store.records(run)] == ["traffic"]
    assert len(store.records(earlier)) == 1


def test_an_unknown_run_does_not_go_on(store: Store) -> None:
    with pytest.raises(StoreError, match="has no run 'x'"):
        store.resume("x", MACHINE, COMMAND)


def test_two_nights_on_one_store_do_not_overlap(store: Store) -> None:
    told = r"another nightly uses store .*: \S+ pid \d+ since 20\S+ \S+ UTC; wait"
    with lock(store), pytest.raises(Locked, match=told), lock(store):
        pass
    with lock(store):
        pass
