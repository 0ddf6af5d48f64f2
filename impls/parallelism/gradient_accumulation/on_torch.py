"""PyTorch's DistributedDataParallel under ``no_sync``; the training loop chooses the weights of micro-batches."""

import torch
from torch import Tensor

from harness.spec import Batch, Topology, Workload
from impls.common.mesh import device, share
from impls.engines.torch.ddp import DDP


class Means(DDP):
    """The loop of PyTorch's tutorials: each micro-batch's mean loss ÷ k."""

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = list(share(batch, self.workload, self.rank, self.topology.dp))
        total = torch.zeros((), device=device())
        for index, (micro, _) in enumerate(micro_batches):
            with self.around(index == len(micro_batches) - 1):
                loss = self.model(*micro) / len(micro_batches)
                loss.backward()
            total += loss.detach()
        return total


def build(workload: Workload, topology: Topology, by_tokens: bool = True) -> DDP:
    return (DDP if by_tokens else Means)(workload, topology)
