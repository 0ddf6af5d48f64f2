"""Pairs (x, y) related by the frozen matrix plus a change of rank 4."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.spec import Workload

SIZE = 64


class Pairs(NamedTuple):
    """[batch_size, SIZE] each, float64."""

    x: Tensor
    y: Tensor


def base(workload: Workload) -> Tensor:
    """W₀, [SIZE, SIZE], with numbers that are representable in bfloat16."""
    return torch.randn(SIZE, SIZE, generator=_generator(workload, -1)).bfloat16().float() / 8


def batch(workload: Workload, step: int, **options: Any) -> Pairs:
    change = torch.ones(SIZE, 4, dtype=torch.float64) @ torch.eye(4, SIZE, dtype=torch.float64)
    x = torch.randn(workload.batch_size, SIZE, generator=_generator(workload, step)).bfloat16().double()
    return Pairs(x, x @ (base(workload).double() + change).T)


def _generator(workload: Workload, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * workload.seed + step + 1)
