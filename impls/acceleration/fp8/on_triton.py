"""The layer on Plumbline's own Triton kernels (kernels.py). On a CPU they run in Triton's interpreter, where
TRITON_INTERPRET=1 is set before triton is imported."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from impls.acceleration.fp8.kernels import product, quantise
from impls.acceleration.fp8.problem import DTYPES, SEEN, activation
from impls.acceleration.fp8.recipes import RECIPES, Across, Recipe

E4M3 = torch.float8_e4m3fn


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
