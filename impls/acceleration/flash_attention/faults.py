"""FlashAttention with exactly one thing broken."""

from collections.abc import Mapping
from math import log
from typing import Any

from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.acceleration.flash_attention import fa1, reference
from impls.acceleration.flash_attention.grid import RAGGED
from impls.acceleration.flash_attention.rules import Mask, Rules


def no_softmax_scale(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """softmax(QKᵀ) V, without 1/√d."""
    attention = reference.build(workload, topology, **variant)

    def unscaled(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return attention({**inputs, "query": inputs["query"] * workload.model.head_dim**0.5})

    return unscaled


def probabilities_that_are_kept(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The naive form: the backward pass finds the s × s probabilities in memory."""

    def attention(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"output": reference.naive(inputs["query"], inputs["key"], inputs["value"], Rules.of(**variant))}

    return attention


def no_running_maximum(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """exp(S) V / Σ exp(S): the scores' maximum is not subtracted."""

    def attention(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        q, k, v = (inputs[name] for name in ("query", "key", "value"))
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        weights = (q @ k.mT * q.shape[-1] ** -0.5).exp()
        return {"output": weights @ v / weights.sum(-1, keepdim=True)}

    return attention


def values_without_a_gradient(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The values are detached."""
    attention = reference.build(workload, topology, **variant)
    return lambda inputs: attention({**inputs, "value": inputs["value"].detach()})


def a_mask_off_by_one(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Each query also sees the next position."""
    return _masked(lambda mask: mask._replace(shift=mask.shift + 1), workload, topology, **variant)


def a_mask_off_by_one_tile(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The first tile of keys that the window reaches is skipped with the hidden ones."""
    hides, tile = Mask.hides, reference.B_C
    Mask.hides = lambda mask, rows, columns: hides(mask, rows, slice(columns.start, columns.stop - tile))  # type: ignore[method-assign]
    return reference.build(workload, topology, **variant)


def the_other_corner(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Fewer queries than keys begin with the keys, not end with them."""
    return reference.build(workload, topology, **{**variant, "bottom_right": False})


def a_window_of_one_key_more(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The window counts the keys before the query, without its own."""
    return _masked(lambda mask: mask._replace(window=mask.window + 1), workload, topology, **variant)


def documents_that_see_each_other(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Packed documents are one sequence."""
    attention = reference.build(workload, topology, **variant)
    return lambda inputs: attention({name: x for name, x in inputs.items() if name != "cu_seqlens"})


def sinks_counted_twice(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """A row's sum begins with twice the sink's exponential."""
    attention = reference.build(workload, topology, **variant)
    return lambda inputs: attention({**inputs, "sinks": inputs["sinks"] + log(2)})


def a_capped_score_s_slope_of_one(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The backward pass takes the cap's derivative for 1."""
    Rules.slope = lambda rules, capped: 1.0  # type: ignore[method-assign]
    return reference.build(workload, topology, **variant)


def a_block_of_rows_left_out(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """FlashAttention-1's backward pass begins with the second block of rows."""
    backward = fa1.backward

    def short(q: Tensor, k: Tensor, v: Tensor, *tensors: Any) -> None:
        *rows, dk, dv, causal = tensors
        q, *rows = (x[..., fa1.B_R :, :] for x in (q, *rows))
        backward(q, k, v, *rows, dk, dv, causal)

    fa1.backward = short
    return reference.build(workload, topology, **variant)


def _masked(change: Any, workload: Workload, topology: Topology, **variant: Any) -> Function:
    make = Rules.mask
    Rules.mask = lambda rules, queries, keys: change(make(rules, queries, keys))  # type: ignore[method-assign]
    return reference.build(workload, topology, **variant)


BOTH = {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT | GRADIENT}}
SHOWN = {"parity": {"fp32": {"output", "gradient"}, "bf16": {"output", "gradient"}}}

FAULTS = {
    "a_mask_off_by_one": Fault(
        "fa2_causal", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT}}, where="output of output"
    ),
    "a_mask_off_by_one_tile": Fault("fa2_window", "dp1", SHOWN, where="output of output", workload=RAGGED),
    "the_other_corner": Fault("fa2_bottom_right", "dp1", SHOWN, where="output of output", workload=RAGGED),
    "a_window_of_one_key_more": Fault("fa2_window", "dp1", SHOWN, where="output of output", workload=RAGGED),
    "documents_that_see_each_other": Fault("fa2_varlen", "dp1", SHOWN, where="output of output", workload=RAGGED),
    "sinks_counted_twice": Fault("fa2_sinks", "dp1", SHOWN, where="output of output", workload=RAGGED),
    "a_capped_score_s_slope_of_one": Fault(
        "fa2_softcap", "dp1", {"parity": {"fp32": {"gradient"}, "bf16": {"gradient"}}}, workload=RAGGED
    ),
    "a_block_of_rows_left_out": Fault(
        "fa1", "dp1", {"parity": {"fp32": {"gradient"}, "bf16": {"gradient"}}}, workload=RAGGED
    ),
    "values_without_a_gradient": Fault("fa2", "dp1", {"parity": {"fp32": {"gradient"}, "bf16": {"gradient"}}}),
    "no_running_maximum": Fault("fa2", "dp1", {"parity": {"fp32": OUTPUT}}, where="output of output", workload="sharp"),
    "no_softmax_scale": Fault("fa2_causal", "dp1", BOTH, where="output of output"),
    "probabilities_that_are_kept": Fault("fa2", "dp1", {"memory": {"fp32": {"saved"}}}),
}
