"""Megatron-Core's partial distributed optimizer: several instances of it, each over a group of neighbouring ranks."""

from harness.spec import Topology, Workload
from impls.common.mesh import groups
from impls.engines.megatron.data_parallel import DistributedOptimizer


def build(workload: Workload, topology: Topology, group: int, stage: int) -> DistributedOptimizer:
    """Only the states of the optimizer are sharded, so ``stage`` is 1."""
    return DistributedOptimizer(workload, topology, instances=groups(topology, group))
