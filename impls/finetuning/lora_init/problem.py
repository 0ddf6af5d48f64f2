"""A matrix whose singular values fall, and its division into adapters and a rest.

Singular vectors are known up to their signs, so the outputs are those that no sign changes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Workload

FALL = 0.8  # ratio of successive singular values: equal ones would leave their vectors open


def draw(workload: Workload, **variant: Any) -> dict[str, Any]:
    """``W`` [d, k], float64, and ``x`` [b, k]."""
    generator = torch.Generator().manual_seed(workload.seed)
    d, k = workload.model.intermediate_size, workload.model.hidden_size
    left = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]  # [d, k]
    right = torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0]  # [k, k]
    values = FALL ** torch.arange(k, dtype=torch.float64).clamp(max=30)
    x = torch.randn(workload.batch_size, k, generator=generator, dtype=torch.float64)
    return {"W": left * values @ right.T, "x": x}


def plain(inputs: Mapping[str, Any], rank: int, alpha: float, principal: bool) -> dict[str, Tensor]:
    """PiSSA by the eigenvectors of Wᵀ W; OLoRA by Gram and Schmidt's columns."""
    whole, s = inputs["W"], alpha / rank
    wide = whole.to(torch.promote_types(whole.dtype, torch.float32))
    if principal:
        values, vectors = torch.linalg.eigh(wide.T @ wide)  # ascending
        right, squares = vectors[:, -rank:], values[-rank:]  # [k, r], [r]
        part = wide @ right @ right.T  # [d, k]
        a = (squares.sqrt() / s).sqrt()[:, None] * right.T  # [r, k]
        b = wide @ right / (s * squares.sqrt()).sqrt()  # [d, r]
    else:
        columns: list[Tensor] = []
        for j in range(rank):
            rest = wide[:, j]
            for q in columns * 2:  # twice, for digits
                rest = rest - q * (q @ rest)
            columns.append(rest / rest.norm())
        b = torch.stack(columns, 1)  # [d, r]
        a = b.T @ wide  # [r, k]
        part = s * b @ a
    return outputs(a, b, s, (wide - part).to(whole.dtype), inputs["x"])


def outputs(a: Tensor, b: Tensor, s: float, rest: Tensor, x: Tensor) -> dict[str, Tensor]:
    """``part``: s B A [d, k]; ``rest``: the frozen matrix [d, k]; ``rows_a`` and ``columns_b``: their lengths [r], by
    which the two share the part; ``y``: what the adapted layer makes of x, [b, d]."""
    part = s * b @ a
    lengths = {"rows_a": a.norm(dim=1).sort().values, "columns_b": b.norm(dim=0).sort().values}
    return {"part": part, "rest": rest, **lengths, "y": x.to(part.dtype) @ (rest.to(part.dtype) + part).T}
