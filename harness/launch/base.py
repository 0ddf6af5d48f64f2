"""What every launcher offers: worlds of ranks that run jobs and never raise, never hang."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from harness.launch.outcome import Job, Outcome

LAUNCHERS: Mapping[str, str] = MappingProxyType({"local": "harness.launch.local:LocalLauncher"})


def local_cores() -> int:
    """Cores of this machine that local ranks share."""
    return len(os.sched_getaffinity(0))


class World(Protocol):
    """A group of rank processes. After a failure it is closed; ask the launcher for another."""

    size: int

    def run(self, job: Job, timeout: float) -> tuple[Outcome, ...]:
        """Runs the job on every rank; one outcome a rank, in rank order, at the latest shortly after ``timeout`` s."""

    def close(self) -> None:
        """Ends the ranks and removes what they left behind. May be called twice."""


class Watch(Protocol):
    def disturbance(self) -> str:
        """What else the ranks' machines did since the last call, or since this was made, so that times of it do not
        count; empty if there was nothing."""


class Launcher(Protocol):
    """Made as ``launcher(gpus, adapters)``: ``adapters`` names for each library the modules that its worlds import."""

    device: str  # "cpu" or "cuda"
    gpus: int  # that its ranks have, shared if they are more; 0: CPU ranks
    cores: int  # that CPU ranks share

    def watch(self) -> Watch:
        """Looks at the machines that the ranks are on, from now on."""

    def world(self, size: int, library: str, module: str, settings: Mapping[str, str] = ...) -> World:
        """A fresh world of ``size`` ranks in which ``library`` is already imported: by ``module``, its adapter, if that
        is the first of them that is asked for, or if the launcher was told of it. ``settings``: environment variables
        that its processes have from their start."""

    def close(self) -> None: ...
