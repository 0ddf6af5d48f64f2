"""Megatron-Core's distributed optimizer: ZeRO stage 1 on its DistributedDataParallel."""

from collections.abc import Mapping

from torch import Tensor

from harness.spec import Topology, Unsupported, Workload
from impls.common.megatron_optimizer import sharded_gradients, sharded_parameters
from impls.parallelism.data_parallel.on_megatron import DataParallel


class DistributedOptimizer(DataParallel):
    def __init__(self, workload: Workload, topology: Topology, instances: int = 1) -> None:
        super().__init__(workload, topology, shard=True, instances=instances)

    def gradients(self) -> Mapping[str, Tensor]:
        return sharded_gradients(self.optimizer, self.names)

    def parameters(self) -> Mapping[str, Tensor]:
        return sharded_parameters(self.optimizer, self.names)


def build(workload: Workload, topology: Topology, stage: int) -> DistributedOptimizer:
    if stage != 1:
        raise Unsupported(f"Megatron-Core's distributed optimizer is ZeRO stage 1, not {stage}")
    return DistributedOptimizer(workload, topology)
