"""DeepSpeed's ``gradient_accumulation_steps``: a mean of the losses it is given, so tokens are weighed beforehand."""

import torch
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.models.mesh import device, share
from impls.parallelism.data_parallel.on_deepspeed import DataParallel


class Means(DataParallel):
    """What the engine does by itself."""

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=device())
        for index, micro in enumerate(share(batch, self.workload, self.rank, self.topology.dp)):
            if index:
                self.engine.step()  # between micro-batches it only counts
            loss = self.engine(*micro)
            self.engine.backward(loss)
            total += loss.detach() / self.workload.micro_batches
        return total


def build(workload: Workload, topology: Topology, by_tokens: bool = True) -> DataParallel:
    return (DataParallel if by_tokens else Means)(workload, topology)
