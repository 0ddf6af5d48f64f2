"""Gradient clipping with exactly one thing broken."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import REPLAYED, TRAINED, Fault
from impls.acceleration.gradient_clipping import reference
from impls.common import optimizer
from impls.common.clipping import Sharded, clip_by_global_norm
from impls.parallelism.data_parallel import reference as data_parallel
from impls.parallelism.tensor_parallel import reference as tensor_parallel


def replicas_counted_on_every_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The norm is summed over all that each rank holds: what is replicated counts once a rank."""

    def clip_by_everything(gradients: Sharded, max_norm: float) -> None:
        groups = max(gradients, key=len)
        clip_by_global_norm({groups: [tensor for mine in gradients.values() for tensor in mine]}, max_norm)

    tensor_parallel.clip_by_global_norm = clip_by_everything
    return reference.build(workload, topology, **variant)


def gathered_for_the_norm(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Every rank gathers the whole gradient to take its norm, where one number would do."""

    def gather(mine: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        part = torch.cat([tensor.flatten() for tensor in mine])
        dist.all_gather_into_tensor(part.new_empty(group.size() * part.numel()), part, group=group)

    def clip(gradients: Sharded, max_norm: float) -> None:
        for groups, mine in gradients.items():
            for group in groups:
                gather(mine, group)
        clip_by_global_norm(gradients, max_norm)

    tensor_parallel.clip_by_global_norm = clip
    return reference.build(workload, topology, **variant)


def clipped_by_value(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each element is clipped by itself."""

    def clamp(gradients: Sequence[Tensor], max_norm: float) -> None:
        for gradient in gradients:
            gradient.clamp_(-max_norm / gradient.numel() ** 0.5, max_norm / gradient.numel() ** 0.5)

    data_parallel.clip = clamp
    return reference.build(workload, topology, **variant)


def a_minimum_that_drops_nan(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The scale is Python's min(1.0, c / norm), which is 1.0 if the norm is NaN."""

    def clip(gradients: Sequence[Tensor], max_norm: float) -> None:
        scale = min(1.0, max_norm / (float(optimizer.square(gradients).sqrt()) + 1e-6))
        torch._foreach_mul_(gradients, scale)

    data_parallel.clip = clip
    return reference.build(workload, topology, **variant)


def nan_taken_for_zero(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """What is NaN in a gradient becomes zero before clipping, and no one is told."""

    def clip(gradients: Sequence[Tensor], max_norm: float) -> None:
        for gradient in gradients:
            gradient.nan_to_num_(0.0)
        optimizer.clip(gradients, max_norm)

    data_parallel.clip = clip
    return reference.build(workload, topology, **variant)


def a_rank_skips_alone(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A rank whose own loss is NaN keeps its weights, while the others step."""
    trainer = reference.build(workload, topology, **variant)
    backward, update, last = trainer.backward, trainer.update, Tensor()

    def watched(batch: Batch) -> Tensor:
        nonlocal last
        last = backward(batch)
        return last

    def skip() -> None:
        kept = {name: weight.clone() for name, weight in trainer.parameters().items()}
        update()
        if last.isnan():
            for name, weight in trainer.parameters().items():
                weight.copy_(kept[name])

    trainer.backward, trainer.update = watched, skip
    return trainer


FAULTS = {
    "a_minimum_that_drops_nan": Fault("clip", "dp2", {"nonfinite": {"fp32": {"lost"}}}, workload="poisoned"),
    "nan_taken_for_zero": Fault("clip", "dp2", {"nonfinite": {"fp32": {"lost"}}}, workload="poisoned"),
    "a_rank_skips_alone": Fault("clip", "dp2", {"nonfinite": {"fp32": {"lost", "replicas"}}}, workload="poisoned"),
    "clipped_by_value": Fault("clip", "dp2", {"parity": {"fp32": REPLAYED, "bf16": REPLAYED}}, workload="thorough"),
    "replicas_counted_on_every_rank": Fault(
        "clip",
        "tp4",
        {"parity": {"fp32": REPLAYED | TRAINED, "bf16": {"update slope"}}},
        where="step 2, loss ",
        workload="clipped",
    ),
    "gathered_for_the_norm": Fault("clip", "tp2", {"traffic": {"fp32": {"bytes"}}}, workload="clipped"),
}
