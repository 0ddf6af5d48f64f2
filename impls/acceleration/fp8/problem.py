"""One linear layer on activations with outliers, whose FP8 values no rounding changes.

A cast turns a rounding error of x · s into another code, so no drawn element of x or W lies within MARGIN of the border
between two codes under scales that are no powers of two: however an engine computes s, it gets the same codes. x, W and
histories are bfloat16 numbers, so every precision gets the same values. The gradient of y is a random one.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Workload
from impls.acceleration.fp8.recipes import RECIPES, Across, Recipe, Rule, Tile

MARGIN = 2.0**-20  # relative; four roundings in float32
HISTORY = 16  # steps
SEEN = ("x_codes", "x_scales", "weight_codes", "weight_scales")
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def activation(x: Tensor) -> Tensor:
    """x as the layer before would hand it over: a tensor of its own, which is freed unless the layer keeps it."""
    return x.clone()


def draw(workload: Workload, scaling: str, gradients: str) -> dict[str, Tensor]:
    """x [b, s, h], weight [n, h], both differentiated, n being the MLP's width; float64. If delayed also three
    histories [H], newest first; only that of the gradient is differentiated. Past activations were smaller than
    today's, so some of today's saturate; past gradients were larger.

    Sizes vary from token to token, and one channel in 16 has outliers, 20 times as large (Dettmers et al. 2022)."""
    h, n = workload.model.hidden_size, workload.model.intermediate_size
    generator = torch.Generator().manual_seed(workload.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sizes = {"x": (workload.batch_size, workload.sequence_length, h), "weight": (n, h)}
    x = normal(*sizes["x"]) * 2.0 ** torch.randint(-3, 4, (*sizes["x"][:2], 1), generator=generator)
    x[..., torch.randperm(h, generator=generator)[: h // 16]] *= 20.0
    # Blocks of the weight differ in size along both dimensions, and so do their scales.
    rise = 8.0 ** (torch.arange(n) / n)[:, None] * 4.0 ** (torch.arange(h) / h)
    inputs = {"x": x, "weight": normal(*sizes["weight"]) * rise / h**0.5}
    inputs = {name: tensor.bfloat16().double() for name, tensor in inputs.items()}
    recipe = RECIPES[scaling]
    if recipe.delayed:
        largest = {"x": 0.75 * x.abs().max(), "weight": inputs["weight"].abs().max(), "gradient": 6.0}
        for (name, amax), place in zip(largest.items(), (0, 3, 5), strict=True):  # of the largest, newest first
            past = amax * (0.25 + 0.5 * torch.rand(HISTORY, generator=generator, dtype=torch.float64))
            past[place] = amax
            inputs[f"{name}_history"] = past.bfloat16().double()
    if recipe.rule is Rule.EXACT:
        for name in ("x", "weight"):
            history = inputs.get(f"{name}_history")
            while (close := doubtful(inputs[name], history)).any():
                inputs[name][close] *= 0.984375  # 63/64
                inputs[name] = inputs[name].bfloat16().double()
    return {name: tensor.requires_grad_(name in ("x", "weight", "gradient_history")) for name, tensor in inputs.items()}


def doubtful(x: Tensor, history: Tensor | None) -> Tensor:
    """True for elements that rounding might cast to another code under one scale for all."""
    scaled = x * (448.0 / (x.abs() if history is None else history).max())
    low, high = (scaled * (1 + side * MARGIN) for side in (-1, 1))
    codes = [each.clamp(-448, 448).float().to(torch.float8_e4m3fn).float() for each in (low, high)]
    return codes[0] != codes[1]


def _codes(x: Tensor, dtype: torch.dtype, tile: Tile, rule: Rule, history: Tensor | None) -> tuple[Tensor, ...]:
    """Codes, each element's scale, and each tile's, of x [m, k], with PyTorch's cast."""
    (m, k), top = x.shape, torch.finfo(dtype).max
    r, c = tile[0] or m, tile[1] or k
    if history is None:
        amax = F.max_pool2d(x.abs().float()[None], (r, c), ceil_mode=True)[0]
    else:
        amax = history.float().max().view(1, 1)
    exact = torch.full_like(amax, top) / amax  # top / amax would multiply by a rounded reciprocal
    fraction, exponent = torch.frexp(exact)
    scales = {
        Rule.EXACT: exact,
        Rule.DOWN: torch.ldexp(torch.full_like(fraction, 0.5), exponent),
        Rule.MX: torch.ldexp(torch.ones_like(amax), int(torch.tensor(top).log2()) + 1 - torch.frexp(amax).exponent),
    }[rule]
    each = scales[(torch.arange(m, device=x.device) // r)[:, None], torch.arange(k, device=x.device) // c]
    return (x.float() * each).clamp(-top, top).to(dtype), each, scales


def _values(x: Tensor, dtype: torch.dtype, tile: Tile, rule: Rule, history: Tensor | None = None) -> Tensor:
    """x̂ [m, k] in float32 at least: what is left of x."""
    codes, each, _ = _codes(x, dtype, tile, rule, history)
    wide = torch.promote_types(x.dtype, torch.float32)
    return codes.to(wide) / each.to(wide)


class Quantised(torch.autograd.Function):
    """y = x̂ Ŵᵀ, and straight through, dX = dŶ Ŵ and dW = dŶᵀ x̂, each operand along the dimension it is summed over."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, recipe: Recipe, gradients: torch.dtype, histories: tuple[Tensor | None, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.recipe, ctx.gradients, ctx.histories = recipe, gradients, histories
        e4m3, rule = torch.float8_e4m3fn, recipe.rule
        x_hat = _values(x, e4m3, recipe.tile, rule, histories[0])
        return (x_hat @ _values(w, e4m3, recipe.weight_tile, rule, histories[1]).mT).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        recipe, e4m3, rule = ctx.recipe, torch.float8_e4m3fn, ctx.recipe.rule
        past_x, past_w, past_dy = ctx.histories
        if recipe.across is Across.REQUANTISED:
            x = _values(x, e4m3, recipe.tile, rule)
        along_n, along_t = (_values(each, ctx.gradients, recipe.tile, rule, past_dy) for each in (dy, dy.mT))
        w_t = _values(w.mT, e4m3, recipe.weight_tile, rule, past_w)
        x_t = _values(x.mT, e4m3, recipe.tile, rule, past_x)
        return (along_n @ w_t.mT).to(dy.dtype), (along_t @ x_t.mT).to(dy.dtype), None, None, None


class Remembered(torch.autograd.Function):
    """y unchanged; the gradient of ``history`` is the next one."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, history: Tensor) -> Tensor:
        ctx.save_for_backward(history)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy, after(ctx.saved_tensors[0], dy)


def after(history: Tensor, x: Tensor) -> Tensor:
    """The history with x's amax, one step later."""
    return torch.stack([x.abs().amax().to(history.dtype), *history[:-1]])


def plain(inputs: Mapping[str, Tensor], scaling: str, gradients: str) -> dict[str, Tensor]:
    """The same quantised values, multiplied in the inputs' precision. Codes and scales are computed in float32 in every
    precision: they are exact, and so is what they stand for in float64."""
    recipe, x, w = RECIPES[scaling], inputs["x"].flatten(0, -2), inputs["weight"]
    past = tuple(inputs[f"{name}_history"] if recipe.delayed else None for name in ("x", "weight", "gradient"))
    y = Quantised.apply(x, w, recipe, DTYPES[gradients], past)
    if recipe.delayed:
        y = Remembered.apply(y, past[2])
    outputs = {"output": y.unflatten(0, inputs["x"].shape[:-1])}
    for name, tensor, tile, history in (("x", x, recipe.tile, past[0]), ("weight", w, recipe.weight_tile, past[1])):
        codes, _, scales = _codes(tensor.detach(), torch.float8_e4m3fn, tile, recipe.rule, history)
        outputs |= {f"{name}_codes": codes.view(torch.uint8), f"{name}_scales": scales}
        if history is not None:
            outputs[f"{name}_history"] = after(history, tensor.detach())
    return outputs
