"""PyTorch's scaled products, torch.nn.functional.scaled_mm, with the recipe that each scaling has there. Their scales are
those by which codes are *multiplied*, 1 / s. PyTorch has no casts with scales, so amax, scale and cast are plain
operations on tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, SwizzleType, pad, scaled_mm

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.fp8.problem import DTYPES, SEEN, activation
from impls.acceleration.fp8.recipes import RECIPES, Rule, Tile

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
    s = top / amax
    if rule is Rule.DOWN:
        s = (s.view(torch.int32) & 0x7F800000).view(torch.float32)
    if rule is Rule.MX:
        exponent = (amax.view(torch.int32) >> 23) - 127
        s = ((int(torch.tensor(top).log2()) - exponent + 127) << 23).view(torch.float32)
    codes = (tiles * s).clamp(-top, top).to(dtype).view(m, k)
    return codes, s.view(m // r, k // c) if history is None else s.view(1, 1)


def product(a: tuple[Tensor, Tensor], tile_a: Tile, b: tuple[Tensor, Tensor], tile_b: Tile, dtype: torch.dtype) -> Tensor:
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
    """1 / s in the layout of the kernels: a single number; rows; for 1×128 columns one after another; for 1×32 as E8M0 in
    cuBLAS's tiles of 128 × 4, where row 32 i + j is row j, column i of 32 × 4."""
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
    def forward(ctx: Any, x: Tensor, w: Tensor, scaling: str, gradients: str, *past: Tensor | None) -> Any:
        recipe = RECIPES[scaling]
        x_q, w_q = quantise(x, E4M3, recipe.tile, recipe.rule, past[0]), quantise(w, E4M3, recipe.weight_tile, recipe.rule, past[1])
        x_t, w_t = x_q, w_q
        if recipe.tile != (0, 0):
            x_t = quantise(x.mT.contiguous(), E4M3, recipe.tile, recipe.rule)
        if recipe.weight_tile[0] == 1:
            w_t = quantise(w.mT.contiguous(), E4M3, recipe.weight_tile, recipe.rule)
        ctx.save_for_backward(*x_t, *w_t, past[2])
        ctx.recipe, ctx.gradients = recipe, DTYPES[gradients]
        seen = (x_q[0].view(torch.uint8), x_q[1], w_q[0].view(torch.uint8), w_q[1])
        ctx.mark_non_differentiable(*seen)
        return product(x_q, recipe.tile, w_q, recipe.weight_tile, x.dtype), *seen

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> Any:
        recipe, tile = ctx.recipe, ctx.recipe.tile
        x_codes, x_s, w_codes, w_s, past = ctx.saved_tensors
        dy_q = quantise(dy, ctx.gradients, tile, recipe.rule, past)
        if tile == (0, 0):
            dy_t, x_codes = (dy_q[0].t(), dy_q[1]), x_codes.t()
        else:
            dy_t = quantise(dy.mT.contiguous(), ctx.gradients, tile, recipe.rule)
        if recipe.weight_tile[0] != 1:
            w_codes, w_s = w_codes.t(), w_s.t().contiguous()
        dx = product(dy_q, tile, (w_codes, w_s), recipe.weight_tile, dy.dtype)
        dw = product(dy_t, tile, (x_codes, x_s), tile, dy.dtype)
        return dx, dw, None, None, None, None, None if past is None else remembered(past, dy)


def remembered(history: Tensor, x: Tensor) -> Tensor:
    """The history with x's amax in front. That of dY leaves as the gradient of the history that came in."""
    found = history.roll(1)
    found[0] = x.abs().max()
    return found


def build(workload: Workload, topology: Topology, scaling: str, gradients: str) -> Function:
    model, tokens = workload.model, workload.tokens
    sizes = {"tokens": tokens, "hidden_size": model.hidden_size, "intermediate_size": model.intermediate_size}
    cuda = torch.cuda.is_available()
    if need := NEEDS.get(scaling):
        if not cuda or torch.cuda.get_device_capability() < need:
            raise Unsupported(f"scaled_mm has blocks of {scaling} on GPUs of compute capability {need[0]}.{need[1]} only")
    step = max(*RECIPES[scaling].weight_tile, 16 if cuda else 1)
    if odd := [f"{name} {size}" for name, size in sizes.items() if size % step]:
        raise Unsupported(f"scaled_mm takes multiples of {step}, not {', '.join(odd)}")

    def linear(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = activation(inputs["x"]).flatten(0, -2), inputs["weight"]
        past = tuple(inputs.get(f"{name}_history") for name in ("x", "weight", "gradient"))
        y, *seen = Linear.apply(x, w, scaling, gradients, *past)
        outputs = dict(zip(SEEN, seen, strict=True))
        if past[2] is not None:
            for name, history, tensor in (("x", past[0], x), ("weight", past[1], w)):
                outputs[f"{name}_history"] = remembered(history, tensor.detach())
        return {"output": y.unflatten(0, inputs["x"].shape[:-1]), **outputs}

    return linear
