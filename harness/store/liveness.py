"""Whether the process of a run still exists. Only its own machine can tell, and the machine is not named."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")


def process() -> dict[str, Any]:
    """This process; empty if it cannot be told from others later. ``boot`` and ``space`` are hashes: of the kernel's
    random boot id, and of that together with the namespace of its process ids (a container's own)."""
    if not BOOT.exists():
        return {}  # not Linux
    boot, space, pid = BOOT.read_text().strip(), os.stat("/proc/self/ns/pid").st_ino, os.getpid()
    return {"boot": _hashed(boot), "space": _hashed(f"{boot} {space}"), "pid": pid, "started": _started(pid)}


def gone(run: Mapping[str, Any], one_machine: bool) -> bool:
    """Whether the process that :func:`process` described has ended; False if that cannot be known from here.

    ``one_machine``: the store is a file, which processes of only one machine write. If that machine has rebooted since,
    or the file is a copy from another machine, no process writes to it any more.
    """
    here = process()
    if not run or not here:
        return False
    if run["space"] == here["space"]:
        return bool(_started(run["pid"]) != run["started"])
    return one_machine and bool(run["boot"] != here["boot"])


def _started(pid: int) -> int | None:
    """The start time of the process in ticks since boot, which distinguishes it from a later process with the same id;
    None if no such process runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
