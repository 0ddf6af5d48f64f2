"""The conjugate operators of sequence parallelism (Korthikanti et al. 2022, §4.2.2, figure 5).

                  forward                    backward
    gather    g   parts joined               Σ over ranks, own part     before a column-parallel product
    scatter   ḡ   Σ over ranks, own part     parts joined               after a row-parallel product

An all-reduce is a reduce-scatter and an all-gather: g and ḡ send as much as f and g of tensor parallelism.

The sequence comes first, as in the paper, [s, b, h], so that a part is one piece of memory. Every rank holds ⌈s/t⌉
positions; positions beyond s on the last ranks are zeros, which norms and sums preserve, and are removed before any
product.

    s sequence   b batch   h hidden_size   n rows of a weight, over all ranks   t ranks
"""

from functools import partial
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from impls.parallelism.tensor_parallel.operators import Conjugate, Group, input_gradient


def positions(s: int, t: int) -> int:
    """⌈s/t⌉, the positions that a rank holds."""
    return -(-s // t)


def start_join(x: Tensor, group: Group) -> tuple[Tensor, dist.Work]:
    """[⌈s/t⌉, b, h] → [t·⌈s/t⌉, b, h], ready once the work is done."""
    whole = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=True)


def start_sum(x: Tensor, group: Group) -> tuple[Tensor, dist.Work]:
    """[s, b, h] → this rank's [⌈s/t⌉, b, h] of the sum over ranks, ready once the work is done."""
    part = x.new_empty(positions(x.shape[0], group.size()), *x.shape[1:])
    excess = group.size() * part.shape[0] - x.shape[0]
    x = F.pad(x, (0, 0, 0, 0, 0, excess)) if excess else x.contiguous()
    return part, dist.reduce_scatter_tensor(part, x, group=group, async_op=True)


def _joined(x: Tensor, group: Group, s: int) -> Tensor:
    whole, work = start_join(x, group)
    work.wait()
    return whole[:s]


def _summed(x: Tensor, group: Group) -> Tensor:
    part, work = start_sum(x, group)
    work.wait()
    return part


def gather(x: Tensor, group: Group, s: int) -> Tensor:
    """g: [⌈s/t⌉, b, h] → [s, b, h]."""
    return Conjugate.apply(x, group, partial(_joined, s=s), _summed)


def scatter(x: Tensor, group: Group) -> Tensor:
    """ḡ: [s, b, h] → [⌈s/t⌉, b, h]."""
    return Conjugate.apply(x, group, _summed, partial(_joined, s=x.shape[0]))


def naive_columns(x: Tensor, group: Group, s: int, *weights: Tensor) -> tuple[Tensor, ...]:
    """x Wᵀ, [s, b, n/t], for each of this rank's [n/t, h] weights: g, then products that save the gathered input."""
    whole = gather(x, group, s)
    return tuple(F.linear(whole, weight) for weight in weights)


class Columns(Function):
    """g and the following products in one operator, which saves this rank's part. The backward pass gathers the part
    again (§4.2.2) while it computes the input's gradient, and sums that gradient while it computes the weights'
    gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, s: int, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.s = group, s
        ctx.save_for_backward(x, *weights)
        whole = _joined(x, group, s)
        return tuple(F.linear(whole, weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        whole, joining = start_join(x, ctx.group)
        rows = [gradient.flatten(0, -2) for gradient in gradients]
        dx = input_gradient(rows, weights).view(ctx.s, *x.shape[1:])
        joining.wait()
        part, summing = start_sum(dx, ctx.group)
        whole = whole[: ctx.s].flatten(0, -2)
        dws = [row.t() @ whole for row in rows]
        summing.wait()
        return part, None, None, *dws


def columns(x: Tensor, group: Group, s: int, *weights: Tensor) -> tuple[Tensor, ...]:
    """:func:`naive_columns` with one more all-gather for t times less memory."""
    return Columns.apply(x, group, s, *weights)
