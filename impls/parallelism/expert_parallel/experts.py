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
from torch.autograd.function import once_differentiable

from impls.parallelism.expert_parallel.exchange import Group, add_up


def naive(x: Tensor, p: Tensor, gate_up: Tensor, down: Tensor, counts: list[int]) -> Tensor:
    """The same, by PyTorch's own backward pass; gradients of the weights are this rank's alone."""
    out = []
    for rows, gates, w_gate_up, w_down in zip(x.split(counts), p.split(counts), gate_up, down, strict=True):
        gate, up = (rows @ w_gate_up.mT).chunk(2, -1)
        out.append((gates[:, None] * F.silu(gate) * up).to(x.dtype) @ w_down.mT)
    return torch.cat(out)


class Up(Function):
    """x [m, h], gate_up [e, 2f, h], rows of each expert → [m, 2f]. Weights' gradients are summed over ``replicas``, or
    left to whoever asks later (None)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_up: Tensor, counts: list[int], replicas: Group | None) -> Tensor:
        ctx.save_for_backward(x, gate_up)
        ctx.counts, ctx.replicas = counts, replicas
        hidden = x.new_empty(len(x), gate_up.shape[1])
        for rows, weight, into in zip(x.split(counts), gate_up, hidden.split(counts), strict=True):
            torch.mm(rows, weight.mT, out=into)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, gate_up = ctx.saved_tensors
        d_x, d_gate_up = torch.empty_like(x), torch.empty_like(gate_up)
        parts = d_hidden.split(ctx.counts)
        for d_rows, rows, into in zip(parts, x.split(ctx.counts), d_gate_up, strict=True):
            torch.mm(d_rows.mT, rows, out=into)
        alone = ctx.replicas is None or ctx.replicas.size() == 1
        work = None if alone else dist.all_reduce(d_gate_up, group=ctx.replicas, async_op=True)
        for d_rows, weight, into in zip(parts, gate_up, d_x.split(ctx.counts), strict=True):
            torch.mm(d_rows, weight, out=into)
        if work:
            work.wait()
        return d_x, d_gate_up, None, None


class Down(Function):
    """hidden [m, 2f], p [m], down [e, h, f], rows of each expert → [m, h]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, p: Tensor, down: Tensor, counts: list[int], replicas: Group | None) -> Tensor:
        ctx.save_for_backward(hidden, p, down)
        ctx.counts, ctx.replicas = counts, replicas
        out = hidden.new_empty(len(hidden), down.shape[1])
        for rows, gates, weight, into in zip(
            *(x.split(counts) for x in (hidden, p)), down, out.split(counts), strict=True
        ):
            gate, up = rows.chunk(2, -1)
            torch.mm(F.silu(gate).mul_(up).mul_(gates[:, None]), weight.mT, out=into)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        """``hidden`` turns into its own gradient, expert by expert: a second backward pass is refused."""
        hidden, p, down = ctx.saved_tensors
        d_p, d_down = torch.empty_like(p), torch.empty_like(down)
        parts = (x.split(ctx.counts) for x in (hidden, p, d_out, d_p))
        for rows, gates, d_rows, d_gates, weight, into in zip(*parts, down, d_down, strict=True):
            gate, up = rows.chunk(2, -1)
            silu = F.silu(gate)
            product = silu * up
            d_product = d_rows @ weight
            torch.sum(d_product * product, -1, dtype=p.dtype, out=d_gates)
            torch.mm(d_rows.mT, product.mul_(gates[:, None]), out=into)
            d_product.mul_(gates[:, None])
            torch.ops.aten.silu_backward.grad_input(torch.mul(d_product, up, out=product), gate, grad_input=gate)
            torch.mul(d_product, silu, out=up)
        return hidden, d_p, d_down if ctx.replicas is None else add_up(d_down, ctx.replicas), None, None


def experts(x: Tensor, p: Tensor, gate_up: Tensor, down: Tensor, counts: list[int], replicas: Group | None) -> Tensor:
    """x [m, h], p [m], gate_up [e, 2f, h], down [e, h, f], rows of each expert → [m, h]."""
    return Down.apply(Up.apply(x, gate_up, counts, replicas), p, down, counts, replicas)
