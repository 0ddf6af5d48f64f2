"""Whether the process of a run is still there: told by its machine alone, and without naming it."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")


def process() -> dict[str, Any]:
    """This process; empty where it cannot be told from others later. ``boot`` and ``space`` are hashes: of the kernel's
    random id since it was booted, and of that with the space in which its process ids count (a container's own)."""
    if not BOOT.exists():
        return {}  # no Linux
    boot, space, pid = BOOT.read_text().strip(), os.stat("/proc/self/ns/pid").st_ino, os.getpid()
    return {"boot": _hashed(boot), "space": _hashed(f"{boot} {space}"), "pid": pid, "started": _started(pid)}


def gone(run: Mapping[str, Any], one_machine: bool) -> bool:
    """Whether the process that :func:`process` described has ended; False where that cannot be known from here.

    ``one_machine``: the store is a file, which the processes of one machine write; so if the machine was booted since,
    or the file is a copy from another one, nothing writes to it any more.
    """
    here = process()
    if not run or not here:
        return False
    if run["space"] == here["space"]:
        return bool(_started(run["pid"]) != run["started"])
    return one_machine and bool(run["boot"] != here["boot"])


def _started(pid: int) -> int | None:
    """When the process started, in ticks since the boot, so that one that has its id later is told from it; None where
    there is none that still runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
