# ruff: noqa: N803 - constants of Triton's compiler are in capitals, as in its own kernels
"""The layer on Plumbline's own Triton kernels: a cast with scales, from the formats' bits, and a product of scaled
tiles. On a CPU they run in Triton's interpreter, where TRITON_INTERPRET=1 is set before triton is imported.

The cast works on float32's bits. A normal result keeps the topmost mantissa bits after half a step, less a bit if the
last one that stays is even (round to nearest even), is added; the exponent's bias is then replaced. A subnormal result
is the sum with a number so large that its last place is the format's smallest step: adding rounds."""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.spec import Function, Topology, Workload
from impls.acceleration.fp8.problem import DTYPES, SEEN, activation
from impls.acceleration.fp8.recipes import RECIPES, Across, Recipe, Rule, Tile

E4M3 = torch.float8_e4m3fn
BITS = {torch.float8_e4m3fn: (3, 7, 448.0), torch.float8_e5m2: (2, 15, 57344.0)}  # mantissa, bias, maximum
ROWS, COLUMNS = 32, 128  # of a program of the cast, unless a tile is larger
BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 128  # of a program of the product; all its K columns share a tile
RULES = {Rule.EXACT: 0, Rule.DOWN: 1, Rule.MX: 2}


@triton.jit
def encoded(v, MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr):
    """float32 → bits, saturated; NaN → 0x7F."""
    size = tl.minimum(tl.abs(v), MAX)
    bits = size.to(tl.int32, bitcast=True)
    shift: tl.constexpr = 23 - MANTISSA
    even = (bits >> shift) & 1
    normal = ((bits + ((1 << (shift - 1)) - 1) + even) >> shift) - ((127 - BIAS) << MANTISSA)
    anchor: tl.constexpr = (127 + 24 - BIAS - MANTISSA) << 23  # bits of 2^(23 + 1 − bias − mantissa)
    large = tl.full(size.shape, anchor, tl.int32).to(tl.float32, bitcast=True)
    subnormal = (size + large).to(tl.int32, bitcast=True) - anchor
    code = tl.where(bits < ((128 - BIAS) << 23), subnormal, normal)
    sign = (v.to(tl.int32, bitcast=True) >> 24) & 0x80
    return (tl.where(v != v, 0x7F, code) | sign).to(tl.uint8)


@triton.jit
def scale_of(amax, RULE: tl.constexpr, MAX: tl.constexpr, TOP: tl.constexpr):
    """s of recipes.py; 1 for a tile of zeros. TOP: the exponent of MAX."""
    exact = tl.div_rn(tl.full(amax.shape, MAX, tl.float32), tl.where(amax > 0, amax, 1.0))
    if RULE == 1:
        exact = (exact.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    if RULE == 2:
        exact = ((TOP + 254 - (amax.to(tl.int32, bitcast=True) >> 23)) << 23).to(tl.float32, bitcast=True)
    return tl.where(amax > 0, exact, 1.0)


@triton.jit
def cast_kernel(
    x, amaxes, codes, scales, m, k, stride_m, stride_k, across,
    R: tl.constexpr, C: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr, RULE: tl.constexpr,
    MANTISSA: tl.constexpr, BIAS: tl.constexpr, MAX: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """R rows and C columns. OWN: scales come from these elements, one for each row or, in BLOCK, one for all; otherwise
    from ``amaxes``, one for each of the m rows. ``across``: scales beside one another."""
    row, column = tl.program_id(0), tl.program_id(1)
    rows = row * R + tl.arange(0, R)[:, None]
    i, j = rows, column * C + tl.arange(0, C)[None, :]
    inside = (i < m) & (j < k)
    v = tl.load(x + i * stride_m + j * stride_k, mask=inside, other=0.0).to(tl.float32)
    amax = tl.max(tl.abs(v), axis=1, keep_dims=True) if OWN else tl.load(amaxes + i, mask=i < m, other=1.0)
    if BLOCK:
        amax = tl.broadcast_to(tl.max(amax, axis=0, keep_dims=True), (R, 1))
        rows = tl.where(i == row * R, row, m)  # the first row stores the scale of all
    s = scale_of(amax, RULE, MAX, TOP)
    tl.store(scales + rows * across + column * OWN, s, mask=(rows < m) & (OWN | (column == 0)))
    tl.store(codes + i * k + j, encoded(v * s, MANTISSA, BIAS, MAX), mask=inside)


def quantise(
    x: Tensor, dtype: torch.dtype, tile: Tile, rule: Rule, amax: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x [m, k], of any strides → codes [m, k] and scales, one for each tile. ``amax``: one for the whole matrix."""
    (m, k), (mantissa, bias, top) = x.shape, BITS[dtype]
    codes = torch.empty(m, k, dtype=torch.uint8, device=x.device)
    own, block = tile[1] != 0, tile[0] > 1
    r, c = tile[0] if block else ROWS, tile[1] or COLUMNS
    columns = triton.cdiv(k, c)
    scales = torch.empty(triton.cdiv(m, r) if block else m, columns if own else 1, device=x.device)
    amaxes = x  # not read
    if not own:
        amaxes = x.abs().amax(1) if tile[0] == 1 else (x.abs().max() if amax is None else amax).expand(m)
        amaxes = amaxes.float().contiguous()
    cast_kernel[triton.cdiv(m, r), columns](
        x, amaxes, codes, scales, m, k, *x.stride(), scales.shape[1],
        r, c, own, block, RULES[rule], mantissa, bias, top, 8 if mantissa == 3 else 15,
    )  # fmt: skip
    return codes.view(dtype), scales if own or tile[0] == 1 else scales[:1]


@triton.jit
def product_kernel(
    a, b, out, scale_a, scale_b, m, n, k, a_m, a_k, b_n, b_k, sa_m, sa_k, sb_n, sb_k,
    R_A: tl.constexpr, R_B: tl.constexpr, C: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out [m, n] = Σ over blocks of K columns of (a bᵀ) / (s_a s_b); the sum over blocks is in float32, as DeepSeek-V3
    promotes partial sums (§3.3.2). R_A, R_B: rows that share a scale; C: columns that do, a multiple of K."""
    i, j = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        columns = start + tl.arange(0, K)
        left = tl.load(
            a + i[:, None] * a_m + columns[None, :] * a_k, mask=(i < m)[:, None] & (columns < k)[None, :], other=0.0
        )
        right = tl.load(
            b + j[None, :] * b_n + columns[:, None] * b_k, mask=(j < n)[None, :] & (columns < k)[:, None], other=0.0
        )
        s_a = tl.load(scale_a + i // R_A * sa_m + start // C * sa_k, mask=i < m, other=1.0)
        s_b = tl.load(scale_b + j // R_B * sb_n + start // C * sb_k, mask=j < n, other=1.0)
        total += tl.dot(left, right, input_precision="ieee") / s_a[:, None] / s_b[None, :]
    tl.store(
        out + i[:, None] * n + j[None, :], total.to(out.dtype.element_ty), mask=(i < m)[:, None] & (j < n)[None, :]
    )


def product(
    a: tuple[Tensor, Tensor], tile_a: Tile, b: tuple[Tensor, Tensor], tile_b: Tile, dtype: torch.dtype
) -> Tensor:
    """â b̂ᵀ [m, n] of codes [m, k] and [n, k], of any strides, with their scales."""
    (m, k), n = a[0].shape, len(b[0])
    out = torch.empty(m, n, dtype=dtype, device=a[0].device)
    wide = tile_a[1] or k
    product_kernel[triton.cdiv(m, BLOCK_M), triton.cdiv(n, BLOCK_N)](
        a[0], b[0], out, a[1], b[1], m, n, k, *a[0].stride(), *b[0].stride(), *a[1].stride(), *b[1].stride(),
        tile_a[0] or m, tile_b[0] or n, wide, BLOCK_M, BLOCK_N, min(BLOCK_K, wide if tile_a[1] else BLOCK_K),
    )  # fmt: skip
    return out


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, recipe: Recipe, gradients: torch.dtype, *past: Tensor) -> Any:
        """x [T, h], w [n, h] and three histories [H] or none → y [T, n], codes and scales of x and W."""
        anew, tile, w_tile, rule = recipe.across is Across.ANEW, recipe.tile, recipe.weight_tile, recipe.rule
        amaxes = [history.max() for history in past] or [None] * 3
        x_q, w_q = quantise(x, E4M3, tile, rule, amaxes[0]), quantise(w, E4M3, w_tile, rule, amaxes[1])
        x_kept, w_kept = x_q, w_q
        if anew:
            x_kept, w_kept = quantise(x.mT, E4M3, tile, rule), quantise(w.mT, E4M3, w_tile, rule)
        ctx.save_for_backward(*x_kept, *w_kept, *past[2:])
        ctx.recipe, ctx.gradients = recipe, gradients
        seen = (x_q[0].view(torch.uint8), x_q[1], w_q[0].view(torch.uint8), w_q[1])
        ctx.mark_non_differentiable(*seen)
        return product(x_q, tile, w_q, w_tile, x.dtype), *seen

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> Any:
        recipe, f, tile, w_tile = ctx.recipe, ctx.gradients, ctx.recipe.tile, ctx.recipe.weight_tile
        x_codes, x_s, w_codes, w_s, *past = ctx.saved_tensors
        x_t, w_t = (x_codes, x_s), (w_codes, w_s)
        if recipe.across is not Across.ANEW:
            w_t = w_codes.t(), w_s.t()
        dy_q = quantise(dy, f, tile, recipe.rule, past[0].max() if past else None)
        if recipe.across is Across.TRANSPOSED:
            x_t, dy_t = (x_codes.t(), x_s.t()), (dy_q[0].t(), dy_q[1].t())
        else:
            dy_t = quantise(dy.mT, f, tile, recipe.rule)
        if recipe.across is Across.REQUANTISED:
            values = x_codes.float() / x_s.repeat_interleave(tile[1], 1)[:, : x_codes.shape[1]]
            x_t = quantise(values.mT, E4M3, tile, recipe.rule)
        dx, dw = product(dy_q, tile, w_t, w_tile, dy.dtype), product(dy_t, tile, x_t, tile, dy.dtype)
        return dx, dw, None, None, *((None, None, remembered(past[0], dy)) if past else ())


def remembered(history: Tensor, x: Tensor) -> Tensor:
    """The history with x's amax in front."""
    return torch.cat((x.detach().abs().max().to(history.dtype).view(1), history[:-1]))


def build(workload: Workload, topology: Topology, scaling: str, gradients: str) -> Function:
    recipe = RECIPES[scaling]

    def linear(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = activation(inputs["x"]).flatten(0, -2), inputs["weight"]
        past = [inputs[f"{name}_history"] for name in ("x", "weight", "gradient") if recipe.delayed]
        y, *seen = Linear.apply(x, w, recipe, DTYPES[gradients], *past)
        outputs = {"output": y.unflatten(0, inputs["x"].shape[:-1]), **dict(zip(SEEN, seen, strict=True))}
        if recipe.delayed:
            outputs |= {"x_history": remembered(past[0], x), "weight_history": remembered(past[1], w)}
        return outputs

    return linear
