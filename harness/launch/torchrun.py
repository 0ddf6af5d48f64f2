"""Agents started by torchrun: torch's elastic agent on each node, which meet through c10d."""

import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness.launch.cluster import ClusterLauncher
from harness.launch.placement import Cluster, LaunchError
from harness.launch.slurm import SRUN, step
from harness.launch.started import Processes, agent, script, variables

# torchrun would otherwise look up the host name's address, which may not resolve.
ALONE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Torchrun:
    """On each of the hosts through a remote shell, or in a step of the Slurm allocation. The store in which the elastic
    agents meet is this process's, so that the loss of any node leaves it to the others."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._remote = shlex.split(cluster.remote_shell)
        if cluster.hosts and not shutil.which(self._remote[0]):
            raise LaunchError(f"{self._remote[0]} is not on PATH; install it, or give another with --remote-shell")
        if not cluster.hosts and not shutil.which(SRUN):
            raise LaunchError(f"{SRUN} is not on PATH; give the nodes with --hosts A,B")
        self._processes, self._store = Processes(), list[Any]()

    def start(self, address: str, port: int, key: bytes) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # collection does not need torch

        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        self._store.append(store)
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", str(self._cluster.nodes), "--nproc-per-node", "1", "--max-restarts", "0"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{store.port}"),
            *("--rdzv-conf", "is_host=false", "--rdzv-id", secrets.token_hex(8)),
            "-m",
        ]
        more = variables(key) | ALONE
        for host in self._cluster.hosts:
            shell = [*self._remote, host, "sh", "-s"]
            self._processes.start(host, shell, text=script([*command, *agent(address, port, host)], more))
        if not self._cluster.hosts:
            self._processes.start(SRUN, step(self._cluster, [*command, *agent(address, port)], os.environ), more)

    def pending(self) -> bool:
        return False

    def trouble(self) -> str:
        ended = self._processes.ended()
        said = "; ".join(f"{name}: {self._processes.output(name)}" for name in ended)
        return f"the agents did not start on all nodes ({said}); {self._check()}" if ended else ""

    def advice(self) -> str:
        return f"{self._check()}; --head gives another address of this machine"

    def _check(self) -> str:
        if not self._cluster.hosts:
            return f"check that srun starts {sys.executable} on every node"
        return f"check that `{self._cluster.remote_shell} {self._cluster.hosts[-1]} {sys.executable} -V` works"

    def stop(self) -> None:
        self._processes.stop()
        self._store.clear()


def launch(gpus: int, adapters: Mapping[str, Sequence[str]], cluster: Cluster) -> ClusterLauncher:
    return ClusterLauncher(Torchrun(cluster), gpus, adapters, cluster)
