"""Transformer Engine's Linear under autocast, with the recipe of each scaling.

Its quantisers are called once more to show codes and scales, which it keeps in layouts of its own, as 1 / s: tensors
one number, 1×128 tiles transposed and padded to multiples of 4, MX blocks as E8M0 padded to 128 × 4. For products over
rows it quantises x itself a second time, where DeepSeek-V3 quantises the tiles' values again; the two differ in numbers
that are subnormal in one of the tiles."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformer_engine.pytorch as te
from torch import Tensor
from transformer_engine.common.recipe import (
    DelayedScaling,
    Float8BlockScaling,
    Float8CurrentScaling,
    Format,
    MXFP8BlockScaling,
)

from harness.spec import Function, Topology, Unsupported, Workload
from impls.acceleration.fp8.problem import HISTORY, activation
from impls.acceleration.fp8.recipes import RECIPES, Tile

INPUT, WEIGHT, GRADIENT = 0, 1, 0  # places of the first product's tensors in the forward and the backward state


def _recipe(scaling: str, gradients: str) -> Any:
    form = Format.E4M3 if gradients == "e4m3" else Format.HYBRID
    if scaling == "tensor":
        return Float8CurrentScaling(fp8_format=form)
    if scaling == "delayed":  # one more, since the first place of its history is the amax of the step that runs
        return DelayedScaling(fp8_format=form, amax_history_len=HISTORY + 1, reduce_amax=False)
    return Float8BlockScaling() if scaling == "blocks" else MXFP8BlockScaling()


class Read(torch.autograd.Function):
    """x unchanged. Once its gradient is known, so is the layer's history of dY, which becomes that of ``history``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, history: Tensor, read: Callable[[], Tensor]) -> Tensor:
        ctx.read, ctx.dtype = read, history.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Any:
        return dx, ctx.read().to(ctx.dtype), None


def build(workload: Workload, topology: Topology, scaling: str, gradients: str) -> Function:
    model, tiles = workload.model, RECIPES[scaling]
    check = {"blocks": te.is_fp8_block_scaling_available, "mx_ceil": te.is_mxfp8_available}
    able, reason = check.get(scaling, te.is_fp8_available)(return_reason=True)
    if not able:
        raise Unsupported(f"Transformer Engine has no {scaling} here: {reason}")
    step = max(16, *tiles.weight_tile)
    sizes = workload.tokens, model.hidden_size, model.intermediate_size
    if odd := [size for size in sizes if size % step]:
        raise Unsupported(f"Transformer Engine takes multiples of {step}, not {', '.join(map(str, odd))}")
    dtype = torch.bfloat16 if workload.dtype == "bf16" else torch.float32
    linear = te.Linear(model.hidden_size, model.intermediate_size, bias=False, params_dtype=dtype)
    recipe = _recipe(scaling, gradients)
    with te.autocast(enabled=True, recipe=recipe):
        linear.init_fp8_metadata(num_gemms=1)

    def state(forward: bool) -> Any:
        return linear.fp8_meta["scaling_fwd" if forward else "scaling_bwd"]

    def remember(forward: bool, place: int, history: Tensor) -> None:
        """Newest last in its history, behind the place of the step that runs."""
        largest = recipe.fp8_format.value.max_fwd if forward else recipe.fp8_format.value.max_bwd
        state(forward).amax_history[1:, place] = history.detach().float().flip(0)
        state(forward).scale[place] = largest / history.detach().float().max()

    def history(forward: bool, place: int) -> Tensor:
        return state(forward).amax_history[1:, place].flip(0).clone()

    def shown(x: Tensor, place: int, tile: Tile) -> tuple[Tensor, Tensor]:
        found, (m, k) = linear.quantizers["scaling_fwd"][place](x.detach()), x.shape
        if scaling in ("tensor", "delayed"):
            return found._data.view(m, k), (1 / found._scale_inv).view(1, 1)
        inverse = found._rowwise_scale_inv
        if tile == (1, 128):
            inverse = inverse.t()[:m]
        if tile == (1, 32):
            inverse = torch.exp2(inverse.float() - 127)
        return found._rowwise_data.view(m, k), 1 / inverse[: -(-m // tile[0]), : -(-k // tile[1])]

    def call(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, w = activation(inputs["x"]), inputs["weight"]
        flat = x.detach().flatten(0, -2)
        if tiles.delayed:
            for forward, place, name in ((True, INPUT, "x"), (True, WEIGHT, "weight"), (False, GRADIENT, "gradient")):
                remember(forward, place, inputs[f"{name}_history"])
            x = Read.apply(x, inputs["gradient_history"], lambda: history(False, GRADIENT))
        codes = [shown(flat, INPUT, tiles.tile), shown(w, WEIGHT, tiles.weight_tile)]
        with te.autocast(enabled=True, recipe=recipe):
            y = torch.func.functional_call(linear, {"weight": w}, (x,))
        outputs = {"output": y, "x_codes": codes[0][0], "x_scales": codes[0][1]}
        outputs |= {"weight_codes": codes[1][0], "weight_scales": codes[1][1]}
        if tiles.delayed:
            outputs |= {"x_history": history(True, INPUT).to(x), "weight_history": history(True, WEIGHT).to(x)}
        return outputs

    return call
