"""Attention that keeps its scores, as in the papers: what selective recomputation drops."""

import torch
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(QKᵀ/√d) V, causal, the softmax in float32 or wider: queries [b, a, s, d], keys and values [b, k, s, d],
    of which a/k heads of queries share one → [b, a, s, d]."""
    b, a, s, d = query.shape
    k = key.shape[1]
    later = torch.full((s, s), -torch.inf, dtype=query.dtype, device=query.device).triu(1)  # [s, s]
    scores = (query * d**-0.5).reshape(b, k, -1, d) @ key.transpose(-1, -2)  # [b, k, (a/k)·s, s]
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = (scores.view(b, a, s, s) + later).to(wide).softmax(-1).to(query.dtype)  # [b, a, s, s]
    return (weights.view(b, k, -1, s) @ value).view(b, a, s, d)
