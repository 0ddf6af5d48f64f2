"""Attention of the newest tokens to a cache: Flash-Decoding (Dao et al. 2023) and FlashDecoding++'s unified maximum
(Hong et al. 2023, arXiv:2311.01282, section 3).

With one query a sequence, FlashAttention's blocks of queries cannot keep a device busy. So the keys are split:

    1. the cache of a sequence is cut into splits;                cache   ████████████████░░░░   ░ not yet used
    2. each split attends to its own keys, and writes its         splits  ├────┼────┼────┼────┤
       output O_c and its log-sum-exp L_c;                                 O₁L₁ O₂L₂ O₃L₃ O₄L₄
    3. a reduction merges them:                                            ╰────┴──┬─┴────╯
           L = log Σ_c exp L_c     O = Σ_c exp(L_c − L) O_c                        O

A split beyond the end of a short sequence has no key: O_c = 0 and L_c = −∞, which weighs nothing.

FlashDecoding++ (equation 4) spares the splits their maxima: all use one guess φ, so that numerators and denominators
are added as they are. If some x − φ of a row leaves (a, b), its exponentials overflow or lose precision, and the row
falls back to the merge above.

    b sequences   n queries each, the last of which sees all keys, those before one less each   s capacity of the cache
    h heads of queries, g for each of the h_k heads of keys   d head dimension   C splits   c keys of a split
    x scores τ q kᵀ, τ = 1/√d   m their maximum   l their sum of exponentials   O output   L log-sum-exp
"""

from collections.abc import Iterator, Mapping
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor

from harness.spec import Function, Topology, Workload
from impls.acceleration.flash_decoding.problem import PHI, A, B

C = 4

Cache = Mapping[str, Tensor]


def splits(capacity: int, length: int) -> Iterator[slice]:
    """The positions of each split. All sequences are cut alike, so those of a short one may be cut off, or empty."""
    size = ceil(capacity / C)
    return (slice(min(start, length), min(start + size, length)) for start in range(0, C * size, size))


def read(cache: Cache, name: str, b: int, where: slice) -> Tensor:
    """Keys or values of sequence b at some positions, [h_k, c, d]; if the cache is paged, page by page."""
    if "table" not in cache:
        return cache[name][b, where].transpose(0, 1)
    position, size = torch.arange(where.start, where.stop, device=cache["table"].device), cache[name].shape[1]
    page = cache["table"][b, position // size]  # [c]
    return cache[name][page, position % size].transpose(0, 1)


def scores(q: Tensor, k: Tensor, where: slice, length: int) -> Tensor:
    """q [h_k, g, n, d], k [h_k, c, d] → x [h_k, g, n, c], −∞ for keys that a query does not see."""
    n, d = q.shape[-2:]
    x = (d**-0.5 * q.flatten(1, 2) @ k.mT).unflatten(1, q.shape[1:3])  # [h_k, g, n, c]
    end = length - torch.arange(n - 1, -1, -1, device=q.device)  # [n]
    return x.masked_fill(torch.arange(where.start, where.stop, device=q.device) >= end[:, None], -inf)


def weighed(p: Tensor, v: Tensor) -> Tensor:
    """p [h_k, g, n, c], v [h_k, c, d] → [h_k, g, n, d]."""
    return (p.flatten(1, 2) @ v).unflatten(1, p.shape[1:3])


def split_kv(q: Tensor, cache: Cache, b: int, capacity: int, length: int) -> Tensor:
    """One sequence: q [h_k, g, n, d] → [h_k, g, n, d]."""
    o = q.new_zeros(C, *q.shape)  # O_c [C, h_k, g, n, d]
    lse = q.new_full((C, *q.shape[:-1], 1), -inf)  # L_c [C, h_k, g, n, 1]
    for c, where in enumerate(splits(capacity, length)):  # 1: in parallel on a device
        if where.start == where.stop:
            continue
        k, v = (read(cache, name, b, where).to(q.dtype) for name in ("key", "value"))
        x = scores(q, k, where, length)
        m = x.amax(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).min)  # [h_k, g, n, 1]; finite if no key is seen
        p = (x - m).exp()  # [h_k, g, n, c]
        l = p.sum(-1, keepdim=True)  # noqa: E741  [h_k, g, n, 1]; at least 1 where a key is seen
        o[c], lse[c] = weighed(p, v) / l.clamp(min=1), m + l.log()  # 2
    weight = (lse - lse.amax(0).clamp(min=torch.finfo(q.dtype).min)).exp()  # 3: [C, h_k, g, n, 1]; the largest is 1
    return (weight * o).sum(0) / weight.sum(0).clamp(min=1)


def unified_maximum(q: Tensor, cache: Cache, b: int, capacity: int, length: int) -> tuple[Tensor, int]:
    """The same with one guess of the maximum for all splits, and the number of rows that fell back."""
    numerator, denominator = torch.zeros_like(q), torch.zeros_like(q[..., :1])  # [h_k, g, n, d], [h_k, g, n, 1]
    outside = torch.zeros_like(denominator, dtype=torch.bool)  # [h_k, g, n, 1]
    for where in splits(capacity, length):
        if where.start == where.stop:
            continue
        k, v = (read(cache, name, b, where).to(q.dtype) for name in ("key", "value"))
        x = scores(q, k, where, length)
        p = (x - PHI).exp()  # [h_k, g, n, c]
        numerator, denominator = numerator + weighed(p, v), denominator + p.sum(-1, keepdim=True)
        outside |= ((x > -inf) & ((x - PHI <= A) | (x - PHI >= B))).any(-1, keepdim=True)
    o = torch.where(denominator > 0, numerator / denominator, 0)
    if outside.any():  # recomputed with the maxima of the splits
        o = torch.where(outside, split_kv(q, cache, b, capacity, length), o)
    return o, int(outside.sum())


def build(workload: Workload, topology: Topology, queries: int, unified: bool, paged: bool) -> Function:
    """{"query": [b, n, h, d], "key", "value", "lengths": [b]} as problem.py draws them → {"output": [b, n, h, d]}, and
    {"fallbacks"} if there is a unified maximum. Sums are taken at least in float32."""
    capacity = workload.sequence_length

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        query, h_k = inputs["query"], inputs["key"].shape[2]
        wide, output, fallbacks = torch.promote_types(query.dtype, torch.float32), torch.empty_like(query), 0
        for b, length in enumerate(inputs["lengths"].tolist()):
            q = query[b].to(wide).transpose(0, 1).unflatten(0, (h_k, -1))  # [h_k, g, n, d]
            if unified:
                o, rows = unified_maximum(q, inputs, b, capacity, length)
                fallbacks += rows
            else:
                o = split_kv(q, inputs, b, capacity, length)
            output[b] = o.flatten(0, 1).transpose(0, 1)
        return {"output": output, "fallbacks": fallbacks} if unified else {"output": output}

    return decode
