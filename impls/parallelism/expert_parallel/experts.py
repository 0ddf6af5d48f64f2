"""The experts of a rank, each on its own run of rows: E_i(x) = W_down (p ∘ silu(W_gate x) ∘ W_up x).

A row's gate p multiplies before W_down, which is the same as after it: then no row of the output has to be kept for
the gradient of p. Kept are x, p and W_gate_up x; what follows is computed anew.

    m rows   e experts of this rank   h hidden_size   f intermediate_size
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from impls.parallelism.expert_parallel.exchange import Group


def naive(x: Tensor, p: Tensor, gate_up: Tensor, down: Tensor, counts: list[int]) -> Tensor:
    """The same, by PyTorch's own backward pass; gradients of the weights are this rank's alone."""
    out = []
    for rows, gates, w_gate_up, w_down in zip(x.split(counts), p.split(counts), gate_up, down, strict=True):
        gate, up = (rows @ w_gate_up.mT).chunk(2, -1)
        out.append((gates[:, None] * F.silu(gate) * up).to(x.dtype) @ w_down.mT)
    return torch.cat(out)


class Experts(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, p: Tensor, gate_up: Tensor, down: Tensor, counts: list[int], replicas: Group
    ) -> Tensor:
        """x [m, h], p [m], gate_up [e, 2f, h], down [e, h, f], rows of each expert → [m, h]."""
        hidden, out = x.new_empty(len(x), gate_up.shape[1]), torch.empty_like(x)
        runs = zip(*(each.split(counts) for each in (x, p, hidden, out)), gate_up, down, strict=True)
        for rows, gates, into, result, w_gate_up, w_down in runs:
            torch.mm(rows, w_gate_up.mT, out=into)
            gate, up = into.chunk(2, -1)
            torch.mm(F.silu(gate).mul_(up).mul_(gates[:, None]), w_down.mT, out=result)
        ctx.save_for_backward(x, p, gate_up, down, hidden)
        ctx.counts, ctx.replicas = counts, replicas
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the weights are summed over the experts' replicas while those of the rows are computed."""
        x, p, gate_up, down, hidden = ctx.saved_tensors
        d_x, d_p, d_gate_up, d_down = (torch.empty_like(each) for each in (x, p, gate_up, down))
        d_hidden = torch.empty_like(hidden)
        parts = (each.split(ctx.counts) for each in (x, p, hidden, d_out, d_p, d_hidden))
        for rows, gates, each, d_rows, d_gates, d_each, w_down, into_gate_up, into_down in zip(
            *parts, down, d_gate_up, d_down, strict=True
        ):
            gate, up = each.chunk(2, -1)
            d_gate, d_up = d_each.chunk(2, -1)
            silu = F.silu(gate)
            product = silu * up
            d_product = d_rows @ w_down
            d_gates.copy_((d_product * product).sum(-1, dtype=p.dtype))
            torch.mm(d_rows.mT, product.mul_(gates[:, None]), out=into_down)
            d_product.mul_(gates[:, None])
            torch.mul(d_product, silu, out=d_up)
            d_gate.copy_(torch.ops.aten.silu_backward(d_product.mul_(up), gate))
            torch.mm(d_each.mT, rows, out=into_gate_up)
        works = [dist.all_reduce(d, group=ctx.replicas, async_op=True) for d in (d_down, d_gate_up)]
        for d_each, into, w_gate_up in zip(d_hidden.split(ctx.counts), d_x.split(ctx.counts), gate_up, strict=True):
            torch.mm(d_each, w_gate_up, out=into)
        for work in works:
            work.wait()
        return d_x, d_p, d_gate_up, d_down, None, None
