"""DeepSpeed without ZeRO: every rank holds everything, gradients are all-reduced."""

from harness.spec import Topology, Workload
from impls.engines.deepspeed.engine import DataParallel
from impls.engines.deepspeed.zero import DefaultDataParallel


def build(workload: Workload, topology: Topology, micro_batches: int = 0) -> DataParallel:
    """``micro_batches`` overrides the workload's; only the last of them communicates."""
    return DataParallel(workload.with_(micro_batches=micro_batches) if micro_batches else workload, topology)


def build_default(workload: Workload, topology: Topology, micro_batches: int = 0) -> DefaultDataParallel:
    """The same with DeepSpeed's default settings."""
    return DefaultDataParallel(workload.with_(micro_batches=micro_batches) if micro_batches else workload, topology)
