"""The interface of every launcher. Its worlds of ranks run jobs; they never raise and never hang."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from harness.launch.outcome import Job, Outcome

# Called as ``launch(gpus, adapters, cluster)``: the GPUs of each node, the modules of each library that its worlds
# import, and a harness.launch.placement.Cluster.
LAUNCHERS: Mapping[str, str] = MappingProxyType(
    {
        "local": "harness.launch.local:launch",
        "torchrun": "harness.launch.torchrun:launch",
        "slurm": "harness.launch.slurm:launch",
        "ray": "harness.launch.on_ray:launch",
    }
)


def local_cores() -> int:
    """The number of this machine's cores that local ranks share."""
    return len(os.sched_getaffinity(0))


class World(Protocol):
    """A group of rank processes. After a failure it is closed; ask the launcher for another."""

    size: int

    def run(self, job: Job, timeout: float) -> tuple[Outcome, ...]:
        """Runs the job on every rank. Returns one outcome per rank, in rank order, shortly after ``timeout`` seconds at
        the latest."""

    def close(self) -> None:
        """Ends the ranks and removes their files and processes. May be called twice."""


class Watch(Protocol):
    def disturbance(self) -> str:
        """Names foreign activity on the ranks' machines since the last call, or since creation, that makes their times
        invalid; empty if there was none."""


class Launcher(Protocol):
    device: str  # "cpu" or "cuda"
    gpus: int  # GPUs of its ranks, shared if there are more ranks; 0: CPU ranks
    cores: int  # shared by CPU ranks

    def watch(self) -> Watch:
        """Starts to observe the machines of the ranks."""

    def world(self, size: int, library: str, module: str, settings: Mapping[str, str] = ...) -> World:
        """A fresh world of ``size`` ranks in which ``library`` is already imported. The import includes the adapter
        ``module`` if the launcher was told of it, or if it is the first one requested of its library. ``settings``:
        environment variables that the processes have from their start."""

    def counts(self, size: int) -> tuple[int, ...]:
        """The number of ranks of a world of this size on each node, in blocks of neighbours."""

    def shortage(self, size: int) -> str:
        """The reason why a world of this size has no place at present, since nodes were lost; empty if it has."""

    def close(self) -> None: ...
