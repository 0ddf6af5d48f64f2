"""Hybrid sharding with exactly one thing broken."""

from typing import Any

import torch.distributed as dist

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, TRAINED, UPDATE, Fault
from impls.parallelism.hybrid_shard import reference


def gradients_that_never_cross(workload: Workload, topology: Topology, group: int, **variant: Any) -> Trainer:
    """Two groups of one rank each, and no second hop between them."""
    reference.SecondHopOnce.reduce = lambda stage: stage.inside.reduce()
    return reference.build(workload, topology, group // 2, **variant)


def weights_that_cross(workload: Workload, topology: Topology, group: int, **variant: Any) -> Trainer:
    """All ranks are one group: weights are gathered from all of them, as ZeRO does."""
    return reference.build(workload, topology, topology.dp, **variant)


def a_second_hop_in_bfloat16(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Gradients cross groups rounded to bfloat16, whatever the weights' precision."""

    def reduce(stage: reference.SecondHopOnce) -> None:
        stage.inside.reduce()
        for part in stage.partitions:
            crossing = part.gradient.bfloat16()
            dist.all_reduce(crossing, group=stage.replicate)
            part.gradient.copy_(crossing)

    reference.SecondHopOnce.reduce = reduce
    return reference.build(workload, topology, **variant)


FAULTS = {
    "a_second_hop_in_bfloat16": Fault(
        "mics", "dp4", {"parity": {"fp32": {"gradient"}}}, where="step 1, gradient of ", workload="accumulated"
    ),
    "gradients_that_never_cross": Fault(
        "mics",
        "dp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": GRADIENT | UPDATE}},
        where="step 1, gradient of ",
        workload="accumulated",
    ),
    "weights_that_cross": Fault("hsdp", "dp4", {"traffic": {"fp32": {"bytes", "across_groups"}}}),
}
