"""Runs a command in a session of its own, which ends with this process's interest in it, children included."""

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

KEPT = 200  # last lines of the output
PATIENCE = 20.0  # seconds in which a command may close its own children and files


class Ended(NamedTuple):
    code: int
    lines: list[str]

    def reason(self, sign: str = "") -> str:
        """The last line of the output, or the last one that begins with ``sign``."""
        said = [line.strip() for line in self.lines if line.strip()]
        signed = [line.removeprefix(sign).strip(" :") for line in said if sign and line.startswith(sign)]
        return (signed or said or [f"no output, exit status {self.code}"])[-1]


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    tell: Callable[[str], None] | None = None,
) -> Ended:
    """``tell`` gets each line of the output as it comes. Where this process is interrupted, the command gets SIGTERM,
    and what is left of its session SIGKILL."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: deque[str] = deque(maxlen=KEPT)
    try:
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if tell is not None:
                tell(lines[-1])
        return Ended(process.wait(), list(lines))
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        with suppress(ProcessLookupError):  # nothing of its session is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
