"""A unit of ZeRO: some parameters as one flat buffer, cut into one shard a rank."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from impls.common.collectives import Alone, Exchange, Together, all_gather, all_gather_together, free, reduce_scatter
from impls.common.decoder import Decoder
from impls.common.flat import distinct, flatten, flatten_gradients, runs, views

Gathering = dist.Work | Together | Alone
Reduction = tuple[dist.Work | Exchange | Alone, Tensor, Tensor]


def owners(model: Decoder, stage: int, ranks: int = 1) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """Whose forward and backward pass needs which weights. Below stage 3 they are there all along, and may be cut
    anywhere: a gradient that is reduced shall be no larger than what a rank keeps. In stage 3 they are gathered for
    as short as possible: for an attention, an MLP, a head that is not tied to the embedding; the root has the rest
    all along, and comes first."""
    if stage < 3:
        # Few, since each message more counts between busy ranks; of one rank two, or all gradients were held twice.
        return [(model, run) for run in runs(distinct(model.parameters()), fewest=max(2, ranks))]
    blocks = [block for layer in model.model.layers for block in (layer.self_attn, layer.mlp)]
    if not model.config.tie_word_embeddings:
        blocks.append(model.lm_head)
    inside = {p for block in blocks for p in block.parameters()}
    rest = [p for p in distinct(model.parameters()) if p not in inside]
    return [(model, rest), *((block, list(block.parameters())) for block in blocks)]


class Unit:
    """Some parameters, flat and padded to N equal shards, of which each of the group's N ranks owns one.

    ``full`` [N · size] the gathered weights, ``master`` [size] this rank's in float32 for the optimizer,
    ``gradient`` [size] this rank's part, summed over ranks. In stage 3 the master is the only copy that stays, and
    the gradient is kept as wide; below it the master is a second copy only if the weights are narrower.
    """

    def __init__(self, parameters: list[nn.Parameter], stage: int, group: dist.ProcessGroup) -> None:
        self.parameters, self.stage, self.group = parameters, stage, group
        self.full = flatten(parameters, multiple=group.size())
        self.elements, self.bytes = self.full.numel(), self.full.nbytes
        size = self.elements // group.size()
        self.mine = slice(group.rank() * size, (group.rank() + 1) * size)
        shard = self.full[self.mine]
        narrow = shard.dtype.itemsize < 4
        self.master = shard.float() if narrow else shard.clone() if stage == 3 else shard
        self.gradient: Tensor | None = None
        self.send: Tensor | None = None  # [N · size], the gradient before it is reduced
        self.gathering: tuple[Gathering, Tensor] | None = None
        if stage == 3:
            self.release()

    def gather(self) -> None:
        """Starts the all-gather of the weights, into the very storage that autograd's saved tensors point at."""
        if not self.full.untyped_storage().size():
            self.full.untyped_storage().resize_(self.bytes)
            shard = self.master.detach().to(self.full.dtype)
            with torch.autograd._unsafe_preserve_version_counter(self.full):
                self.gathering = all_gather(self.full, shard, self.group), shard

    def wait(self) -> None:
        if self.gathering is not None:
            self.gathering[0].wait()
            self.gathering = None

    def release(self) -> None:
        free(self.full)

    def collect(self) -> None:
        """Once all gradients have arrived: one buffer has them, and later micro-batches' are added there."""
        if self.send is None:
            self.send = torch.empty(self.elements, dtype=self.full.dtype, device=self.full.device)
            flatten_gradients(self.parameters, self.send)

    def reduce(self) -> Reduction:
        """Starts the reduce-scatter of the gradient; returns (handle, its input, its output)."""
        assert self.send is not None
        send, self.send = self.send, None
        if self.group.size() == 1:
            return Alone(), send, send
        receive = send[self.mine] if self.stage == 1 else torch.empty_like(send[self.mine])
        return reduce_scatter(receive, send, self.group), send, receive

    def add(self, received: Tensor) -> None:
        """Takes a reduced gradient."""
        received = received.to(self.master.dtype) if self.stage == 3 else received
        self.gradient = received if self.gradient is None else self.gradient.add_(received)

    def stepped(self) -> None:
        """The master is new; below stage 3 its values become this rank's part of the weights."""
        if self.stage < 3:
            shard = self.full[self.mine]
            if self.master.data_ptr() != shard.data_ptr():
                shard.copy_(self.master)


def step(units: Sequence[Unit], optimizer: torch.optim.Optimizer) -> None:
    """Of the masters, by the gradients that the units have taken; then everybody's weights."""
    for unit in units:
        assert unit.gradient is not None
        unit.master.grad = unit.gradient.to(unit.master.dtype)
        unit.gradient = None
        for parameter in unit.parameters:
            parameter.grad = None
    optimizer.step()
    optimizer.zero_grad()
    kept: dict[dist.ProcessGroup, list[Tensor]] = {}  # weights that are there all along
    for unit in units:
        unit.stepped()
        if unit.stage < 3:
            kept.setdefault(unit.group, []).append(unit.full)
    for group, weights in kept.items():
        all_gather_together(weights, group)


def whole(units: Sequence[Unit], shards: Sequence[Tensor]) -> dict[nn.Parameter, Tensor]:
    """Every rank's ``shards``, one of each unit, in the parameters' shapes."""
    found: dict[nn.Parameter, Tensor] = {}
    for unit, shard in zip(units, shards, strict=True):
        full = shard.new_empty(unit.elements)
        dist.all_gather_into_tensor(full, shard, unit.group)
        found.update(zip(unit.parameters, views(full, unit.parameters), strict=True))
    return found


def padding(units: Sequence[Unit]) -> int:
    """Elements that fill the units up to a multiple of the ranks."""
    return sum(unit.elements - sum(p.numel() for p in unit.parameters) for unit in units)
