"""Our own fast kernels, in Triton: one launch for all groups, whose sizes only the device knows.

The launch has enough programs for any sizes: a group's last tile may be cut off, so there are at most ⌈M/bm⌉ + G tiles
of rows. A program finds its group by walking over the sizes. Rows and columns beyond the end repeat others, so that
only the sum needs a mask; their results are not stored.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from triton import knobs

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.grouped_gemm.problem import E4M3
from impls.acceleration.grouped_gemm.sizes import BLOCK

# Tiles by the type of the operands: rows, columns and elements of the sum; then warps and stages of the pipeline.
TILES = {
    torch.float32: (64, 64, 32, 4, 3),
    torch.bfloat16: (128, 256, 64, 8, 4),
    E4M3: (128, BLOCK, BLOCK, 8, 4),
}
BAND = 8  # tiles of rows that are worked through together, for the cache


@triton.jit
def _inside(columns, end, width: tl.constexpr):
    """Columns beyond the end read the first one, so that loads of neighbours stay whole."""
    return tl.max_contiguous(tl.multiple_of(tl.where(columns < end, columns, 0), width), width)


@triton.jit
def _rows_kernel(
    a, s, b, t, out, sizes, groups, room, columns, length, blocks, b_group, b_column, b_sum,
    scaled: tl.constexpr, widen: tl.constexpr, even: tl.constexpr, band: tl.constexpr,
    bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr,
):  # fmt: skip
    """out[i, j] = Σ a[i, l] b[g, j, l] for the rows i of each group g; blocks: of 128, along the sum."""
    wide = tl.cdiv(columns, bn)
    first, within = tl.program_id(0) // (band * wide), tl.program_id(0) % (band * wide)
    tile, column = first * band + within % band, within // band

    group, row, stop, begin, before = -1, 0, 0, 0, 0
    for g in range(groups):
        size = tl.load(sizes + g)
        count = tl.cdiv(size, bm)
        here = (tile >= before) & (tile < before + count)
        group = tl.where(here, g, group)
        row = tl.where(here, begin + (tile - before) * bm, row)
        stop = tl.where(here, begin + size, stop)
        before += count
        begin += tl.where(room > 0, room, size)
    if group < 0:
        return

    i, j, k = row + tl.arange(0, bm), column * bn + tl.arange(0, bn), tl.arange(0, bk)
    i_in, j_in = tl.minimum(i, stop - 1).to(tl.int64), _inside(j, columns, bn)
    a_at = a + i_in[:, None] * length + k[None, :]
    b_at = b + group.to(tl.int64) * b_group + j_in[None, :] * b_column + k[:, None] * b_sum
    if scaled:  # bn and bk are 128: a step has one scale of b
        s_at, t_at = s + i_in * blocks, t + (group * wide + column) * blocks
    total = tl.zeros((bm, bn), tl.float32)
    for step in range(tl.cdiv(length, bk)):
        if even:
            left, right = tl.load(a_at), tl.load(b_at)
        else:
            rest = k < length - step * bk
            left, right = tl.load(a_at, rest[None, :], 0.0), tl.load(b_at, rest[:, None], 0.0)
        if widen:
            left, right = left.to(tl.float32), right.to(tl.float32)
        if scaled:
            scale = tl.load(s_at + step).to(tl.float32) * tl.load(t_at + step).to(tl.float32)
            total += tl.dot(left, right) * scale[:, None]
        else:
            total = tl.dot(left, right, total, input_precision="ieee")
        a_at += bk
        b_at += bk * b_sum
    inside = (i < stop)[:, None] & (j < columns)[None, :]
    tl.store(out + i_in[:, None] * columns + j[None, :], total.to(out.dtype.element_ty), inside)


@triton.jit
def _weights_kernel(
    a, b, out, sizes, room, n, k, widen: tl.constexpr, bm: tl.constexpr, bn: tl.constexpr, bk: tl.constexpr
):
    """out[g, i, j] = Σ a[l, i] b[l, j] over the rows l of group g; 0 if it has none."""
    group, down, right = tl.program_id(2), tl.program_id(1), tl.program_id(0)
    size, begin = tl.load(sizes + group), group * room
    if room == 0:
        for g in range(group):
            begin += tl.load(sizes + g)
    i, j, l = down * bm + tl.arange(0, bm), right * bn + tl.arange(0, bn), tl.arange(0, bk)  # noqa: E741
    i_in, j_in = _inside(i, n, bm), _inside(j, k, bn)
    row = (begin + l).to(tl.int64)
    a_at, b_at = a + row[None, :] * n + i_in[:, None], b + row[:, None] * k + j_in[None, :]
    total = tl.zeros((bm, bn), tl.float32)
    for step in range(tl.cdiv(size, bk)):
        rest = l < size - step * bk
        above, below = tl.load(a_at, rest[None, :], 0.0), tl.load(b_at, rest[:, None], 0.0)
        if widen:
            above, below = above.to(tl.float32), below.to(tl.float32)
        total = tl.dot(above, below, total, input_precision="ieee")
        a_at += bk * n
        b_at += bk * k
    at = out + group.to(tl.int64) * n * k + i[:, None] * k + j[None, :]
    tl.store(at, total.to(out.dtype.element_ty), (i < n)[:, None] & (j < k)[None, :])


def _rows(a: Tensor, b: Tensor, sizes: Tensor, room: int, s: Tensor | None = None, t: Tensor | None = None) -> Tensor:
    """a [M, l], b [G, c, l] with any strides → [M, c]; with scales s [M, ⌈l/128⌉] and t [G, ⌈c/128⌉, ⌈l/128⌉]."""
    (held, length), (groups, columns, _) = a.shape, b.shape
    make = a.new_zeros if room else a.new_empty  # rows beyond a group's size are 0
    out = make(held, columns, dtype=a.dtype if s is None else s.dtype)
    bm, bn, bk, warps, stages = TILES[a.dtype]
    tiles = groups * triton.cdiv(room, bm) if room else triton.cdiv(held, bm) + groups
    _rows_kernel[(triton.cdiv(tiles, BAND) * BAND * triton.cdiv(columns, bn),)](
        a, s, b, t, out, sizes, groups, room, columns, length, triton.cdiv(length, BLOCK), *b.stride(),
        scaled=s is not None, even=length % bk == 0, band=BAND, **_tile(bm, bn, bk, warps, stages),
    )  # fmt: skip
    return out


def _tile(bm: int, bn: int, bk: int, warps: int, stages: int) -> dict[str, Any]:
    """Triton's interpreter multiplies bfloat16 as if it were an integer, so there the operands are widened."""
    found = {"bm": bm, "bn": bn, "bk": bk, "widen": knobs.runtime.interpret}
    return found if knobs.runtime.interpret else {**found, "num_warps": warps, "num_stages": stages}


class GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor, sizes: Tensor, room: int) -> Tensor:
        ctx.save_for_backward(x, w, sizes)
        ctx.room = room
        return _rows(x, w, sizes, room)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, w, sizes = ctx.saved_tensors
        dy, dw, (groups, n, k) = dy.contiguous(), torch.empty_like(w), w.shape
        bm, bn, bk, warps, stages = TILES[x.dtype]
        _weights_kernel[(triton.cdiv(k, bn), triton.cdiv(n, bm), groups)](
            dy, x, dw, sizes, ctx.room, n, k, **_tile(bm, bn, bk, warps, stages)
        )
        return _rows(dy, w.mT, sizes, ctx.room), dw, None, None


def build(workload: Workload, topology: Topology, layout: str, scaled: bool) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("the Triton kernels sum in float32")

    def product(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w, sizes = inputs["x"], inputs["w"], inputs["sizes"]
        flat, room = x.flatten(0, -2), 0 if layout == "contiguous" else x.shape[1]
        if scaled:
            s, t = inputs["x_scale"].flatten(0, -2), inputs["w_scale"]
            y = _rows(flat.view(E4M3), w.view(E4M3), sizes, room, s, t)
        else:
            y = GroupedProduct.apply(flat, w, sizes, room)
        return {"y": y.view(*x.shape[:-1], w.shape[1])}

    return product
