"""Agents started by Ray, each as a task in a bundle of a placement group, one bundle on a node."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness.launch.cluster import ClusterLauncher
from harness.launch.placement import Cluster, LaunchError
from harness.launch.started import agent, variables


class Ray:
    def __init__(self, cluster: Cluster, gpus: int) -> None:
        try:
            import ray
        except ImportError:
            raise LaunchError("Ray is not installed: pip install 'plumbline[ray]'") from None
        self._ray: Any = ray
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        except ConnectionError:
            how = "start one with `ray start`, or name it in RAY_ADDRESS"
            raise LaunchError(f"no Ray cluster is running here; {how}") from None
        alive = sum(node["Alive"] for node in ray.nodes())
        if alive < cluster.nodes:
            ray.shutdown()
            raise LaunchError(f"the Ray cluster has {alive} nodes; use --nodes {alive}, or add nodes to it")
        self._cluster, self._gpus = cluster, gpus
        self._group: Any = None
        self._ready: Any = None
        self._tasks: list[Any] = []

    def start(self, address: str, port: int, key: bytes) -> None:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        def run(command: Sequence[str], more: Mapping[str, str], folder: str) -> int:
            """Defined here, it reaches the nodes by value, whose Ray need not find this package."""
            import os
            import subprocess

            return subprocess.run(command, env={**os.environ, **more}, cwd=folder, check=True).returncode

        self._group = placement_group([{"CPU": 1, "GPU": self._gpus}] * self._cluster.nodes, strategy="STRICT_SPREAD")
        self._ready = self._group.ready()
        command = [sys.executable, "-m", *agent(address, port)]
        for bundle in range(self._cluster.nodes):
            place = PlacementGroupSchedulingStrategy(self._group, bundle)
            task = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=0, scheduling_strategy=place)(run)
            self._tasks.append(task.remote(command, variables(key), os.getcwd()))

    def pending(self) -> bool:
        """Until every node has room for its bundle."""
        return not self._ray.wait([self._ready], timeout=0)[0]

    def trouble(self) -> str:
        for task in self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)[0]:
            try:
                self._ray.get(task)
            except Exception as error:  # whatever ended it on its node
                return f"an agent ended on its node: {str(error).strip().splitlines()[-1]}"
            return "an agent ended on its node"
        return ""

    def advice(self) -> str:
        return "check `ray status`, and that the nodes reach that address (--head gives another)"

    def stop(self) -> None:
        from ray.util import remove_placement_group

        if self._group is not None:
            remove_placement_group(self._group)
        self._ray.shutdown()


def launch(gpus: int, adapters: Mapping[str, Sequence[str]], cluster: Cluster) -> ClusterLauncher:
    return ClusterLauncher(Ray(cluster, gpus), gpus, adapters, cluster)
