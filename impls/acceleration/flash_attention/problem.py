"""Attention over queries, keys and values drawn from a normal distribution, as after query and key norms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Workload
from impls.acceleration.flash_attention.laws import packed_lengths
from impls.acceleration.flash_attention.reference import naive
from impls.acceleration.flash_attention.rules import Rules
from impls.acceleration.flash_attention.tiles import documents


def draw(
    workload: Workload, keys: float = 1.0, sinks: bool = False, packed: bool = False, **variant: Any
) -> dict[str, Tensor]:
    """query [b, h, s, d], key and value [b, h_k, keys · s, d], sinks [h] if asked for; all float64, all differentiated.
    With ``packed``, b is 1, s the tokens of the batch, and cu_seqlens says where each of its documents begins."""
    model, generator = workload.model, torch.Generator().manual_seed(workload.seed)
    b, s = (1, workload.tokens) if packed else (workload.batch_size, workload.sequence_length)
    a, a_kv, d = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    t = round(keys * s)
    sizes = {"query": (b, a, s, d), "key": (b, a_kv, t, d), "value": (b, a_kv, t, d)} | (
        {"sinks": (a,)} if sinks else {}
    )
    inputs = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    for name in ("query", "key"):
        inputs[name] *= workload.input_scale
    for tensor in inputs.values():
        tensor.requires_grad_()
    return inputs | ({"cu_seqlens": cu_seqlens(s)} if packed else {})


def cu_seqlens(tokens: int) -> Tensor:
    """Where the documents begin and end, as int32, which kernels expect."""
    return torch.tensor([0, *packed_lengths(tokens)]).cumsum(0).int()


def plain(inputs: Mapping[str, Tensor], **variant: Any) -> dict[str, Tensor]:
    """softmax(QKᵀ/√d) V, with the whole matrix written to memory (Vaswani et al. 2017, equation 1), of each document
    separately."""
    query, key, value, sinks = (inputs.get(name) for name in ("query", "key", "value", "sinks"))
    parts = [
        naive(*(x[:, :, at] for x in (query, key, value)), Rules.of(**variant), sinks)
        for at in documents(inputs.get("cu_seqlens"))
    ]
    return {"output": torch.cat(parts, 2)}
