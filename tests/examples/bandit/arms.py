"""The arms: their rewards are normal, with means 0, 0.2, … 0.8."""

import torch
from torch import Tensor

MEANS = torch.arange(5) * 0.2


def pull(arms: Tensor, generator: torch.Generator) -> Tensor:
    """Rewards of the arms pulled, [n]."""
    return MEANS[arms] + 0.1 * torch.randn(arms.shape, generator=generator)
