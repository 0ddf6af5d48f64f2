"""The global norm of gradients that are distributed over ranks, and clipping by it. The topic gradient_clipping
explains the formula and the groups of ranks."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from impls.common.mesh import device
from impls.common.optimizer import clip, square

Sharded = Mapping[tuple[dist.ProcessGroup, ...], Sequence[Tensor]]
"""The groups of ranks that divide some gradients' elements → this rank's part of them."""


def global_norm(gradients: Sharded) -> Tensor:
    """‖g‖, the same float64 scalar on every rank. All ranks call it with the same groups, even ranks without a part."""
    total = torch.zeros((), dtype=torch.float64, device=device())
    for groups, mine in gradients.items():
        part = square(mine)
        for group in groups:
            dist.all_reduce(part, group=group)
        total += part
    return total.sqrt()


def clip_by_global_norm(gradients: Sharded, max_norm: float) -> None:
    """Scales gradients in place to a global norm of at most ``max_norm`` (0: never)."""
    if max_norm:
        clip([tensor for mine in gradients.values() for tensor in mine], max_norm, global_norm(gradients))
