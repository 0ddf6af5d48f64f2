"""Worlds over the two nodes of a real Ray cluster on this machine."""

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from harness.launch import on_ray
from harness.launch.cluster import ClusterLauncher
from harness.launch.placement import Cluster, LaunchError
from tests.launch import two_nodes
from tests.launch.two_nodes import TWO

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def here() -> Iterator[Any]:
    """Ray's own daemons have a node without cores, so that no agent is on it."""
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    cluster.shutdown()


@pytest.fixture
def launcher(here: Any) -> Iterator[ClusterLauncher]:
    with on_ray.launch(0, {}, TWO) as launcher:
        yield launcher


@needs_ray
def test_an_all_reduce_and_parity_span_two_nodes(launcher: ClusterLauncher) -> None:
    two_nodes.one_all_reduce_spans_both(launcher)
    two_nodes.parity_passes_over_both(launcher)


@needs_ray
def test_more_nodes_than_the_cluster_has_are_refused(here: Any) -> None:
    with pytest.raises(LaunchError, match="the Ray cluster has 3 nodes; use --nodes 3, or add nodes to it"):
        on_ray.launch(0, {}, Cluster(nodes=4))


@needs_ray
def test_losing_a_node_ends_its_case_and_no_other(here: Any, launcher: ClusterLauncher) -> None:
    above = {process.pid for process in psutil.Process(launcher.nodes[1].pid).parents()}
    (node,) = [node for node in here.worker_nodes if node.all_processes["raylet"][0].process.pid in above]
    two_nodes.losing_the_second_ends_its_case_and_no_other(
        launcher, lambda: here.remove_node(node, allow_graceful=False)
    )


@needs_ray
def test_without_a_cluster_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**_: Any) -> None:
        raise ConnectionError("as Ray does")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(LaunchError, match="no Ray cluster is running here; start one with `ray start`"):
        on_ray.launch(0, {}, TWO)


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LaunchError, match=r"pip install 'plumbline\[ray\]'"):
        on_ray.launch(0, {}, TWO)
