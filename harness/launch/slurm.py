"""Agents started by Slurm's srun, one on each node, in this allocation or one of their own."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence

from harness.launch.cluster import ClusterLauncher
from harness.launch.placement import Cluster, LaunchError, allocated
from harness.launch.started import Processes, agent, variables

SRUN = "srun"


def step(cluster: Cluster, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """A command of srun that runs one task on each node. A node that fails ends neither the job nor the other tasks.
    Each task may use the whole node, whatever this job's own tasks were given."""
    inside = allocated(environment) > 0
    return [
        *(SRUN, f"--nodes={cluster.nodes}", f"--ntasks={cluster.nodes}", "--ntasks-per-node=1", "--job-name=plumbline"),
        *("--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--cpu-bind=none", "--export=ALL"),
        *(["--overlap"] if inside else ["--exclusive"]),
        *shlex.split(cluster.slurm),
        *command,
    ]


class Slurm:
    def __init__(self, cluster: Cluster) -> None:
        if not shutil.which(SRUN):
            other = "start on a node of a Slurm cluster, or use --launcher torchrun --hosts A,B"
            raise LaunchError(f"{SRUN} is not on PATH; {other}")
        self._cluster, self._processes = cluster, Processes()

    def start(self, address: str, port: int, key: bytes) -> None:
        command = [sys.executable, "-m", *agent(address, port)]
        self._processes.start(SRUN, step(self._cluster, command, os.environ), variables(key))

    def pending(self) -> bool:
        """srun waits in the queue, maybe for hours, and says so."""
        output = self._processes.output(SRUN)
        return "queued and waiting" in output and "has been allocated" not in output

    def trouble(self) -> str:
        if not self._processes.ended():
            return ""
        return f"srun ended: {self._processes.output(SRUN)}; --slurm OPTIONS gives it a partition, an account or a time"

    def advice(self) -> str:
        said = self._processes.output(SRUN)
        return f"check squeue, and that the nodes reach that address (--head gives another); srun: {said}"

    def stop(self) -> None:
        self._processes.stop()


def launch(gpus: int, adapters: Mapping[str, Sequence[str]], cluster: Cluster) -> ClusterLauncher:
    return ClusterLauncher(Slurm(cluster), gpus, adapters, cluster)
