"""Fork servers whose engine cannot be imported, that die, or whose parent dies."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from harness.launch import local
from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Hung, Job, Killed, Raised
from tests.launch.worlds import JOBS, LONG, NOTICED, gone, run

# An effect of importing an engine's module → the case's outcome and its message.
BAD_IMPORTS = {
    "raises": ("import builtins\nassert not hasattr(builtins, 'half')\nbuiltins.half = 1\n1 / 0", Raised, "1 / 0"),
    "crashes": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", Killed, "SIGSEGV"),
    "hangs": ("import time\ntime.sleep(600)", Hung, "bad_engine.py"),
}

PARENT = """
import json, sys, time
from harness.launch.local import LocalLauncher
from harness.launch.outcome import Job
launcher = LocalLauncher()
world = launcher.world(2, "jobs", "tests.launch.jobs")
children = [outcome.value for outcome in world.run(Job("tests.launch.jobs:leaves_a_child", {}), 60)]
import psutil
below = [process.pid for process in psutil.Process().children(recursive=True)]
print(json.dumps({"below": below, "children": children, "folder": str(launcher._folder)}), flush=True)
world.run(Job("tests.launch.jobs:one_never_enters", {}), 600)
"""


@pytest.mark.parametrize("how", BAD_IMPORTS)
def test_an_engine_whose_import_fails_fails_its_own_case(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, kind, text = BAD_IMPORTS[how]
    (tmp_path / "bad_engine.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if how == "hangs":
        monkeypatch.setattr(local, "START", 20.0)  # without a hang, a busy machine takes some of them
    with LocalLauncher() as launcher:
        (outcome,) = run(launcher, "imports", 10.0, 1, module="bad_engine", imported="bad_engine")
        assert isinstance(outcome, kind)
        assert text in outcome.text
        assert run(launcher, "total", size=1, module="bad_engine") == (Done(0, 1.0),)


@pytest.fixture
def slow_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that takes long to import."""
    (tmp_path / "slow_engine.py").write_text("import time\ntime.sleep(12)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("slow_engine")
def test_another_librarys_import_is_waited_for_at_the_end_only() -> None:
    with LocalLauncher() as launcher, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(launcher.world, 1, "slow", "slow_engine")
        assert run(launcher, "total", size=1) == (Done(0, 1.0),)
        assert not slow.done()
        launcher.close()
        with pytest.raises(RuntimeError, match="closed"):
            slow.result()


def test_an_import_that_initialises_cuda_is_made_in_each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA does not survive a fork: each rank must initialise it itself."""
    (tmp_path / "eager_engine.py").write_text("import torch\ntorch.cuda.is_initialized = lambda: True")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LocalLauncher() as launcher:
        assert run(launcher, "has", size=1, module="eager_engine", imported="eager_engine") == (Done(0, False),)
        assert run(launcher, "imports", size=1, module="eager_engine", imported="eager_engine") == (Done(0, None),)


@pytest.fixture
def two_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_adapter.py").touch()
    (tmp_path / "second_adapter.py").touch()
    (tmp_path / "broken_adapter.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("two_adapters")
@pytest.mark.parametrize(
    ("others", "there"), [(["second_adapter"], True), (["second_adapter", "broken_adapter"], False)]
)
def test_a_librarys_adapters_are_imported_together_or_where_one_is_broken_as_they_are_needed(
    others: list[str], there: bool
) -> None:
    with LocalLauncher(adapters={"first_adapter": others}) as launcher:
        assert run(launcher, "has", size=1, module="first_adapter", imported="first_adapter") == (Done(0, True),)
        assert run(launcher, "has", size=1, module="first_adapter", imported="second_adapter") == (Done(0, there),)


def test_ranks_that_lose_their_server_are_killed_and_the_next_world_has_another() -> None:
    with LocalLauncher() as launcher:
        world = launcher.world(2, JOBS, JOBS)
        ranks = [outcome.value for outcome in world.run(Job(f"{JOBS}:pid", {}), LONG) if isinstance(outcome, Done)]
        server = launcher._servers[JOBS, ()].process
        server.kill()
        server.wait()
        assert len(ranks) == 2
        assert gone(ranks, within=1.0)
        start = time.monotonic()
        outcomes = world.run(Job(f"{JOBS}:total", {}), LONG)
        assert time.monotonic() - start < NOTICED
        for outcome in outcomes:
            assert isinstance(outcome, Killed)
            assert "ended with its fork server" in outcome.text
        assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))


def test_a_rank_that_dies_before_it_can_speak_is_noticed() -> None:
    with LocalLauncher() as launcher:
        world = launcher.world(2, JOBS, JOBS)
        os.kill(world._pids[1], signal.SIGKILL)
        start = time.monotonic()
        outcomes = world.run(Job(f"{JOBS}:total", {}), LONG)
        assert time.monotonic() - start < NOTICED
        assert isinstance(outcomes[1], Killed)
        assert isinstance(outcomes[0], Hung | Raised)


def test_a_killed_parent_leaves_no_process_and_no_folder() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        found = json.loads(parent.stdout.readline())
        assert len(found["below"]) == 5  # a server, two ranks, and the ranks' children
        assert set(found["children"]) < set(found["below"])
        parent.kill()
    assert gone(found["below"], within=3.0)
    deadline = time.monotonic() + 3.0
    while Path(found["folder"]).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(found["folder"]).exists()


def test_ctrl_c_is_left_to_the_parent() -> None:
    """A terminal sends it to every process of the foreground group; servers and ranks have their own groups."""
    with LocalLauncher() as launcher:
        world = launcher.world(1, JOBS, JOBS)
        (found,) = world.run(Job(f"{JOBS}:pid", {}), LONG)
        assert isinstance(found, Done)
        server = psutil.Process(launcher._servers[JOBS, ()].process.pid)
        assert os.getpgid(server.pid) == server.pid != os.getpgid(0)
        assert os.getpgid(found.value) == found.value
        server.send_signal(signal.SIGINT)
        assert run(launcher, "total", size=1) == (Done(0, 1.0),)
        world.close()
