"""Megatron-Core's distributed optimizer: ZeRO stage 1 on its DistributedDataParallel."""

from functools import partial

from harness.spec import Topology, Unsupported, Workload
from impls.engines.megatron.data_parallel import DistributedOptimizer


def build(workload: Workload, topology: Topology, stage: int, tuned: bool = True) -> DistributedOptimizer:
    if stage != 1:
        raise Unsupported(f"Megatron-Core's distributed optimizer is ZeRO stage 1, not {stage}")
    return DistributedOptimizer(workload, topology, tuned=tuned)


build_default = partial(build, tuned=False)
