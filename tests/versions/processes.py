"""Processes that must have ended."""

import time
from pathlib import Path


def ended(pid: str, seconds: float = 10.0) -> bool:
    """Whether a process ends; a signal takes its time. One that nobody waits for stays as a zombie."""
    status, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
