"""Products whose communication passes round a ring, one tile per rank, each tile during the product of another one
(Wang et al. 2023, "Overlap Communication with Dependent Computation via Decomposition"; Chang et al. 2024, "FLUX").

    gather, then product              product, then sum and scatter        rank 0 of 4; X_c tile c, Y_c its product
    compute   X₀W  X₃W  X₂W  X₁W      compute   Y₃  Y₂  Y₁  Y₀
    wire      X₀→  X₃→  X₂→           wire          Y₃→  ΣY₂→  ΣY₁→        → to rank 1

A tile is the part of the sequence that a rank holds, [⌈s/t⌉, b, h]; part of the last tiles may lie beyond s: zeros,
which are sent but not multiplied.

    s sequence   b batch   h hidden_size   n rows of a weight, over all ranks   t ranks   r this rank   c a tile's owner
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from impls.parallelism.overlap.wire import Wire
from impls.parallelism.sequence_parallel.operators import positions
from impls.parallelism.tensor_parallel.operators import input_gradient


def travel(wire: Wire, part: Tensor, kind: str, stage: int) -> Iterator[tuple[int, Tensor]]:
    """Every rank's tile and its owner, this rank's first. While the caller works on one, the next one is in transit."""
    r, t = wire.group.rank(), wire.group.size()
    for step in range(t):
        flight = wire.hand_on(part) if step < t - 1 else None
        wire.compute(kind, stage, step)
        yield (r - step) % t, part
        if flight:
            part = flight.wait()


def summed(wire: Wire, produce: Callable[[int], Tensor], kind: str, stage: int) -> Tensor:
    """Σ over ranks of ``produce(r)``, this rank's tile. While a tile is produced, the partial sum of the same tile over
    the previous ranks is in transit."""
    r, t = wire.group.rank(), wire.group.size()
    flight, total = None, None
    for step in range(t):
        wire.compute(kind, stage, step)
        total = produce((r - 1 - step) % t)
        if flight:
            arrived = flight.wait()
            wire.compute(kind, stage, step)
            total += arrived
        flight = wire.hand_on(total) if step < t - 1 else None
    return total


def tile(c: int, s: int, t: int) -> slice:
    """The existing positions of tile c."""
    p = positions(s, t)
    return slice(min(c * p, s), min((c + 1) * p, s))


class Columns(Function):
    """g and the following products: [⌈s/t⌉, b, h] → [s, b, n/t] for each [n/t, h] weight. In the backward pass the
    tiles travel again, for the weights' gradients, together with the input's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, stage: int, s: int, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.wire, ctx.stage, ctx.s = wire, stage, s
        ctx.save_for_backward(x, *weights)
        outs = [x.new_empty(s, x.shape[1], len(weight)) for weight in weights]
        for c, part in travel(wire, x.contiguous(), "F", stage):
            own = tile(c, s, wire.group.size())
            for out, weight in zip(outs, weights, strict=True):
                torch.mm(part[: own.stop - own.start].flatten(0, 1), weight.t(), out=out[own].flatten(0, 1))
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        dws = [torch.zeros_like(weight) for weight in weights]
        parts = travel(ctx.wire, x.contiguous(), "B", ctx.stage)

        def produce(c: int) -> Tensor:
            owner, part = next(parts)
            own = tile(owner, ctx.s, ctx.wire.group.size())
            for dw, gradient in zip(dws, gradients, strict=True):
                dw.addmm_(gradient[own].flatten(0, 1).t(), part[: own.stop - own.start].flatten(0, 1))
            rows = [gradient[tile(c, ctx.s, ctx.wire.group.size())].flatten(0, 1) for gradient in gradients]
            return _padded(input_gradient(rows, weights), x)

        dx = summed(ctx.wire, produce, "B", ctx.stage)
        return dx, None, None, None, *dws


class Rows(Function):
    """A product and the following ḡ: [s, b, n/t] and [h, n/t] → [⌈s/t⌉, b, h]. In the backward pass the output's
    gradient travels."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, wire: Wire, stage: int, weight: Tensor) -> Tensor:
        ctx.wire, ctx.stage = wire, stage
        ctx.save_for_backward(z, weight)
        s, t = len(z), wire.group.size()
        like = z.new_empty(positions(s, t), z.shape[1], len(weight))

        def produce(c: int) -> Tensor:
            return _padded(z[tile(c, s, t)].flatten(0, 1) @ weight.t(), like)

        return summed(wire, produce, "F", stage)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        dz, dw = z.new_empty(z.shape), torch.zeros_like(weight)  # contiguous, unlike z
        for c, part in travel(ctx.wire, gradient.contiguous(), "B", ctx.stage):
            own = tile(c, len(z), ctx.wire.group.size())
            rows = part[: own.stop - own.start].flatten(0, 1)
            torch.mm(rows, weight, out=dz[own].flatten(0, 1))
            dw.addmm_(rows.t(), z[own].flatten(0, 1))
        return dz, None, None, dw


def _padded(rows: Tensor, like: Tensor) -> Tensor:
    """[positions · b, h] → the shape of ``like``, with zeros beyond."""
    if rows.numel() == like.numel():
        return rows.view_as(like)
    whole = rows.new_zeros(like.shape)
    whole.flatten(0, 1)[: len(rows)] = rows
    return whole
