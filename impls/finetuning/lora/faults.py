"""Low-rank adapters with exactly one thing broken."""

import torch
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import FROZEN, GRADIENT, LATER_GRADIENT, LOSS, MERGED, REPLICAS, UNMERGED, UPDATE, Fault
from impls.finetuning.lora import reference


def divided_by_r(workload: Workload, topology: Topology, rslora: bool, **variant: float) -> Trainer:
    """α/r in place of rsLoRA's α/√r."""
    return reference.build(workload, topology, **variant)


def scale_missing(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """s is 1."""
    reference.scale = lambda rank, alpha, rslora: 1.0
    return reference.build(workload, topology, **variant)


def scale_only_forward(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The gradients of A and B lack s."""
    trainer = reference.build(workload, topology, **variant)
    gradients = trainer.backward

    def backward(batch: object) -> Tensor:
        loss = gradients(batch)
        for layer in trainer.adapted.values():
            for p in (layer.A, layer.B):
                p.grad /= layer.s
        return loss

    trainer.backward = backward
    return trainer


def base_not_frozen(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """A step moves one adapted matrix by a millionth."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def thawing() -> None:
        update()
        with torch.no_grad():
            next(iter(trainer.adapted.values())).W[0] *= 1 + 2**-7 if workload.dtype == "bf16" else 1 + 1e-6

    trainer.update = thawing
    return trainer


def groups_swapped(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """A's steps are λ times B's."""
    trainer = reference.build(workload, topology, **variant)
    slow, fast = trainer.optimizer.param_groups
    slow["lr"], fast["lr"] = fast["lr"], slow["lr"]
    return trainer


def gradient_of_b_missing(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """B never learns, as where a fused kernel takes the base's weight alone."""
    trainer = reference.build(workload, topology, **variant)
    backward = trainer.backward

    def without(batch: object) -> Tensor:
        loss = backward(batch)
        for layer in trainer.adapted.values():
            layer.B.grad.zero_()
        return loss

    trainer.backward = without
    return trainer


def gradients_of_one_rank(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """Each rank steps by its own share of the batch."""
    reference.sum_flat = lambda tensors, group: None
    return reference.build(workload, topology, **variant)


def merged_twice(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """W₀ + 2 s B A."""
    honest = reference.LoRA.merge

    def merge(layer: reference.LoRA) -> None:
        honest(layer)
        honest(layer)

    reference.LoRA.merge = merge
    return reference.build(workload, topology, **variant)


def unmerged_without_the_scale(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """B A is taken out in place of s B A."""

    @torch.no_grad()
    def unmerge(layer: reference.LoRA) -> None:
        layer.W -= layer.B @ layer.A

    reference.LoRA.unmerge = unmerge
    return reference.build(workload, topology, **variant)


def norm_of_the_base(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """‖W₀‖ in place of ‖W₀ + s B A‖."""
    reference.DoRA.norm = torch.no_grad()(lambda layer: torch.linalg.vector_norm(layer.W, dim=1))
    return reference.build(workload, topology, **variant)


def norm_differentiated(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """‖V‖ has a gradient."""
    reference.DoRA.norm = lambda layer: torch.linalg.vector_norm(layer.W + layer.s * layer.B @ layer.A, dim=1)
    return reference.build(workload, topology, **variant)


def norm_of_columns(workload: Workload, topology: Topology, **variant: float) -> Trainer:
    """The magnitude is divided by a norm over the other dimension, scaled to the same mean."""

    @torch.no_grad()
    def norm(layer: reference.DoRA) -> Tensor:
        whole = layer.W + layer.s * layer.B @ layer.A
        rows, columns = (torch.linalg.vector_norm(whole, dim=dim) for dim in (1, 0))
        return rows.mean() * (columns / columns.mean()).repeat(len(rows) // len(columns) + 1)[: len(rows)]

    reference.DoRA.norm = norm
    return reference.build(workload, topology, **variant)


BOTH = ("fp32", "bf16")
FAULTS = {
    "divided_by_r": Fault("rslora", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT | LOSS)}),
    "scale_missing": Fault("lora", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT)}),
    "scale_only_forward": Fault("lora", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT)}),
    "base_not_frozen": Fault("lora", "dp1", {"parity": dict.fromkeys(BOTH, FROZEN)}),
    "groups_swapped": Fault("lora_plus", "dp1", {"parity": dict.fromkeys(BOTH, UPDATE | LATER_GRADIENT)}),
    "gradient_of_b_missing": Fault("lora", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT)}),
    "gradients_of_one_rank": Fault("lora", "dp2", {"parity": dict.fromkeys(BOTH, GRADIENT | REPLICAS)}),
    "merged_twice": Fault("lora", "dp1", {"parity": dict.fromkeys(BOTH, MERGED)}),
    "unmerged_without_the_scale": Fault("lora", "dp1", {"parity": dict.fromkeys(BOTH, UNMERGED)}),
    "norm_of_the_base": Fault("dora", "dp1", {"parity": {"fp32": GRADIENT, "bf16": {"gradient"}}}),
    "norm_differentiated": Fault("dora", "dp1", {"parity": {"fp32": GRADIENT, "bf16": {"gradient"}}}),
    "norm_of_columns": Fault("dora", "dp1", {"parity": dict.fromkeys(BOTH, GRADIENT)}),
}
