"""PyTorch's scaled products, torch.nn.functional.scaled_mm, with the recipe that each scaling has there. Their scales
are those by which codes are *multiplied*, 1 / s. PyTorch has no casts with scales, so amax, scale and cast are plain
operations on tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType, pad, scaled_mm

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.fp8.problem import DTYPES, SEEN, activation
from impls.acceleration.fp8.recipes import RECIPES, Across, Recipe, Rule, Tile

E4M3 = torch.float8_e4m3fn
TYPES = {
    (0, 0): ScalingType.TensorWise,
    (1, 0): ScalingType.RowWise,
    (1, 32): ScalingType.BlockWise1x32,
    (1, 128): ScalingType.BlockWise1x128,
    (128, 128): ScalingType.BlockWise128x128,
}
NEEDS = {"blocks": (9, 0), "mx": (10, 0), "mx_ceil": (10, 0)}  # compute capability; PyTorch has no kernel on the CPU


def quantise(x: Tensor, dtype: torch.dtype, tile: Tile, rule: Rule, history: Tensor | None = None) -> Any:
    """Codes [m, k], and s of each tile."""
    (m, k), top = x.shape, torch.finfo(dtype).max
    r, c = tile[0] or m, tile[1] or k
    tiles = x.view(m // r, r, k // c, c)
    amax = tiles.abs().amax((1, 3), keepdim=True).float() if history is None else history.float().max()
    s = torch.full_like(amax, top) / amax
    if rule is Rule.DOWN:
        s = (s.view(torch.int32) & 0x7F800000).view(torch.float32)
    if rule is Rule.MX:
        exponent = (amax.view(torch.int32) >> 23) - 127
        s = ((int(torch.tensor(top).log2()) - exponent + 127) << 23).view(torch.float32)
    codes = (tiles.float() * s).clamp(-top, top).to(dtype).view(m, k)
    return codes, s.view(m // r, k // c) if history is None else s.view(1, 1)


def product(
    a: tuple[Tensor, Tensor], tile_a: Tile, b: tuple[Tensor, Tensor], tile_b: Tile, dtype: torch.dtype
) -> Tensor:
    """â b̂ᵀ of codes [m, k] and [n, k], which may be transposed views; kernels want rows of both in memory order."""
    swizzle = SwizzleType.SWIZZLE_32_4_4 if tile_a == (1, 32) else SwizzleType.NO_SWIZZLE
    return scaled_mm(
        a[0].contiguous(),
        b[0].contiguous().t(),
        arranged(a[1], tile_a),
        TYPES[tile_a],
        arranged(b[1], tile_b).t() if tile_b == (1, 0) else arranged(b[1], tile_b),
        TYPES[tile_b],
        swizzle_a=swizzle,
        swizzle_b=swizzle,
        output_dtype=dtype,
    )


def arranged(s: Tensor, tile: Tile) -> Tensor:
    """1 / s in the layout of the kernels: a single number; rows; for 1×128 columns one after another; for 1×32 as E8M0
    in cuBLAS's tiles of 128 × 4, where row 32 i + j is row j, column i of 32 × 4."""
    inverse = 1 / s
    if tile == (0, 0):
        return inverse.reshape(())
    if tile == (1, 128):
        return inverse.t().contiguous().t()
    if tile == (1, 32):
        m, k = s.shape
        blocks = pad(inverse, (0, -k % 4, 0, -m % 128)).to(torch.float8_e8m0fnu).view(torch.uint8)
        blocks = blocks.view(-(-m // 128), 4, 32, -(-k // 4), 4).permute(0, 3, 2, 1, 4)
        return blocks.contiguous().flatten().view(torch.float8_e8m0fnu)
    return inverse


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, recipe: Recipe, gradients: torch.dtype, *past: Tensor) -> Any:
        tile, w_tile, rule = recipe.tile, recipe.weight_tile, recipe.rule
        x_q, w_q = quantise(x, E4M3, tile, rule, *past[:1]), quantise(w, E4M3, w_tile, rule, *past[1:2])
        x_kept, w_kept = x_q, w_q
        if recipe.across is Across.ANEW:
            x_kept, w_kept = (quantise(each.mT.contiguous(), E4M3, tile, rule) for each in (x, w))
        ctx.save_for_backward(*x_kept, *w_kept, *past[2:])
        ctx.recipe, ctx.gradients = recipe, gradients
        seen = (x_q[0].view(torch.uint8), x_q[1], w_q[0].view(torch.uint8), w_q[1])
        ctx.mark_non_differentiable(*seen)
        return product(x_q, tile, w_q, w_tile, x.dtype), *seen

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> Any:
        recipe, f, tile, rule = ctx.recipe, ctx.gradients, ctx.recipe.tile, ctx.recipe.rule
        x_codes, x_s, w_codes, w_s, *past = ctx.saved_tensors
        x_t, w_t, dy_q = (x_codes, x_s), (w_codes, w_s), quantise(dy, f, tile, rule, *past)
        if recipe.across is not Across.ANEW:
            w_t = w_codes.t(), w_s.t().contiguous()
        if recipe.across is Across.TRANSPOSED:
            x_t, dy_t = (x_codes.t(), x_s), (dy_q[0].t(), dy_q[1])
        else:
            dy_t = quantise(dy.mT.contiguous(), f, tile, rule)
        if recipe.across is Across.REQUANTISED:
            values = x_codes.float() / x_s.repeat_interleave(tile[1], 1)
            x_t = quantise(values.mT.contiguous(), E4M3, tile, rule)
        dx, dw = product(dy_q, tile, w_t, recipe.weight_tile, dy.dtype), product(dy_t, tile, x_t, tile, dy.dtype)
        return dx, dw, None, None, *((None, None, remembered(past[0], dy)) if past else ())


def remembered(history: Tensor, x: Tensor) -> Tensor:
    """The history with x's amax in front. That of dY leaves as the gradient of the history that came in."""
    found = history.detach().roll(1)
    found[0] = x.detach().abs().max()
    return found


def build(workload: Workload, topology: Topology, scaling: str, gradients: str) -> Function:
    model, tokens, recipe = workload.model, workload.tokens, RECIPES[scaling]
    sizes = {"tokens": tokens, "hidden_size": model.hidden_size, "intermediate_size": model.intermediate_size}
    cuda = torch.cuda.is_available()
    if (need := NEEDS.get(scaling)) and not (cuda and torch.cuda.get_device_capability() >= need):
        raise Unsupported(f"scaled_mm takes {scaling} on GPUs of compute capability {need[0]}.{need[1]} only")
    step = max(*recipe.weight_tile, 16 if cuda else 1)
    if odd := [f"{name} {size}" for name, size in sizes.items() if size % step]:
        raise Unsupported(f"scaled_mm takes multiples of {step}, not {', '.join(odd)}")

    def linear(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = activation(inputs["x"]).flatten(0, -2), inputs["weight"]
        past = [inputs[f"{name}_history"] for name in ("x", "weight", "gradient") if recipe.delayed]
        y, *seen = Linear.apply(x, w, recipe, DTYPES[gradients], *past)
        outputs = {"output": y.unflatten(0, inputs["x"].shape[:-1]), **dict(zip(SEEN, seen, strict=True))}
        if recipe.delayed:
            outputs |= {"x_history": remembered(past[0], x), "weight_history": remembered(past[1], w)}
        return outputs

    return linear
