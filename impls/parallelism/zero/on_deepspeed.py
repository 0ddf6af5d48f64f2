"""DeepSpeed's ZeRO, stages 1 to 3."""

from harness.spec import Topology, Workload
from impls.engines.deepspeed.zero import DefaultZero, ManualZero, Zero


def build(workload: Workload, topology: Topology, stage: int) -> Zero:
    return Zero(workload, topology, stage)


def build_default(workload: Workload, topology: Topology, stage: int) -> DefaultZero:
    """The same with DeepSpeed's default settings."""
    return DefaultZero(workload, topology, stage)


def build_manual(workload: Workload, topology: Topology, stage: int) -> ManualZero:
    """The same, but its users accumulate the gradients of micro-batches by hand."""
    return ManualZero(workload, topology, stage)
