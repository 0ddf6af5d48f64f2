"""Latent attention with exactly one thing broken."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, Fault
from impls.acceleration.latent_attention import reference
from impls.acceleration.latent_attention.sizes import sizes


def a_rotary_key_of_its_own_heads(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The one key of all heads learns from this rank's alone; the latents beside it from all."""
    shared = reference.copy

    def unsummed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        rotary = sizes(workload.model).rotary
        return torch.cat([shared(x[..., :-rotary], group), x[..., -rotary:]], -1)

    reference.copy = unsummed
    return reference.build(workload, topology, **variant)


def output_summed_in_float32(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The output is widened before its sum over ranks, not after it: twice the bytes."""
    reduce = reference.reduce
    reference.reduce = lambda output, group: reduce(output.float(), group).to(output.dtype)
    return reference.build(workload, topology, **variant)


def results_of_the_first_inputs(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """What the first call was given is computed again and again."""
    attention, first = reference.build(workload, topology, **variant), {}

    class Stale:
        split, gather = attention.split, attention.gather

        def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            for name, x in inputs.items():
                first.setdefault(name, x.detach())
            return attention({name: x + (first[name] - x).detach() for name, x in inputs.items()})

    return Stale()


FAULTS = {
    "a_rotary_key_of_its_own_heads": Fault(
        "mla", "tp2", {"parity": {"fp32": GRADIENT, "bf16": GRADIENT}}, where="gradient of kv_down"
    ),
    "output_summed_in_float32": Fault("mla", "tp2", {"traffic": {"bf16": {"bytes"}}}),
    "results_of_the_first_inputs": Fault("mla", "dp1", {"throughput": {"fp32": {"fresh_inputs"}}}),
}
