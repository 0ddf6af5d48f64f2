"""Several adapters of one frozen matrix (Hu et al. 2021, §4.1).

    both at once      h = W x + s₁ B₁ A₁ x + s₂ B₂ A₂ x
    weighted sum      ΔW = w₁ s₁ B₁ A₁ + w₂ s₂ B₂ A₂

    W  [d, k], frozen      A_i  [r, k]      B_i  [d, r]      s_i = α_i/r      w_i  any sign

ΔW has rank 2r, and is itself an adapter, in two ways:

    cat      B = [w₁ s₁ B₁ │ w₂ s₂ B₂]  [d, 2r]      A = [A₁; A₂]  [2r, k]      B A = ΔW by blocks
    svd      ΔW = U Σ Vᵀ:  B = U Σ  [d, q]           A = Vᵀ  [q, k]             with q ≥ 2r; a smaller q leaves a rest

A sum of the factors, √(w₁ s₁) B₁ + √(w₂ s₂) B₂ by √(w₁ s₁) A₁ + √(w₂ s₂) A₂, has rank r and is not ΔW: B₁ A₂ and B₂ A₁
come in, as large as what was asked for.

    B₁A₁ + B₂A₂        (B₁ + B₂)(A₁ + A₂) = B₁A₁ + B₂A₂ + B₁A₂ + B₂A₁

A merged W has both s_i B_i A_i in it, whatever the weights, and each is taken out by itself.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Function, Topology, Workload

Factors = list[tuple[Tensor, Tensor, float]]  # A, B, and their factor: s, or w s


def adapted(x: Tensor, W: Tensor, adapters: Factors) -> Tensor:  # noqa: N803
    """x [b, k] → h [b, d]; factors are float32, and rounded to x's precision for the product."""
    h = F.linear(x, W)
    for A, B, s in adapters:  # noqa: N806
        h = h + s * F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))
    return h


def cat(adapters: Factors) -> tuple[Tensor, Tensor]:
    """A [2r, k] and B [d, 2r] of the weighted sum."""
    return torch.cat([A for A, _, _ in adapters], 0), torch.cat([ws * B for _, B, ws in adapters], 1)


def svd(adapters: Factors) -> tuple[Tensor, Tensor]:
    """The same from the singular values of the sum."""
    A, B = cat(adapters)  # noqa: N806
    U, Σ, Vt = torch.linalg.svd(B @ A, full_matrices=False)  # [d, k], [k] descending, [k, k]  # noqa: N806
    q = len(A)  # the rank of the sum, 2r
    return Vt[:q], U[:, :q] * Σ[:q]


@torch.no_grad()
def merge(W: Tensor, adapters: Factors, sign: int) -> Tensor:  # noqa: N803
    """W ± s B A, [d, k], one adapter after another."""
    for A, B, s in adapters:  # noqa: N806
        W = (W + sign * s * B @ A).to(W.dtype)  # noqa: N806
    return W


def build(
    workload: Workload, topology: Topology, rank: int, alphas: Sequence[float], weights: Sequence[float], kind: str
) -> Function:
    def layer(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x, W = inputs["x"], inputs["W"]  # [b, k], [d, k]  # noqa: N806
        wide = torch.promote_types(W.dtype, torch.float32)
        factors = [
            (inputs[f"A{i}"].to(wide), inputs[f"B{i}"].to(wide), alpha / rank) for i, alpha in enumerate(alphas, 1)
        ]
        weighted = [(A.detach(), B.detach(), w * s) for w, (A, B, s) in zip(weights, factors, strict=True)]
        A, B = (svd if kind == "svd" else cat)(weighted)  # [2r, k], [d, 2r]  # noqa: N806
        merged = merge(W, factors, 1)
        return {
            "both": adapted(x, W, factors),
            "delta": B @ A,
            "combined": adapted(x.detach(), W, [(A, B, 1.0)]),
            "merged": merged,
            "unmerged": merge(merged, factors, -1),
        }

    return layer
