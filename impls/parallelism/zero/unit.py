"""A unit of ZeRO: some parameters as one flat buffer, cut into one shard a rank."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from impls.models.flat import flatten, views

Reduction = tuple[dist.Work, Tensor, Tensor]


class Unit:
    """Parameters of one module, flat and padded to N equal shards, of which this rank owns one.

    ``full`` [N · size] the gathered weights, ``shard`` [size] this rank's, ``master`` [size] in float32 for the
    optimizer (the shard itself if that is float32), ``gradient`` [size] this rank's part, summed over ranks.
    """

    def __init__(self, parameters: list[nn.Parameter], stage: int, rank: int, ranks: int) -> None:
        self.parameters, self.stage = parameters, stage
        self.full = flatten(parameters, multiple=ranks)
        self.elements, self.bytes = self.full.numel(), self.full.nbytes
        size = self.elements // ranks
        self.mine = slice(rank * size, (rank + 1) * size)
        self.shard = self.full[self.mine].clone() if stage == 3 else self.full[self.mine]
        self.master = self.shard.float() if self.shard.dtype.itemsize < 4 else self.shard
        self.gradient: Tensor | None = None
        self.work: dist.Work | None = None
        if stage == 3:
            self.release()

    def gather(self) -> None:
        """Starts the all-gather of the weights, into the very storage that autograd's saved tensors point at."""
        if not self.full.untyped_storage().size():
            self.full.untyped_storage().resize_(self.bytes)
            with torch.autograd._unsafe_preserve_version_counter(self.full):
                self.work = dist.all_gather_into_tensor(self.full, self.shard, async_op=True)

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None

    def release(self) -> None:
        self.full.untyped_storage().resize_(0)

    def reduce(self) -> Reduction:
        """Starts the reduce-scatter of the gradient; returns (handle, its input, its output)."""
        send = self.shard.new_zeros(self.elements)
        for parameter, view in zip(self.parameters, views(send, self.parameters), strict=True):
            view.copy_(parameter.grad)
            parameter.grad = view if self.stage == 1 else None  # stage 1 keeps the whole gradient
        receive = send[self.mine] if self.stage == 1 else torch.empty_like(self.shard)
        return dist.reduce_scatter_tensor(receive, send, async_op=True), send, receive

    def spread(self) -> dist.Work | None:
        """After the optimizer's step: the master's values to this rank's shard and, below stage 3, to all ranks."""
        if self.master is not self.shard:
            self.shard.copy_(self.master)
        return dist.all_gather_into_tensor(self.full, self.shard, async_op=True) if self.stage < 3 else None
