"""Compilation for engines: in the background, reported, awaited by the cases that need it, and ended with the
session."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.run import builds
from harness.run.builds import Builds
from tests.launch.worlds import gone

# Ninja gives each compiler its own process group.
COMPILES = """
import subprocess, sys, time
from pathlib import Path
print("compiles", flush=True)
compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
Path("pids").write_text(f"{compiler.pid}")
while not Path("done").exists():
    time.sleep(0.05)
compiler.kill()
print("is built", flush=True)
"""


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Builds]:
    """A build that ends when a file ``done`` exists."""
    (tmp_path / "compiles.py").write_text(COMPILES)
    monkeypatch.chdir(tmp_path)
    found = Builds()
    found.begin("compiles")
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text():
        time.sleep(0.02)
    yield found
    found.close()


def test_its_lines_are_reported_while_others_go_on(compiling: Builds) -> None:
    lines: list[str] = []
    deadline = time.monotonic() + 30.0
    while not compiling.told(lines.append) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lines == ["compiles"]


def test_a_waiting_caller_sees_progress_and_outcome(
    compiling: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "TOLD", 0.1)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if "so far" in line:
            (tmp_path / "done").touch()

    compiling.wait("compiles", tell)
    assert lines[0] == "compiles"
    assert any(line.endswith("s so far; the next case is waiting") for line in lines)
    assert lines[-1] == "is built"


def test_timed_cases_wait_for_all_compilation_and_report_it(compiling: Builds, tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    lines: list[str] = []
    compiling.rest(lines.append)
    assert lines == ["compiles", "is built"]


def test_it_is_begun_once_a_session(compiling: Builds, tmp_path: Path) -> None:
    before = (tmp_path / "pids").read_text()
    (tmp_path / "done").touch()
    compiling.wait("compiles")
    compiling.wait("compiles")
    assert (tmp_path / "pids").read_text() == before


def test_the_sessions_end_kills_it_with_its_compilers(compiling: Builds, tmp_path: Path) -> None:
    compiler = int((tmp_path / "pids").read_text())
    compiling.close()
    assert gone([compiler], within=3.0)
    compiling.wait("compiles")  # nobody waits for a finished build
    assert compiling.begin("another") is None


def test_one_that_takes_too_long_is_given_up(
    compiling: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "LIMIT", 0.5)
    compiling.wait("compiles")
    assert gone([int((tmp_path / "pids").read_text())], within=3.0)


def test_one_that_cannot_be_imported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    Builds().wait("no_such_module", lines.append)
    assert "No module named no_such_module" in lines[-1]
