"""The distribution: tokens by data-parallel rank, experts by their rank in a group of ep adjacent ranks.

dp4ep2      rank 0          rank 1          rank 2          rank 3
tokens      quarter 0       quarter 1       quarter 2       quarter 3
experts     first half      second half     first half      second half      {0, 1}, {2, 3} exchange tokens
            └──────────── replicas: gradients add up ───────┘                {0, 2}, {1, 3} sum gradients

With tensor parallelism t neighbours share the parts of one rank above, and each has a t-th of an expert's width; with
additional sequence parallelism (``cut_tokens``) each also has a t-th of the tokens.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.device_mesh import init_device_mesh

from harness.spec import Topology
from impls.common.mesh import device
from impls.parallelism.expert_parallel.dispatch import Group, add_up

TOKENS = ("x", "output")
EXPERTS = ("gate_up", "down")
LOSSES = ("auxiliary_loss", "z_loss")
ADDITIVE = (*LOSSES, "router_loss", "tokens_per_expert", "dropped")  # a rank has its part of them


class Spread:
    """The groups of a topology; ``split`` and ``gather`` of a Function."""

    def __init__(self, topology: Topology, experts: int, cut_tokens: bool = False) -> None:
        if experts % topology.ep:
            raise ValueError(f"ep {topology.ep} does not divide {experts} experts")
        shape = (topology.dp // topology.ep, topology.ep, topology.tp)
        places = init_device_mesh(device().type, shape, mesh_dim_names=("replica", "ep", "tp"))
        self.ep, self.replicas, self.tp = (places.get_group(name) for name in ("ep", "replica", "tp"))
        every = topology.tp == 1 or cut_tokens  # rank has tokens of its own
        self.dp = dist.group.WORLD if every else places["replica", "ep"]._flatten("dp").get_group()

    def split(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._part(name, tensor) for name, tensor in whole.items()}

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        if name in EXPERTS:
            return part_of(name, tensor, self.ep, self.tp)
        return tensor.chunk(self.dp.size())[self.dp.rank()] if name in TOKENS else tensor

    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The router's gradient, and those of an expert's replicas, are already summed."""
        return {name: self._whole(name, part.detach()) for name, part in parts.items()}

    def _whole(self, name: str, part: Tensor) -> Tensor:
        if name in ADDITIVE:
            part = add_up(part.clone(), self.dp)
        if name in LOSSES:
            return reported(part)
        if name in EXPERTS:
            return whole_of(name, part, self.ep, self.tp)
        return torch.cat(_pieces(part, self.dp)) if name in TOKENS else part


def part_of(name: str, whole: Tensor, ep: Group, tp: Group) -> Tensor:
    """This rank's part of the weights of all experts: gate_up [E, 2f, h] → [E/ep, 2f/t, h], down [E, h, f] →
    [E/ep, h, f/t]."""
    return narrowed(name, whole.chunk(ep.size())[ep.rank()], tp)


def whole_of(name: str, part: Tensor, ep: Group, tp: Group) -> Tensor:
    """The inverse of :func:`part_of`, on every rank of both groups."""
    return torch.cat(_pieces(widened(name, part, tp), ep))


def narrowed(name: str, experts: Tensor, tp: Group) -> Tensor:
    """This rank's part along tp of the weights of some experts."""
    t, rank = tp.size(), tp.rank()
    if name == "down":
        return experts.chunk(t, 2)[rank].contiguous()
    # Equal numbers of the gate's rows and of the other half's.
    return torch.cat([half.chunk(t, 1)[rank] for half in experts.chunk(2, 1)], 1) if t > 1 else experts


def widened(name: str, part: Tensor, tp: Group) -> Tensor:
    """The inverse of :func:`narrowed`, on every rank of the group."""
    pieces = _pieces(part, tp)
    if name == "down":
        return torch.cat(pieces, 2)
    halves = zip(*(piece.chunk(2, 1) for piece in pieces), strict=True)
    return torch.cat([piece for half in halves for piece in half], 1)


def _pieces(part: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """All ranks' parts, in their order."""
    if group.size() == 1:
        return [part]
    pieces = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(pieces, part.contiguous(), group=group)
    return pieces


class Summed(Function):
    """A replicated weight: unchanged forward, its gradient summed over the group backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return add_up(gradient.clone(memory_format=torch.contiguous_format), ctx.group), None


summed: Callable[[Tensor, dist.ProcessGroup], Tensor] = Summed.apply


class Unstack(Function):
    """[e, …] → e tensors, whose gradients are parts of one buffer: see :func:`unstacked`."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, group: Group, buffer: list[Tensor]) -> tuple[Tensor, ...]:
        ctx.group, ctx.buffer = group, buffer
        return tuple(weights.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = ctx.buffer.pop()
        for part, gradient in zip(whole, gradients, strict=True):
            if gradient.data_ptr() != part.data_ptr():  # an expert without tokens
                part.copy_(gradient)
        return add_up(whole, ctx.group), None, None


def unstacked(weights: Tensor, group: Group) -> tuple[Tensor, ...]:
    """Weights [e, …] in the form that engines need: one tensor each. Each gradient is moved to its place as soon as it
    exists, as engines do with their gradient buffers; stacking them at the end would hold them twice. Then they are
    summed over the experts' replicas."""
    buffer: list[Tensor] = []
    parts = Unstack.apply(weights, group, buffer)
    for index, part in enumerate(parts):
        if part.requires_grad:
            part.register_hook(partial(_move, buffer, weights, index))
    return tuple(parts)


def _move(buffer: list[Tensor], like: Tensor, index: int, gradient: Tensor) -> Tensor:
    if not buffer:
        buffer.append(torch.empty_like(like))
    return buffer[0][index].copy_(gradient)


def reported(loss: Tensor) -> Tensor:
    """Rounded to three places: the last digit of a single float32 is right only by luck, and so would be its noise
    floor."""
    return loss.detach().round(decimals=3)
