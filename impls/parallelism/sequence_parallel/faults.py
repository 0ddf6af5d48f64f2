"""Sequence parallelism with exactly one thing broken."""

from typing import Any

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, TRAINED, Fault
from impls.parallelism.sequence_parallel import reference


def no_sum_over_sequence(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The gains of the layers' norms see this rank's part of the sequence only; those of the heads are summed."""
    reference.SequenceParallel.summed = ("q_norm.weight", "k_norm.weight")
    return reference.build(workload, topology, **variant)


def the_whole_sequence_kept(workload: Workload, topology: Topology) -> Trainer:
    """What was gathered is kept for the backward pass, which does not gather it again."""
    return reference.build(workload, topology, gather_again=False)


FAULTS = {
    "no_sum_over_sequence": Fault(
        "sp",
        "tp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": {"gradient"}}},
        where="norm.weight",
        workload="uneven_tied",
    ),
    "the_whole_sequence_kept": Fault("sp", "tp4", {"memory": {"fp32": {"activations"}}}),
}
