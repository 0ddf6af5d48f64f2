"""Attention over queries, keys and values drawn from a normal distribution, as after query and key norms."""

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from harness.spec import Workload


def draw(workload: Workload, causal: bool) -> dict[str, Tensor]:
    """query [batch, heads, sequence, head_dim], key and value [batch, kv_heads, sequence, head_dim]; all float64,
    all differentiated. The same for every variant."""
    model, generator = workload.model, torch.Generator().manual_seed(workload.seed)
    heads = {"query": model.num_attention_heads, "key": model.num_key_value_heads, "value": model.num_key_value_heads}
    sizes = {name: (workload.batch_size, n, workload.sequence_length, model.head_dim) for name, n in heads.items()}
    return {
        name: torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for name, size in sizes.items()
    }


def naive(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Standard attention (Dao 2023, section 2.2) in the inputs' dtype. query [b, h, s, d], key, value [b, h_k, …]."""
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if causal:
        future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -inf)
    return scores.softmax(-1) @ value


def plain(inputs: Mapping[str, Tensor], causal: bool) -> dict[str, Tensor]:
    """softmax(QKᵀ/√d) V, with the whole matrix written to memory (Vaswani et al. 2017, equation 1)."""
    return {"output": naive(inputs["query"], inputs["key"], inputs["value"], causal)}
