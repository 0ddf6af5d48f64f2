"""Adapters that start as a part of the frozen matrix, which keeps the rest: W = W' + s B A.

    W  [d, k]      A  [r, k]      B  [d, r]      s = α/r

PiSSA (Meng et al. 2024, equations 2 to 4): the part of W with the r largest singular values, shared evenly,

    W = U Σ Vᵀ      B = U_r Σ_r^½ s^−½      A = s^−½ Σ_r^½ V_rᵀ

OLoRA (Büyükakyüz 2024, algorithm 1): W = Q R, and

    B = Q_r, the first r columns      A = R_r, the first r rows

The paper of OLoRA and PEFT subtract s B A of these, so the part is s times larger than W's own where s is not 1; the
adapted layer computes W x all the same. Both are decomposed in float32 at least.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from impls.finetuning.lora_init.problem import outputs


def pissa(W: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    U, values, Vt = torch.linalg.svd(W, full_matrices=False)  # [d, k], [k] descending, [k, k]  # noqa: N806
    half = (values[:rank] / s).sqrt()  # [r]
    return half[:, None] * Vt[:rank], U[:, :rank] * half  # A [r, k], B [d, r]


def olora(W: Tensor, rank: int, s: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    Q, R = torch.linalg.qr(W)  # [d, k], [k, k]  # noqa: N806
    return R[:rank], Q[:, :rank]  # A [r, k], B [d, r]


def build(workload: Workload, topology: Topology, rank: int, alpha: float, principal: bool) -> Function:
    start, s = (pissa if principal else olora), alpha / rank

    def divide(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        whole = inputs["W"]  # [d, k]
        W = whole.to(torch.promote_types(whole.dtype, torch.float32))  # noqa: N806
        A, B = start(W, rank, s)  # noqa: N806
        return outputs(A, B, s, (W - s * B @ A).to(whole.dtype), inputs["x"])

    return divide
