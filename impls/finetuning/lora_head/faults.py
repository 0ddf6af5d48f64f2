"""Adapters at the ends with exactly one thing broken."""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LOSS, MERGED, REPLAYED, UNMERGED, UPDATE, Fault
from impls.finetuning.lora_head import reference
from impls.finetuning.lora_head.grid import ADAPTED, SHARED


def head_takes_the_base(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """A fused head multiplies with the frozen matrix alone, and the adapter's gradient is zero."""
    trainer = reference.build(workload, topology, **variant)
    above = trainer.adapted[-1]
    above.forward = lambda y: (
        F.linear(y, above.W) + 0.0 * F.linear(F.linear(y, above.A.to(y.dtype)), above.B.to(y.dtype))
    )
    return trainer


def tied_head_forgotten(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The head has the tied matrix without its adapter."""
    reference.TiedHead.forward = lambda head, y: F.linear(y, head.ends[0].E)
    return reference.build(workload, topology, **variant)


def scale_missing_in_the_lookup(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The head's part of a tied adapter has s, the embedding's has not."""

    def forward(end: reference.EmbeddingLoRA, t: Tensor) -> Tensor:
        x = F.embedding(t, end.E)
        return x + F.linear(F.embedding(t, end.A.T).to(x.dtype), end.B.to(x.dtype))

    reference.EmbeddingLoRA.forward = forward
    return reference.build(workload, topology, **variant)


def a_step_for_each_end(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """A tied adapter that two parameters hold is stepped twice."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.optimizer.step

    def twice() -> None:
        update()
        update()

    trainer.optimizer.step = twice
    return trainer


def merged_at_each_end(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """E + 2 s (B A)ᵀ."""
    honest = reference.EmbeddingLoRA.merge

    def merge(end: reference.EmbeddingLoRA) -> None:
        honest(end)
        honest(end)

    reference.EmbeddingLoRA.merge = merge
    return reference.build(workload, topology, **variant)


def left_in_the_embedding(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The adapter is not taken out again."""
    reference.EmbeddingLoRA.unmerge = torch.no_grad()(lambda end: None)
    return reference.build(workload, topology, **variant)


BOTH = ("fp32", "bf16")
FAULTS = {
    "head_takes_the_base": Fault(
        "lora_head", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT | LOSS)}, workload=ADAPTED
    ),
    "tied_head_forgotten": Fault("lora_tied", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT | LOSS)}, workload=SHARED),
    "scale_missing_in_the_lookup": Fault(
        "lora_tied", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT)}, workload=SHARED
    ),
    "a_step_for_each_end": Fault(
        "lora_tied", "dp1", {"parity": dict.fromkeys(BOTH, REPLAYED | UPDATE)}, workload=SHARED
    ),
    "merged_at_each_end": Fault("lora_tied", "dp1", {"parity": dict.fromkeys(BOTH, MERGED)}, workload=SHARED),
    "left_in_the_embedding": Fault(
        "lora_embedding", "dp1", {"parity": dict.fromkeys(BOTH, UNMERGED)}, workload=ADAPTED
    ),
}
