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
    """The newest amax of the history is not looked at yet."""
    quantise = reference.quantise

    def late(x: Tensor, f: Format, tile: Any, rule: Any, history: Tensor | None = None) -> Quantised:
        return quantise(x, f, tile, rule, None if history is None else history[1:])

    reference.quantise = late
    return reference.build(workload, topology, **variant)


def most_recent_amax_alone(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The newest amax sets the scale, not the history's largest."""
    quantise = reference.quantise

    def recent(x: Tensor, f: Format, tile: Any, rule: Any, history: Tensor | None = None) -> Quantised:
        return quantise(x, f, tile, rule, None if history is None else history[:1])

    reference.quantise = recent
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
        dx, _, *rest = backward(ctx, dy, *seen)
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


def _found(variant: str, figures: frozenset[str] | set[str], where: str, exact: bool = False) -> Fault:
    """In bfloat16 also by codes or scales that are not equal, if they are not."""
    finds = {"fp32": figures, "bf16": figures | EXACT if exact else figures}
    return Fault(variant, "dp1", {"parity": finds}, where, ALIGNED)


FAULTS = {
    "e5m2_for_e4m3": _found("fp8_current", {"output"}, "output of output", exact=True),
    "e4m3_gradients_for_e5m2": _found("fp8_current", {"gradient"}, "gradient of"),
    "amax_of_this_step": _found("fp8_delayed", {"output", "gradient"}, "output of output", exact=True),
    "amax_one_step_late": _found("fp8_delayed", {"output"}, "output of output", exact=True),
    "most_recent_amax_alone": _found("fp8_delayed", {"output", "gradient"}, "output of output", exact=True),
    "block_scales_transposed": _found("fp8_blocks", {"output", "gradient"}, "output of output"),
    "scale_multiplied": _found("fp8_rows", OUTPUT | GRADIENT, "output of output"),
    "no_saturation": _found("fp8_delayed", {"output"}, "output of output", exact=True),
    "truncation": _found("mxfp8", OUTPUT, "output of output", exact=True),
    "ties_away_from_zero": _found("fp8_rows", {"output"}, "output of output", exact=True),
    "weight_scale_for_activation": _found("fp8_current", OUTPUT, "output of output"),
    "weight_gradient_unquantised": _found("mxfp8_ceil", {"gradient"}, "gradient of weight"),
    "input_kept_in_full_precision": Fault(
        "fp8_blocks", "dp1", {"memory": {"fp32": {"saved"}, "bf16": {"saved"}}}, workload=ALIGNED
    ),
}
