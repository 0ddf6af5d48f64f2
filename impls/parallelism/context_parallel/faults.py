"""Context parallelism with exactly one thing broken."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from harness.spec.fault import GRADIENT, OUTPUT, Fault
from impls.parallelism.context_parallel import reference, ring


def no_log_sum_exp(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The ring adds the softmaxes of its blocks, each of which has weights that sum to 1."""

    def added(output: Tensor, logsumexp: Tensor, o_b: Tensor, l_b: Tensor) -> None:
        output.add_(o_b)
        torch.logaddexp(logsumexp, l_b, out=logsumexp)

    ring.merge = added
    return reference.build(workload, topology, **variant)


def blocks_sent_in_float32(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """Keys and values are widened before they go round, not where they arrive: twice the bytes."""

    class Wide(ring.Passing):
        def __init__(self, place: ring.Ring, tensors: Sequence[Tensor]) -> None:
            super().__init__(place, [x.float() for x in tensors])
            self.dtype = tensors[0].dtype

        def wait(self) -> list[Tensor]:
            return [x.to(self.dtype) for x in super().wait()]

    ring.Passing = Wide
    return reference.build(workload, topology, **variant)


def exponentials_that_overflow(workload: Workload, topology: Topology, **variant: Any) -> Function:
    """The log-sum-exp of two blocks is taken by exponentials that may overflow."""

    def merge(o: Tensor, logsumexp: Tensor, o_b: Tensor, l_b: Tensor) -> None:
        ours, theirs = logsumexp.exp(), l_b.exp()
        o.lerp_(o_b.to(o.dtype), (theirs / (ours + theirs)).unsqueeze(-1))
        logsumexp.copy_((ours + theirs).log())

    ring.merge = merge
    return reference.build(workload, topology, **variant)


FAULTS = {
    "exponentials_that_overflow": Fault(
        "ring_zigzag", "cp2", {"parity": {"fp32": OUTPUT}}, where="output of output", workload="sharp"
    ),
    "no_log_sum_exp": Fault(
        "ring_zigzag",
        "cp2",
        {"parity": {"fp32": OUTPUT | GRADIENT, "bf16": OUTPUT | GRADIENT}},
        where="output of output",
    ),
    "blocks_sent_in_float32": Fault("ring", "cp2", {"traffic": {"bf16": {"bytes"}}}),
}
