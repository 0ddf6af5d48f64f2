"""Helpers that the tests of worlds share."""

import time
from typing import Any

import psutil

from harness.launch.base import Launcher
from harness.launch.outcome import Job, Outcome

JOBS = "tests.launch.jobs"
LONG = 60.0  # seconds, far more than any test needs
NOTICED = 2.0


def run(
    launcher: Launcher, name: str, timeout: float = LONG, size: int = 2, module: str = JOBS, **arguments: Any
) -> tuple[Outcome, ...]:
    """One job in a fresh world, whose server has imported ``module``."""
    world = launcher.world(size, module, module)
    try:
        return world.run(Job(f"{JOBS}:{name}", arguments), timeout)
    finally:
        world.close()


def gone(pids: list[int], within: float) -> bool:
    """Whether all of these processes have ended, at most ``within`` seconds from now."""
    deadline = time.monotonic() + within
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    """An orphan without a parent that reaps it is a zombie, which counts as ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
