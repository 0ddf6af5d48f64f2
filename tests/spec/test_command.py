"""Other programs' answers: bounded in time, and one line if there is none."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness.spec.command import NoAnswer, answer
from tests.launch.worlds import gone


def test_the_output_of_a_program_is_its_answer() -> None:
    assert answer((sys.executable, "-c", "print('  one\\ntwo')"), 60.0) == "one\ntwo"


def test_a_program_that_is_not_installed_says_nothing() -> None:
    assert answer(("no-such-program", "--version"), 60.0) == ""


@pytest.mark.parametrize(
    ("code", "said"),
    [("import sys; sys.exit('\\nno driver\\n')", "failed: no driver"), ("exit(9)", "failed with exit status 9")],
)
def test_a_program_that_fails_says_why_in_one_line(code: str, said: str) -> None:
    with pytest.raises(NoAnswer, match=said):
        answer((sys.executable, "-c", code), 60.0)


def test_a_program_that_cannot_be_started_is_no_crash(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x00no program")
    broken.chmod(0o755)
    with pytest.raises(NoAnswer, match="broken cannot be started"):
        answer((str(broken),), 60.0)


def test_a_program_that_hangs_ends_in_time_with_all_that_it_has_started(tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/child\nwait\n")
    hangs.chmod(0o755)
    with pytest.raises(NoAnswer, match=r"^hangs gave no answer in 1 s$"):
        answer((str(hangs),), 1.0)
    assert gone([int((tmp_path / "child").read_text())], within=3.0)


@pytest.mark.filterwarnings("ignore:.*Popen:pytest.PytestUnraisableExceptionWarning")
def test_a_program_that_cannot_be_killed_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a process that hangs inside a driver."""
    spared: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _: spared.append(pid))
    start = time.monotonic()
    with pytest.raises(NoAnswer):
        answer(("sleep", "30"), 0.5)
    assert time.monotonic() - start < 15.0
    monkeypatch.undo()
    os.killpg(spared[0], signal.SIGKILL)
