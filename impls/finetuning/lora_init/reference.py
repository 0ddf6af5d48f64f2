"""Adapters that start as a part of the frozen matrix, which keeps the rest: W = W' + s B A.

    W  [d, k]      A  [r, k]      B  [d, r]      s = α/r

PiSSA (Meng et al. 2024, equations 2 to 4): the part of W with the r largest singular values, shared evenly,

    W = U Σ Vᵀ      B = U_r Σ_r^½ s^−½      A = s^−½ Σ_r^½ V_rᵀ

OLoRA (Büyükakyüz 2024, algorithm 1): W = Q R, and

    B = Q_r, the first r columns      A = R_r, the first r rows

The paper of OLoRA and PEFT subtract s B A of these, so the part is s times larger than W's own where s is not 1; the
adapted layer computes W x all the same. Both are decomposed in float32 at least.

LoftQ (Li et al. 2023, algorithm 1): the frozen matrix is stored in four bits, Q, and the adapter starts as the best
approximation of what that lost, so that ‖W − Q − s B A‖ is small; then Q is the rounding of what the adapter leaves,

    for t = 1 … T:      Q_t ← q(W − s B A)      s B A ← the part of W − Q_t with the r largest singular values

                        W ──q──▶ Q ──W − Q, r values──▶ B A ──W − B A, q──▶ Q ──▶ …

With T = 1 this is QLoRA's Q with another start of A and B. The paper has no s; here s B A is its A Bᵀ.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from impls.finetuning.lora_init.problem import four_bits, outputs


def pissa(W: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    U, values, Vt = torch.linalg.svd(W, full_matrices=False)  # [d, k], [k] descending, [k, k]  # noqa: N806
    half = (values[:rank] / s).sqrt()  # [r]
    return half[:, None] * Vt[:rank], U[:, :rank] * half  # A [r, k], B [d, r]


def olora(W: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    Q, R = torch.linalg.qr(W)  # [d, k], [k, k]  # noqa: N806
    return R[:rank], Q[:, :rank]  # A [r, k], B [d, r]


def loftq(W: Tensor, rank: int, s: float, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: N803
    """A [r, k], B [d, r], Q [d, k], and the errors ‖W − Q_t − s B A‖ before the first step and after each, [T + 1]."""
    A, B = W.new_zeros(rank, W.shape[1]), W.new_zeros(W.shape[0], rank)  # noqa: N806
    errors = [(W - four_bits(W)).norm()]
    for _ in range(steps):
        Q = four_bits(W - s * B @ A)  # [d, k]  # noqa: N806
        A, B = pissa(W - Q, rank, s)  # noqa: N806
        errors.append((W - Q - s * B @ A).norm())
    return A, B, Q, torch.stack(errors)


def build(workload: Workload, topology: Topology, rank: int, alpha: float, start: str, steps: int = 1) -> Function:
    s = alpha / rank

    def divide(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        whole = inputs["W"]  # [d, k]
        W = whole.to(torch.promote_types(whole.dtype, torch.float32))  # noqa: N806
        if start == "loftq":
            A, B, Q, errors = loftq(W, rank, s, steps)  # noqa: N806
            return {"errors": errors} if steps > 1 else outputs(A, B, s, Q.to(whole.dtype), inputs["x"])
        A, B = (pissa if start == "pissa" else olora)(W, rank, s)  # noqa: N806
        return outputs(A, B, s, (W - s * B @ A).to(whole.dtype), inputs["x"])

    return divide
