"""Attention that keeps its scores, as in the papers: what selective recomputation drops."""

import torch
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, window: int = 0) -> Tensor:
    """softmax(QKᵀ/√d) V, causal, the softmax in float32 or wider: queries [b, a, s, d], keys and values [b, k, s, d],
    of which a/k heads of queries share one → [b, a, s, d]. ``window``: a query sees so many keys; 0: all."""
    b, a, s, d = query.shape
    k = key.shape[1]
    hidden = torch.full((s, s), -torch.inf, dtype=query.dtype, device=query.device)  # [s, s]
    hidden = hidden.triu(1) + hidden.tril(-window) if window else hidden.triu(1)
    scores = (query * d**-0.5).reshape(b, k, -1, d) @ key.transpose(-1, -2)  # [b, k, (a/k)·s, s]
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = (scores.view(b, a, s, s) + hidden).to(wide).softmax(-1).to(query.dtype)  # [b, a, s, s]
    return (weights.view(b, k, -1, s) @ value).view(b, a, s, d)
