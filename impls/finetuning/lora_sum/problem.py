"""A frozen matrix and two adapters of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.spec import Workload


def draw(workload: Workload, rank: int, **variant: Any) -> dict[str, Tensor]:
    """``x`` [b, k], ``W`` [d, k], and ``A1`` and ``A2`` [r, k], ``B1`` and ``B2`` [d, r], float64; all but W are
    differentiated."""
    generator = torch.Generator().manual_seed(workload.seed)
    d, k = workload.model.intermediate_size, workload.model.hidden_size
    shapes = {"x": (workload.batch_size, k), "W": (d, k)}
    shapes |= {"A1": (rank, k), "B1": (d, rank), "A2": (rank, k), "B2": (d, rank)}

    def normal(name: str, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn if name == "x" else drawn / shape[1] ** 0.5

    return {name: normal(name, *shape).requires_grad_(name != "W") for name, shape in shapes.items()}


def plain(
    inputs: Mapping[str, Tensor], rank: int, alphas: Sequence[float], weights: Sequence[float], kind: str
) -> dict[str, Tensor]:
    """By the products, and for ``svd`` with the digits that a decomposition costs. ``both`` [b, d]: the layer with both
    adapters; ``delta`` [d, k]: their weighted sum; ``combined`` [b, d]: the layer with it; ``merged`` [d, k]: with both
    folded in; ``unmerged`` [d, k]: taken out."""
    x, W = inputs["x"], inputs["W"]  # noqa: N806
    wide = torch.promote_types(W.dtype, torch.float32)
    products = [alpha / rank * inputs[f"B{i}"].to(wide) @ inputs[f"A{i}"].to(wide) for i, alpha in enumerate(alphas, 1)]
    delta = sum((w * product for w, product in zip(weights, products, strict=True)), torch.zeros_like(products[0]))
    if kind == "svd":
        left, values, right = torch.linalg.svd(delta.detach(), full_matrices=False)
        delta = left * values @ right
    merged = W
    for product in products:
        merged = (merged + product.detach()).to(W.dtype)
    unmerged = merged
    for product in products:
        unmerged = (unmerged - product.detach()).to(W.dtype)
    base = x @ W.T
    return {
        "both": base + x @ sum(products, torch.zeros_like(delta)).to(x.dtype).T,
        "delta": delta.detach(),
        "combined": (base + x @ delta.to(x.dtype).T).detach(),
        "merged": merged,
        "unmerged": unmerged,
    }
