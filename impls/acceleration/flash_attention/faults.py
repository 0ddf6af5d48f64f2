"""FlashAttention with exactly one thing broken."""

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.acceleration.flash_attention import reference


def no_softmax_scale(workload: Workload, topology: Topology, causal: bool) -> Function:
    """softmax(QKᵀ) V, without 1/√d."""
    attention = reference.build(workload, topology, causal)

    def unscaled(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return attention({**inputs, "query": inputs["query"] * workload.model.head_dim**0.5})

    return unscaled


def probabilities_that_are_kept(workload: Workload, topology: Topology, causal: bool) -> Function:
    """The naive form: the backward pass finds the s × s probabilities in memory."""

    def attention(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"output": reference.naive(inputs["query"], inputs["key"], inputs["value"], causal)}

    return attention


def no_running_maximum(workload: Workload, topology: Topology, causal: bool) -> Function:
    """exp(S) V / Σ exp(S): the scores' maximum is not subtracted."""

    def attention(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        q, k, v = (inputs[name] for name in ("query", "key", "value"))
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        weights = (q @ k.mT * q.shape[-1] ** -0.5).exp()
        if causal:
            weights = weights.tril()
        return {"output": weights @ v / weights.sum(-1, keepdim=True)}

    return attention


def values_without_a_gradient(workload: Workload, topology: Topology, causal: bool) -> Function:
    """The values are detached."""
    attention = reference.build(workload, topology, causal)
    return lambda inputs: attention({**inputs, "value": inputs["value"].detach()})


def a_mask_off_by_one(workload: Workload, topology: Topology, causal: bool) -> Function:
    """Each query also sees the next position."""

    def attention(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        q, k, v = (inputs[name] for name in ("query", "key", "value"))
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        seen = torch.ones_like(scores[0, 0], dtype=torch.bool).tril(1)
        return {"output": scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v}

    return attention


FAULTS = {
    "a_mask_off_by_one": Fault(
        "fa2_causal", "dp1", {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT}}, where="output of output"
    ),
    "values_without_a_gradient": Fault("fa2", "dp1", {"parity": {"fp32": {"gradient"}, "bf16": {"gradient"}}}),
    "no_running_maximum": Fault("fa2", "dp1", {"parity": {"fp32": OUTPUT}}, where="output of output", workload="sharp"),
    "no_softmax_scale": Fault(
        "fa2_causal",
        "dp1",
        {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT | GRADIENT}},
        where="output of output",
    ),
    "probabilities_that_are_kept": Fault("fa2", "dp1", {"memory": {"fp32": {"saved"}}}),
}
