"""The output of another program about this machine, within a bounded time; and a child that ends with its parent."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def on_parents_death(signum: signal.Signals) -> None:
    """Asks Linux to send this process the signal when its parent ends for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


class NoAnswer(Exception):
    """The program exists but failed, or gave no answer in time; the text is one line."""


def answer(command: Sequence[str], seconds: float) -> str:
    """The output of ``command``, stripped; empty if it is not installed.

    A late command is killed with all its children, and not waited for: a driver that hangs may keep it forever.
    """
    name = os.path.basename(command[0])
    if shutil.which(command[0]) is None:
        return ""
    with contextlib.suppress(OSError):
        asked = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        try:
            said, trouble = asked.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(asked.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                asked.wait(1.0)
            for pipe in (asked.stdout, asked.stderr):
                assert pipe is not None
                pipe.close()
            raise NoAnswer(f"{name} gave no answer in {seconds:.0f} s") from None
        if asked.returncode == 0:
            return said.strip()
        last = next((line.strip() for line in reversed(f"{said}\n{trouble}".splitlines()) if line.strip()), "")
        raise NoAnswer(f"{name} failed" + (f": {last}" if last else f" with exit status {asked.returncode}"))
    raise NoAnswer(f"{name} cannot be started")
