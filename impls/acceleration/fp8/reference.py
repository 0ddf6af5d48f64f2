"""A linear layer y = x Wᵀ whose three products have FP8 operands (Micikevicius et al. 2022, §3.2; DeepSeek-AI 2024,
"DeepSeek-V3", §3.3; Rouhani et al. 2023, "Microscaling data formats for deep learning", §4):

    forward     y  = x̂ Ŵᵀ            x̂ = Q(x)  along h       Ŵ = Q(W) along h
    backward    dX = dŶ Ŵ            dŶ = Q(dY) along n      Ŵ along n
                dW = dŶᵀ x̂           dŶ along T              x̂ along T

Q scales a tile so that its largest element comes near the format's maximum, casts, and keeps the scale:

    q = cast(x · s)        x̂ = q / s        s from amax, the tile's largest |x|  (recipes.py)

x and W are cast to E4M3; dY to E5M2 in hybrid recipes, which trade a bit of precision for range, or to E4M3. The cast
has no derivative: it is *straight through*, as if x̂ were x. Products accumulate in float32.

Delayed scaling does not wait for this step's amax. It takes the largest of the last H steps, newest first, casts at
once (elements may exceed the maximum, and saturate), and puts the step's amax in front. The histories of x and W go in
and come out. That of dY is known only after the backward pass, so it leaves as the "gradient" of the history that came
in, as in Flax's fp8_ops.

    T tokens (b·s)    h in    n out    r, c rows and columns of a tile    H length of a history
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from impls.acceleration.fp8.formats import E4M3, E5M2, Format, cast, log2_floor, power_of_two
from impls.acceleration.fp8.problem import SEEN, activation
from impls.acceleration.fp8.recipes import RECIPES, Across, Recipe, Rule, Tile

GRADIENTS = {"e4m3": E4M3, "e5m2": E5M2}


class Quantised(NamedTuple):
    codes: Tensor  # [m, k], one byte each
    scales: Tensor  # [⌈m/r⌉, ⌈k/c⌉]
    tile: Tile

    @property
    def mT(self) -> "Quantised":  # noqa: N802, as tensors call it
        return Quantised(self.codes.mT, self.scales.mT, self.tile[::-1])


def largest(x: Tensor, tile: Tile) -> Tensor:
    """amax of each tile of x [m, k]: [⌈m/r⌉, ⌈k/c⌉]; tiles at the edges may be smaller."""
    (m, k), r, c = x.shape, tile[0] or x.shape[0], tile[1] or x.shape[1]
    padded = torch.nn.functional.pad(x.abs(), (0, -k % c, 0, -m % r))
    return padded.unflatten(1, (-1, c)).unflatten(0, (-1, r)).amax((1, 3)).float()


def scale(amax: Tensor, f: Format, rule: Rule) -> Tensor:
    """s; 1 where a tile is all zeros or holds an infinity or NaN."""
    exact = torch.full_like(amax, f.max) / amax  # f.max / amax would multiply by a rounded reciprocal
    found = {
        Rule.EXACT: lambda: exact,
        Rule.DOWN: lambda: power_of_two(log2_floor(exact).clamp(-126, 127)),
        Rule.MX: lambda: power_of_two((f.max_exponent - log2_floor(amax)).clamp(-126, 127)),
    }[rule]()
    return torch.where((amax > 0) & amax.isfinite() & found.isfinite(), found, 1.0)


def spread(scales: Tensor, tile: Tile, shape: torch.Size) -> Tensor:
    """The scale of every element: [m, k], or 1 where a dimension has one scale."""
    for dim, size in enumerate(tile):
        if size > 1:
            scales = scales.repeat_interleave(size, dim).narrow(dim, 0, shape[dim])
    return scales


def quantise(x: Tensor, f: Format, tile: Tile, rule: Rule, history: Tensor | None = None) -> Quantised:
    """x [m, k] → codes and scales. ``history``: the amaxes to use instead of this tensor's own."""
    amax = largest(x, tile) if history is None else history.float().max().view(1, 1)
    scales = scale(amax, f, rule)
    codes = cast(x.float() * spread(scales, tile, x.shape), f).to(f.dtype)  # the last step only stores
    return Quantised(codes, scales, tile)


def decode(q: Quantised, dtype: torch.dtype) -> Tensor:
    """x̂ [m, k]; exact where the scale is a power of two."""
    return q.codes.to(dtype) / spread(q.scales, q.tile, q.codes.shape).to(dtype)


def product(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
    """â b̂ᵀ [m, n] of a [m, k] and b [n, k], in float32 at least, rounded once at the end."""
    wide = torch.promote_types(dtype, torch.float32)
    return (decode(a, wide) @ decode(b, wide).mT).to(dtype)


def pushed(history: Tensor, x: Tensor) -> Tensor:
    """The history [H] with x's amax in front."""
    return torch.cat((x.detach().abs().max().view(1).to(history.dtype), history[:-1]))


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, recipe: Recipe, gradients: Format, past: Mapping[str, Tensor], dy_past: Tensor
    ) -> Any:
        """x [T, h], w [n, h] → y [T, n], and what x and w became. ``past``, ``dy_past``: histories [H], if delayed."""
        x_q = quantise(x, E4M3, recipe.tile, recipe.rule, past.get("x_history"))
        w_q = quantise(w, E4M3, recipe.weight_tile, recipe.rule, past.get("weight_history"))
        x_kept, w_kept = x_q, w_q
        if recipe.across is Across.ANEW:
            x_kept = quantise(x.mT, E4M3, recipe.tile, recipe.rule)  # [h, T]
            w_kept = quantise(w.mT, E4M3, recipe.weight_tile, recipe.rule)  # [h, n]
        ctx.save_for_backward(x_kept.codes, x_kept.scales, w_kept.codes, w_kept.scales, dy_past)
        ctx.recipe, ctx.gradients, ctx.tiles = recipe, gradients, (x_kept.tile, w_kept.tile)
        seen = (x_q.codes.view(torch.uint8), x_q.scales, w_q.codes.view(torch.uint8), w_q.scales)
        ctx.mark_non_differentiable(*seen)
        return product(x_q, w_q, x.dtype), *seen

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> Any:
        recipe, f = ctx.recipe, ctx.gradients
        x_codes, x_scales, w_codes, w_scales, dy_past = ctx.saved_tensors
        x_t, w_t = Quantised(x_codes, x_scales, ctx.tiles[0]), Quantised(w_codes, w_scales, ctx.tiles[1])
        if recipe.across is not Across.ANEW:
            w_t = w_t.mT  # [h, n]
        if recipe.across is Across.TRANSPOSED:
            x_t = x_t.mT  # [h, T]
        if recipe.across is Across.REQUANTISED:
            x_t = quantise(decode(x_t, torch.float32).mT, E4M3, recipe.tile, recipe.rule)
        dy_q = quantise(dy, f, recipe.tile, recipe.rule, dy_past)  # [T, n]
        dy_t = dy_q.mT if recipe.across is Across.TRANSPOSED else quantise(dy.mT, f, recipe.tile, recipe.rule)  # [n, T]
        dx, dw = product(dy_q, w_t, dy.dtype), product(dy_t, x_t, dy.dtype)
        return dx, dw, None, None, None, pushed(dy_past, dy) if recipe.delayed else None


def build(workload: Workload, topology: Topology, scaling: str, gradients: str) -> Function:
    """x [b, s, h], weight [n, h] and histories [H] → output [b, s, n]; codes, scales and histories of x and W."""
    recipe = RECIPES[scaling]

    def linear(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = activation(inputs["x"]).flatten(0, -2), inputs["weight"]
        past = {name: inputs[name] for name in ("x_history", "weight_history") if recipe.delayed}
        y, *seen = Linear.apply(x, w, recipe, GRADIENTS[gradients], past, inputs.get("gradient_history"))
        outputs = {"output": y.unflatten(0, inputs["x"].shape[:-1]), **dict(zip(SEEN, seen, strict=True))}
        if recipe.delayed:
            outputs |= {"x_history": pushed(past["x_history"], x), "weight_history": pushed(past["weight_history"], w)}
        return outputs

    return linear
