"""Grouped matrix products (Gale et al. 2022, "MegaBlocks", §3; DeepSeek-AI 2024, "DeepSeek-V3", §3.3): an expert g has
a weight W_g and m_g of the rows of X,

    Y_g = X_g W_gᵀ        dX_g = dY_g W_g        dW_g = dY_gᵀ X_g

The naive form launches one product a group. The grouped form is a single launch that works through the tiles of all
groups, so that small groups do not leave a device idle:

    rows of Y     group 0   ■ ■      tile (g, i, j): rows i of group g, columns j. A group's last tile of rows is
                            ■ ■      cut off (▪); a group without rows has none.
                            ▪ ▪
                  group 2   ■ ■

For dW the groups lie along the dimension that is summed over: each tile of W_g sums over the rows of g, and if g has
none it is 0.

Scaled (§3.3.2, figure 7): X is E4M3 with a scale s for each 1×128 elements of a row, W with a scale t for each 128×128.
The tensor cores multiply 128 elements of k at a time, with about 14 bits of accumulation. Each of these partial sums is
promoted: multiplied by its two scales, and added in float32.

    Y_ij = Σ_b s_ib t_jb Σ_{k in block b} X_ik W_jk

The layouts differ only in the rows of a group. Dense: all groups have equally many. Contiguous: X [M, k], groups one
after another. Masked: X [G, C, k], of whose C rows a group uses the first m_g; the rest is not read.

    G groups   M rows of all   m_g rows of a group   n columns of Y   k columns of X   B 128, the side of a tile
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.spec import Function, Topology, Workload
from impls.acceleration.grouped_gemm.problem import E4M3, groups
from impls.acceleration.grouped_gemm.sizes import BLOCK as B


def naive(x: Tensor, w: Tensor, rows: list[slice]) -> Tensor:
    """One launch a group, in the inputs' dtype: x [M, k], w [G, n, k] → [M, n]."""
    y = x.new_zeros(len(x), w.shape[1])  # [M, n]
    for g, mine in enumerate(rows):
        y[mine] = x[mine] @ w[g].mT
    return y


def blocks(start: int, stop: int) -> Iterator[slice]:
    """B positions at a time; the last block may be shorter."""
    return (slice(i, min(i + B, stop)) for i in range(start, stop, B))


def tiles(rows: list[slice], columns: int) -> Iterator[tuple[int, slice, slice]]:
    """Group, rows and columns of each tile, in the order of the launch."""
    for g, mine in enumerate(rows):
        for i in blocks(mine.start, mine.stop):
            for j in blocks(0, columns):
                yield g, i, j


class GroupedProduct(torch.autograd.Function):
    """Tiles are summed at least in float32, as tensor cores do, and rounded once."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, w: Tensor, rows: list[slice]) -> Tensor:
        """x [M, k], w [G, n, k] → y [M, n]."""
        ctx.save_for_backward(x, w)
        ctx.rows, wide = rows, torch.promote_types(x.dtype, torch.float32)
        y = x.new_zeros(len(x), w.shape[1])  # [M, n]
        for g, i, j in tiles(rows, w.shape[1]):
            y[i, j] = sum(x[i, k].to(wide) @ w[g, j, k].to(wide).mT for k in blocks(0, w.shape[2]))  # [B, B]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        """dy [M, n] → dx [M, k], dw [G, n, k]."""
        x, w = ctx.saved_tensors
        wide, (_, n, k) = torch.promote_types(x.dtype, torch.float32), w.shape
        dx = torch.zeros_like(x)  # [M, k]; rows that no group uses have no gradient
        for g, i, j in tiles(ctx.rows, k):  # the same launch with W in place of Wᵀ: the sum runs over n
            dx[i, j] = sum(dy[i, c].to(wide) @ w[g, c, j].to(wide) for c in blocks(0, n))  # [B, B]
        dw = torch.zeros_like(w)  # [G, n, k]; 0 where a group has no row
        for g, mine in enumerate(ctx.rows):  # groups lie along the sum: every group has the same tiles
            for j in blocks(0, n):
                for c in blocks(0, k):
                    over = blocks(mine.start, mine.stop)
                    dw[g, j, c] = sum(dy[i, j].to(wide).mT @ x[i, c].to(wide) for i in over)  # [B, B]
        return dx, dw, None


def scaled_product(x: Tensor, s: Tensor, w: Tensor, t: Tensor, rows: list[slice]) -> Tensor:
    """x [M, k] and w [G, n, k] in E4M3, s [M, ⌈k/B⌉], t [G, ⌈n/B⌉, ⌈k/B⌉] → [M, n] in the dtype of s."""
    wide = torch.promote_types(s.dtype, torch.float32)
    y = s.new_zeros(len(x), w.shape[1])  # [M, n]
    for g, i, j in tiles(rows, w.shape[1]):
        y_ij = torch.zeros(i.stop - i.start, j.stop - j.start, dtype=wide, device=x.device)  # [B, B]
        for b, k in enumerate(blocks(0, x.shape[1])):
            partial = x[i, k].to(wide) @ w[g, j, k].to(wide).mT  # [B, B], on tensor cores
            y_ij += s[i, b, None].to(wide) * t[g, j.start // B, b].to(wide) * partial  # promoted
        y[i, j] = y_ij
    return y


def build(workload: Workload, topology: Topology, layout: str, scaled: bool) -> Function:
    """{"x", "w", "sizes"}, if scaled with {"x_scale", "w_scale"}, as problem.py draws them → {"y": [..., n]}."""

    def product(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w, rows = inputs["x"], inputs["w"], groups(inputs, layout)
        flat = x.flatten(0, -2)  # [M, k]
        if scaled:
            s = inputs["x_scale"].flatten(0, -2)  # [M, ⌈k/B⌉]
            y = scaled_product(flat.view(E4M3), s, w.view(E4M3), inputs["w_scale"], rows)
        else:
            y = GroupedProduct.apply(flat, w, rows)
        return {"y": y.view(*x.shape[:-1], w.shape[1])}

    return product
