"""Causal attention over queries, keys and values drawn from a normal distribution, of sequences or of documents."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Workload
from impls.acceleration.flash_attention import problem
from impls.parallelism.context_parallel.layouts import documents
from impls.parallelism.context_parallel.reference import naive
from impls.parallelism.context_parallel.spread import folded, unfolded


def draw(workload: Workload, packed: bool = False, **variant: Any) -> dict[str, Tensor]:
    """query [b, h, s, d], key and value [b, h_k, s, d], all differentiated, and, where documents are packed, where
    each begins in the b·s tokens, cu_seqlens [documents + 1]. The same for every variant."""
    inputs = problem.draw(workload, causal=True)
    if packed:
        inputs["cu_seqlens"] = torch.tensor([0, *documents(workload, packed)]).cumsum(0)
    return inputs


def plain(inputs: Mapping[str, Tensor], **variant: Any) -> dict[str, Tensor]:
    """softmax(QKᵀ/√d) V with later positions masked, for each document separately (Vaswani et al. 2017, §3.2)."""
    tensors = [inputs[name] for name in ("query", "key", "value")]
    if "cu_seqlens" not in inputs:
        return {"output": whole(*tensors)}
    sizes = inputs["cu_seqlens"].diff().tolist()
    parts = zip(*(folded(x).split(sizes, dim=2) for x in tensors), strict=True)
    return {"output": unfolded(torch.cat([whole(*part) for part in parts], dim=2), len(tensors[0]))}


def whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention of all queries of the sequence."""
    return naive(query, key, value, torch.arange(query.shape[2], device=query.device))
