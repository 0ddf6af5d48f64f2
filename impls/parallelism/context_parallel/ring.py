"""Ranks in a ring: each sends to the next while it receives from the one before."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from impls.parallelism.context_parallel.layouts import Block


class Ring(NamedTuple):
    """A ring and this rank in it; ``plan``: what it computes with the keys of each rank."""

    group: dist.ProcessGroup
    rank: int
    size: int
    plan: list[list[Block]]

    def source(self, step: int) -> int:
        """Whose keys are here in this step."""
        return (self.rank - step) % self.size


class Passing:
    """Tensors on their way to the next rank, while those of the one before arrive."""

    def __init__(self, ring: Ring, tensors: Sequence[Tensor]) -> None:
        self.sent = [x.contiguous() for x in tensors]  # kept until they have left
        self.received = [torch.empty_like(x) for x in self.sent]
        there, here = (dist.get_global_rank(ring.group, (ring.rank + i) % ring.size) for i in (1, -1))
        operations = [dist.P2POp(dist.isend, x, there, ring.group) for x in self.sent]
        operations += [dist.P2POp(dist.irecv, x, here, ring.group) for x in self.received]
        self.works = dist.batch_isend_irecv(operations)

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.received
