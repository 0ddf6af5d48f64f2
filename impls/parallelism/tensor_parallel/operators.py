"""The conjugate operators of tensor parallelism (Shoeybi et al. 2019, §3, figure 3).

                forward        backward
    copy     f  x              Σ over ranks       before a column-parallel product
    reduce   g  Σ over ranks   dy                 after a row-parallel product
    scatter     own part       parts joined       before a row-parallel product whose input is whole
    gather      parts joined   own part           after a column-parallel product whose output is needed whole

As linear maps, f and g are each other's transpose, and so are scatter and gather.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

Group = dist.ProcessGroup


def _same(x: Tensor, group: Group) -> Tensor:
    return x


def _sum(x: Tensor, group: Group) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


def _part(x: Tensor, group: Group) -> Tensor:
    return x.chunk(group.size(), -1)[group.rank()].contiguous()


def _joined(x: Tensor, group: Group) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, -1)


class Conjugate(Function):
    """``forth`` forward and ``back`` backward: two linear maps, each the transpose of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, forth: Callable, back: Callable) -> Tensor:
        ctx.group, ctx.back = group, back
        return forth(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradient, ctx.group), None, None, None


def _along(x: Tensor, group: Group, forth: Callable, back: Callable) -> Tensor:
    return Conjugate.apply(x, group, forth, back) if group.size() > 1 else x


def copy(x: Tensor, group: Group) -> Tensor:
    """f: before a column-parallel product."""
    return _along(x, group, _same, _sum)


def reduce(x: Tensor, group: Group) -> Tensor:
    """g: after a row-parallel product."""
    return _along(x, group, _sum, _same)


def scatter(x: Tensor, group: Group) -> Tensor:
    """[…, n] → […, n/t]: before a row-parallel product whose input is whole."""
    return _along(x, group, _part, _joined)


def gather(x: Tensor, group: Group) -> Tensor:
    """[…, n/t] → […, n]: after a column-parallel product whose output is needed whole."""
    return _along(x, group, _joined, _part)


def input_gradient(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Σ dYⱼ Wⱼ, [n, h]: the gradient of X from several products Yⱼ = X Wⱼᵀ."""
    dx = rows[0] @ weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        dx.addmm_(row, weight)
    return dx


class ColumnParallel(Function):
    """f and the following products in one operator: dX is summed while the gradients of the weights are computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.save_for_backward(x, *weights)
        return tuple(F.linear(x, weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows = [gradient.flatten(0, -2) for gradient in gradients]
        dx = input_gradient(rows, weights)
        work = dist.all_reduce(dx, group=ctx.group, async_op=True)
        dws = [row.t() @ x.flatten(0, -2) for row in rows]
        work.wait()
        return dx.view_as(x), None, *dws


def column_parallel(x: Tensor, group: Group, *weights: Tensor) -> tuple[Tensor, ...]:
    """x Wᵀ, [b, s, n/t], for each of this rank's [n/t, h] weights: ``copy``, then ``linear``, with an overlapped
    sum."""
    if group.size() == 1:
        return tuple(F.linear(x, weight) for weight in weights)
    return ColumnParallel.apply(x, group, *weights)


def biased(y: Tensor, part: nn.Linear) -> Tensor:
    """[…, n] with the bias of the product that gave it, if the model has one: this rank's part of a column-parallel
    product's; a row-parallel product's, whole on every rank, after the sum."""
    return y if part.bias is None else y + part.bias
