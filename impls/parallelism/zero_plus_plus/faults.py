"""ZeRO++ with exactly one thing broken."""

from typing import Any

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import LATER_GRADIENT, TRAINED, Fault
from impls.parallelism.zero_plus_plus import reference


def a_stale_partition(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The secondary partition outlives the update: later steps use the first step's weights."""
    reference.Secondary.expire = lambda secondary: None
    return reference.build(workload, topology, **variant)


def no_secondary_partition(workload: Workload, topology: Topology, hierarchical: bool, **variant: Any) -> Trainer:
    """The backward pass gathers from all ranks, as the forward pass does."""
    return reference.build(workload, topology, hierarchical=False, **variant)


FAULTS = {
    "a_stale_partition": Fault(
        "hpz", "dp2", {"parity": {"fp32": LATER_GRADIENT | TRAINED, "bf16": {"update"}}}, where="step 2, gradient of "
    ),
    "no_secondary_partition": Fault("hpz", "dp4", {"traffic": {"fp32": {"bytes", "across_groups"}}}),
}
