"""DeepSpeed's ZeRO, stages 1 to 3."""

from harness.spec import Topology, Workload
from impls.engines.deepspeed.zero import Zero


def build(workload: Workload, topology: Topology, stage: int) -> Zero:
    return Zero(workload, topology, stage)
