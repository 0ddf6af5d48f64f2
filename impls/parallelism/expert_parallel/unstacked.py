"""The experts' weights as engines want them: one tensor each, whose gradients are parts of one buffer."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from impls.parallelism.expert_parallel.exchange import Group, add_up


class Unstack(Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, group: Group, buffer: list[Tensor]) -> tuple[Tensor, ...]:
        ctx.group, ctx.buffer = group, buffer
        return tuple(weights.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        whole = ctx.buffer.pop()
        for part, gradient in zip(whole, gradients, strict=True):
            if gradient.data_ptr() != part.data_ptr():  # of an expert that no token has reached
                part.copy_(gradient)
        return add_up(whole, ctx.group), None, None


def unstacked(weights: Tensor, group: Group) -> tuple[Tensor, ...]:
    """[e, …] → e tensors. Each gradient is moved into its place as soon as there is one, as engines do with their
    gradient buffers: stacked at the end, they would be held twice. Then they are summed over the experts' replicas."""
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
