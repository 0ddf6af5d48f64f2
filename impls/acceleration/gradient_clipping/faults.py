"""Gradient clipping with exactly one thing broken."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import REPLAYED, TRAINED, Fault
from impls.acceleration.gradient_clipping import reference
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


FAULTS = {
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
