"""The last queries of sequences whose keys and values are cached, normally distributed."""

from collections.abc import Mapping
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor

from harness.spec import Workload
from impls.acceleration.flash_decoding.sizes import PAGE, lengths

# Unified maximum φ and the range of x − φ in which it serves (FlashDecoding++, section 3: Llama2-7B).
PHI, A, B = 0.0, -16.8, 6.5
GARBAGE = 30.0  # standard deviation of what the cache holds beyond a sequence's end


def draw(workload: Workload, queries: int, unified: bool, paged: bool) -> dict[str, Tensor]:
    """``query`` [b, n, h, d], the last n tokens' of each sequence; ``lengths`` [b], cached tokens, those n included;
    ``key`` and ``value`` [b, s, h_k, d], of which a sequence uses as many as it has.

    Paged: ``key`` and ``value`` are a pool [pages, 256, h_k, d], and ``table`` [b, ⌈s/256⌉] has the pages of each
    sequence in order."""
    model, generator = workload.model, torch.Generator().manual_seed(workload.seed)
    b, s, h, h_k = workload.batch_size, workload.sequence_length, model.num_attention_heads, model.num_key_value_heads
    used = torch.tensor(lengths(workload), dtype=torch.int32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, model.head_dim, generator=generator, dtype=torch.float64)

    inputs = {"query": normal(b, queries, h) * workload.input_scale}
    beyond = torch.arange(s) >= used[:, None]  # [b, s]
    for name, scale in (("key", workload.input_scale), ("value", 1.0)):
        inputs[name] = torch.where(beyond[..., None, None], GARBAGE, scale) * normal(b, s, h_k)
    if paged:
        pages = ceil(s / PAGE)
        order = torch.randperm(b * pages, generator=generator)
        for name in ("key", "value"):
            pool = GARBAGE * normal(b, pages * PAGE, h_k)
            pool[:, :s] = inputs[name]
            inputs[name] = torch.empty_like(pool.view(b * pages, PAGE, h_k, -1))
            inputs[name][order] = pool.view(b * pages, PAGE, h_k, -1)
        inputs["table"] = order.view(b, pages).int()
    return {**inputs, "lengths": used}


def plain(inputs: Mapping[str, Tensor], queries: int, unified: bool, paged: bool) -> dict[str, Any]:
    """softmax(QKᵀ/√d) V over the whole cache, masked; 0 for a query that sees no key. With a unified maximum also the
    number of rows (of a sequence, a query and a head) in which some x − φ leaves (a, b)."""
    query, key, value = (inputs[name] for name in ("query", "key", "value"))
    if paged:
        key, value = (x[inputs["table"].long()].flatten(1, 2) for x in (key, value))
    group = query.shape[2] // key.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (query, *(x.repeat_interleave(group, 2) for x in (key, value))))
    visible = mask(inputs["lengths"], queries, k.shape[2])
    scores = q @ k.mT * q.shape[-1] ** -0.5  # [b, h, n, s]
    weights = scores.masked_fill(~visible, -inf).softmax(-1)
    output = torch.where(visible.any(-1, keepdim=True), weights, 0) @ v
    found: dict[str, Any] = {"output": output.transpose(1, 2)}
    if unified:
        outside = visible & ((scores - PHI <= A) | (scores - PHI >= B))
        found["fallbacks"] = int(outside.any(-1).sum())
    return found


def mask(lengths: Tensor, queries: int, capacity: int) -> Tensor:
    """[b, 1, n, s]: which keys a query sees; the last query sees all of its sequence, each one before one less."""
    back = torch.arange(queries - 1, -1, -1, device=lengths.device)  # [n]
    end = (lengths[:, None] - back)[:, None, :, None]
    return torch.arange(capacity, device=lengths.device) < end
