"""A matrix whose singular values fall, and its division into adapters and a rest.

Singular vectors are known up to their signs, so the outputs are those that no sign changes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Workload
from impls.finetuning.nf4.reference import BLOCK, dequantise, normal_float, quantise

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


def plain(inputs: Mapping[str, Any], rank: int, alpha: float, start: str, steps: int = 1) -> dict[str, Tensor]:
    """PiSSA by the eigenvectors of Wᵀ W; OLoRA by Gram and Schmidt's columns; LoftQ by PiSSA of what rounding lost.

    After its first step, LoftQ rounds what a decomposition left, and a last digit decides between two codes; so of
    several steps there are the errors alone, to which both codes are as good."""
    whole, s = inputs["W"], alpha / rank
    wide = whole.to(torch.promote_types(whole.dtype, torch.float32))
    if start == "olora":
        a, b = orthogonal(wide, rank)
    elif start == "pissa":
        a, b = principal(wide, rank, s)
    else:
        part, errors = torch.zeros_like(wide), [(wide - four_bits(wide)).norm()]
        for _ in range(steps):
            frozen = four_bits(wide - part)
            a, b = principal(wide - frozen, rank, s)
            part = s * b @ a
            errors.append((wide - frozen - part).norm())
        return {"errors": torch.stack(errors)} if steps > 1 else outputs(a, b, s, frozen.to(whole.dtype), inputs["x"])
    return outputs(a, b, s, (wide - s * b @ a).to(whole.dtype), inputs["x"])


def principal(matrix: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:
    """A [r, k] and B [d, r]."""
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)  # ascending
    right, squares = vectors[:, -rank:], values[-rank:]  # [k, r], [r]
    return (squares.sqrt() / s).sqrt()[:, None] * right.T, matrix @ right / (s * squares.sqrt()).sqrt()


def orthogonal(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    columns: list[Tensor] = []
    for j in range(rank):
        rest = matrix[:, j]
        for q in columns * 2:  # twice, for digits
            rest = rest - q * (q @ rest)
        columns.append(rest / rest.norm())
    b = torch.stack(columns, 1)  # [d, r]
    return b.T @ matrix, b


def four_bits(matrix: Tensor) -> Tensor:
    """NF4 and back, [d, k], which the topic nf4 compares weight by weight."""
    values = normal_float().to(matrix.device)
    codes, scales = quantise(matrix.flatten().float(), values, BLOCK)
    return dequantise(codes, scales, values, BLOCK).view_as(matrix).to(matrix.dtype)


def outputs(a: Tensor, b: Tensor, s: float, rest: Tensor, x: Tensor) -> dict[str, Tensor]:
    """``part``: s B A [d, k]; ``rest``: the frozen matrix [d, k]; ``rows_a`` and ``columns_b``: their lengths [r], by
    which the two share the part; ``y``: what the adapted layer makes of x, [b, d]."""
    part = s * b @ a
    lengths = {"rows_a": a.norm(dim=1).sort().values, "columns_b": b.norm(dim=0).sort().values}
    return {"part": part, "rest": rest, **lengths, "y": x.to(part.dtype) @ (rest.to(part.dtype) + part).T}
