"""Bytes that a rank sends in a step."""

from harness.spec import Topology, Workload
from tests.examples.low_rank.data import SIZE


def traffic(workload: Workload, topology: Topology, rank: int) -> float:
    return 2 * (topology.dp - 1) / topology.dp * 2 * SIZE * rank * workload.element_size
