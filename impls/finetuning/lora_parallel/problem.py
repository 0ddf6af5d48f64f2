"""A block of two frozen matrices with an adapter each."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Workload


def draw(workload: Workload, rank: int, **variant: Any) -> dict[str, Tensor]:
    """``x`` [b, s, h]; ``up`` [f, h] and ``down`` [h, f], frozen; ``A_up`` [r, h], ``B_up`` [f, r], ``A_down`` [r, f],
    ``B_down`` [h, r]: float64, differentiated."""
    generator = torch.Generator().manual_seed(workload.seed)
    h, f = workload.model.hidden_size, workload.model.intermediate_size
    shapes = {"up": (f, h), "down": (h, f), "A_up": (rank, h), "B_up": (f, rank), "A_down": (rank, f)}
    shapes["B_down"] = h, rank

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {name: normal(*shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
    inputs["x"] = normal(workload.batch_size, workload.sequence_length, h)
    return {name: tensor.requires_grad_(name not in ("up", "down")) for name, tensor in inputs.items()}


def plain(inputs: Mapping[str, Tensor], rank: int, alpha: float, **variant: Any) -> dict[str, Tensor]:
    """On one rank: ``output`` [b, s, h]."""

    def adapted(x: Tensor, name: str) -> Tensor:
        low = x @ inputs[f"A_{name}"].T
        return x @ inputs[name].T + alpha / rank * (low @ inputs[f"B_{name}"].T)

    return {"output": adapted(F.silu(adapted(inputs["x"], "up")), "down")}
