"""Megatron-Core's DistributedDataParallel around our decoder, with Megatron's own optimizer."""

from harness.spec import Topology, Workload
from impls.engines.megatron.data_parallel import DataParallel


def build(workload: Workload, topology: Topology, micro_batches: int = 0) -> DataParallel:
    """``micro_batches`` overrides the workload's; only the last of them communicates."""
    return DataParallel(workload.with_(micro_batches=micro_batches) if micro_batches else workload, topology)


def build_default(workload: Workload, topology: Topology, micro_batches: int = 0) -> DataParallel:
    """The same with Megatron's default settings."""
    return DataParallel(
        workload.with_(micro_batches=micro_batches) if micro_batches else workload, topology, tuned=False
    )
