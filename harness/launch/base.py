"""What every launcher offers: worlds of ranks that run jobs and never raise, never hang."""

from collections.abc import Mapping
from typing import Protocol

from harness.launch.outcome import Job, Outcome


class World(Protocol):
    """A group of rank processes. After a failure it is closed; ask the launcher for another."""

    size: int

    def run(self, job: Job, timeout: float) -> tuple[Outcome, ...]:
        """Runs the job on every rank; one outcome a rank, in rank order, at the latest shortly after ``timeout`` s."""

    def close(self) -> None:
        """Ends the ranks and removes what they left behind. May be called twice."""


class Launcher(Protocol):
    device: str
    gpus: int  # that its ranks have, shared if they are more; 0: CPU ranks

    def world(self, size: int, library: str, module: str, settings: Mapping[str, str] = ...) -> World:
        """A fresh world of ``size`` ranks in which ``library`` is already imported: by ``module``, its adapter, if that
        is the first of them that is asked for, or if the launcher was told of it. ``settings``: environment variables
        that its processes have from their start."""

    def close(self) -> None: ...
