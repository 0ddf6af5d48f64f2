"""The FP8 linear layer with exactly one thing broken."""

from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.acceleration.fp8 import reference
from impls.acceleration.fp8.formats import Format
from impls.acceleration.fp8.grid import ALIGNED
from impls.acceleration.fp8.reference import Quantised

EXACT = frozenset({"exact"})


def e5m2_for_e4m3(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Activations and weights are cast to the format of gradients."""
    reference.E4M3 = reference.E5M2
    return reference.build(workload, topology, **variant)


def e4m3_gradients_for_e5m2(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """A hybrid recipe without its second format."""
    return reference.build(workload, topology, **{**variant, "gradients": "e4m3"})


def amax_of_this_step(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Delayed scaling waits for the amax of today's tensor."""
    quantise = reference.quantise

    def current(x: Tensor, f: Format, tile: Any, rule: Any, history: Tensor | None = None) -> Quantised:
        return quantise(x, f, tile, rule)

    reference.quantise = current
    return reference.build(workload, topology, **variant)


def amax_one_step_late(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """This step's amax does not come to the front of the history, but behind the newest."""

    def late(history: Tensor, x: Tensor) -> Tensor:
        return torch.cat((history[:1], x.detach().abs().max().view(1).to(history.dtype), history[1:-1]))

    reference.pushed = late
    return reference.build(workload, topology, **variant)


def block_scales_transposed(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Block (i, j) of the weight is multiplied by the scale of block (j, i), as numbered in memory."""
    spread = reference.spread

    def transposed(scales: Tensor, tile: Any, shape: torch.Size) -> Tensor:
        return spread(scales.mT.reshape(scales.shape) if tile == (128, 128) else scales, tile, shape)

    def decode(q: Quantised, dtype: torch.dtype) -> Tensor:
        return q.codes.to(dtype) / transposed(q.scales, q.tile, q.codes.shape).to(dtype)

    reference.decode = decode
    return reference.build(workload, topology, **variant)


def scale_multiplied(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """x̂ = q · s, not q / s."""

    def decode(q: Quantised, dtype: torch.dtype) -> Tensor:
        return q.codes.to(dtype) * reference.spread(q.scales, q.tile, q.codes.shape).to(dtype)

    reference.decode = decode
    return reference.build(workload, topology, **variant)


def no_saturation(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """What exceeds E4M3's maximum becomes NaN."""
    cast = reference.cast
    reference.cast = lambda x, f: cast(x, f, saturate=False)
    return reference.build(workload, topology, **variant)


def truncation(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Rounds towards zero."""

    def cast(x: Tensor, f: Format) -> Tensor:
        exponent = reference.log2_floor(x).clamp(min=f.min_exponent)
        step = reference.power_of_two(exponent - f.mantissa)
        return ((x / step).trunc() * step).clamp(-f.max, f.max)

    reference.cast = cast
    return reference.build(workload, topology, **variant)


def ties_away_from_zero(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Ties go to the larger number, not to the even mantissa."""

    def cast(x: Tensor, f: Format) -> Tensor:
        exponent = reference.log2_floor(x).clamp(min=f.min_exponent)
        step = reference.power_of_two(exponent - f.mantissa)
        return (((x / step).abs() + 0.5).floor() * step).clamp(max=f.max).copysign(x)

    reference.cast = cast
    return reference.build(workload, topology, **variant)


def weight_scale_for_activation(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """x̂ is decoded by the weight's scale in y."""
    product = reference.product

    def mixed(a: Quantised, b: Quantised, dtype: torch.dtype) -> Tensor:
        activations = len(a.codes) == workload.tokens and a.codes.shape[1] == workload.model.hidden_size
        return product(a._replace(scales=b.scales) if activations else a, b, dtype)

    reference.product = mixed
    return reference.build(workload, topology, **variant)


def weight_gradient_unquantised(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """dW = dYᵀ x̂ of the gradient as it came."""
    backward = reference.Linear.backward

    def wide(ctx: Any, dy: Tensor, *seen: Tensor) -> Any:
        dx, dw, *rest = backward(ctx, dy, *seen)
        codes, scales, *_ = ctx.saved_tensors
        x = reference.decode(Quantised(codes, scales, ctx.tiles[0]), dy.dtype)
        return dx, dy.mT @ x, *rest

    reference.Linear.backward = staticmethod(wide)
    return reference.build(workload, topology, **variant)


def input_kept_in_full_precision(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The backward pass holds x itself beside its codes."""
    forward = reference.Linear.forward

    def keep(ctx: Any, x: Tensor, *rest: Any) -> Any:
        ctx.x = x
        return forward(ctx, x, *rest)

    reference.Linear.forward = staticmethod(keep)
    return reference.build(workload, topology, **variant)


def _seen(figures: frozenset[str] | set[str]) -> dict[str, dict[str, frozenset[str] | set[str]]]:
    return {"parity": {"fp32": figures, "bf16": figures}}


PRODUCTS = OUTPUT | GRADIENT
FAULTS = {
    "e5m2_for_e4m3": Fault("fp8_current", "dp1", _seen({"output", "exact"}), "output of output", ALIGNED),
    "e4m3_gradients_for_e5m2": Fault("fp8_current", "dp1", _seen({"gradient"}), "gradient of", ALIGNED),
    "amax_of_this_step": Fault("fp8_delayed", "dp1", _seen({"output", "exact", "gradient"}), "output of", ALIGNED),
    "amax_one_step_late": Fault("fp8_delayed", "dp1", _seen({"exact", "gradient"}), "gradient_history", ALIGNED),
    "block_scales_transposed": Fault("fp8_blocks", "dp1", _seen({"output", "gradient"}), "output of output", ALIGNED),
    "scale_multiplied": Fault("fp8_rows", "dp1", _seen(PRODUCTS), "output of output", ALIGNED),
    "no_saturation": Fault("fp8_delayed", "dp1", _seen({"output", "exact"}), "output of output", ALIGNED),
    "truncation": Fault("mxfp8", "dp1", _seen({"output", "exact"}), "output of output", ALIGNED),
    "ties_away_from_zero": Fault("fp8_rows", "dp1", _seen(EXACT), "", ALIGNED),
    "weight_scale_for_activation": Fault("fp8_current", "dp1", _seen(OUTPUT), "output of output", ALIGNED),
    "weight_gradient_unquantised": Fault("mxfp8_ceil", "dp1", _seen({"gradient"}), "gradient of weight", ALIGNED),
    "input_kept_in_full_precision": Fault(
        "fp8_blocks", "dp1", {"memory": {"fp32": {"saved"}, "bf16": {"saved"}}}, workload=ALIGNED
    ),
}
