"""LoRA under data parallelism (Hu et al. 2021, equation 3): h = W₀ x + B A x; only A and B are trained.

The ranks share the batch, and one all-reduce turns their gradients into the global batch's mean.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology, Workload
from tests.examples.low_rank.data import Pairs
from tests.examples.low_rank.plain import LowRank


class DataParallelLowRank(LowRank):
    def backward(self, batch: Pairs) -> Tensor:
        n, r = dist.get_world_size(), dist.get_rank()
        mine = Pairs(*(part.chunk(n)[r] for part in batch))
        loss = self.accumulate(mine, 1 / n)
        if n > 1:
            gradients = [p.grad for p in self.weights.values() if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])  # [A's and B's elements]
            dist.all_reduce(flat)
            for g, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                g.copy_(summed.view_as(g))
        return loss


def build(workload: Workload, topology: Topology, rank: int) -> DataParallelLowRank:
    return DataParallelLowRank(workload, rank)


def thawed(workload: Workload, topology: Topology, rank: int) -> DataParallelLowRank:
    """A planted fault: a step changes the last place of one element of the frozen matrix."""
    trainer = build(workload, topology, rank)
    update = trainer.update

    def thaw() -> None:
        update()
        trainer.base[0, 0] = torch.nextafter(trainer.base[0, 0], torch.tensor(9.0))

    trainer.update = thaw  # type: ignore[method-assign]
    return trainer


def counts_twice(workload: Workload, topology: Topology, rank: int) -> DataParallelLowRank:
    """A planted fault: it reports more steps than it has taken."""
    trainer = build(workload, topology, rank)
    trainer.steps = 1
    return trainer


def misspelt(workload: Workload, topology: Topology, rank: int) -> DataParallelLowRank:
    """A planted fault: what it observes has another name."""
    trainer = build(workload, topology, rank)
    observe = trainer.observe
    trainer.observe = lambda: {"stepps": 0.0, "norm": observe()["norm"]}  # type: ignore[method-assign]
    return trainer
