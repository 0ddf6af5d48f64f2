"""DeepSpeed's ``gradient_accumulation_steps`` averages the losses, so they are weighted by tokens beforehand."""

from harness.spec import Topology, Workload
from impls.engines.deepspeed.engine import DataParallel


class Means(DataParallel):
    """The engine's own behaviour."""

    def weigh(self, part: float) -> float:
        return 1 / self.workload.micro_batches


def build(workload: Workload, topology: Topology, by_tokens: bool = True) -> DataParallel:
    return (DataParallel if by_tokens else Means)(workload, topology)
