"""Model parallelism by layers with exactly one thing broken."""

from typing import Any

from torch import Tensor

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import Fault
from impls.parallelism.model_parallel import reference


def rounded_at_the_boundary(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Activations and their gradients arrive in bfloat16, whatever the model's precision."""
    trainer = reference.build(workload, topology, **variant)
    receive = trainer._receive

    def rounded(batch: Batch, source: int) -> Tensor:
        arrived = receive(batch, source)
        return arrived.bfloat16().to(arrived.dtype)

    trainer._receive = rounded
    return trainer


FAULTS = {
    "rounded_at_the_boundary": Fault(
        "layers", "pp2", {"parity": {"fp32": {"gradient", "update"}}}, where="step 1, gradient of model."
    ),
}
