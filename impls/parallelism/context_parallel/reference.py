"""Context parallelism: the sequence of one attention is cut across N ranks.

    naive      every rank gathers all keys and values
    ring       keys and values go round; the softmaxes of blocks are merged by log-sum-exp    (``ring``)
    Ulysses    an all-to-all turns parts of the sequence into parts of the heads              (``ulysses``)
    USP        both (Fang & Zhao 2024, arXiv:2405.07719, §3): N = R × U ranks, Ulysses among U neighbours, and rings of
               R across these groups. Here, N = 2 × 2:

                              ring 0    ring 1
                 group 0      rank 0    rank 1       ─ exchange heads
                 group 1      rank 2    rank 3
                                 │ pass on keys and values

``layouts`` gives the positions of each rank, and the keys of other ranks that its queries see: contiguous (Ring
Attention), striped (Brandon et al. 2023, arXiv:2311.09431, §3) or zig-zag (Llama Team 2024, arXiv:2407.21783, §3.3.2).

    s n    sequence length, s/N          h h_k  heads of queries, of keys          b d    batch size, head dimension
"""

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from harness.spec import Topology, Workload
from impls.parallelism.context_parallel.layouts import blocks
from impls.parallelism.context_parallel.ring import Ring, RingAttention
from impls.parallelism.context_parallel.spread import Spread
from impls.parallelism.context_parallel.ulysses import head_shares, to_heads, to_sequence


def naive(query: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """softmax(q Kᵀ/√d) V of the queries [b, h, n, d] at ``places`` [n] over all s keys and values [b, h_k, s, d] →
    [b, h, n, d]."""
    per_key = query.shape[1] // keys.shape[1]  # query heads that share a key head
    keys, values = (x.repeat_interleave(per_key, dim=1) for x in (keys, values))  # [b, h, s, d]
    later = torch.arange(keys.shape[2], device=places.device) > places.unsqueeze(1)  # [n, s]
    scores = (query @ keys.mT * query.shape[-1] ** -0.5).masked_fill(later, -inf)  # [b, h, n, s]
    return scores.softmax(-1) @ values  # [b, h, n, d]


class ContextParallel:
    """{"query": [b, h, n, d], "key": [b, h_k, n, d], "value": [b, h_k, n, d]} → {"output": [b, h, n, d]}."""

    def __init__(self, workload: Workload, topology: Topology, layout: str, group: int, packed: bool) -> None:
        spread = Spread(workload, topology, layout, group, packed)
        self.split, self.gather, mesh = spread.split, spread.gather, spread.mesh()
        head_shares(workload.model.num_attention_heads, workload.model.num_key_value_heads, spread.group)
        self.neighbours, rank = mesh.get_group("group"), mesh.get_local_rank("ring")
        plan = [blocks(layout, rank, source, spread.lengths) for source in range(spread.ring)]
        self.ring = Ring(mesh.get_group("ring"), rank, spread.ring, plan)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = (inputs[name] for name in ("query", "key", "value"))
        # 1. Among neighbours: exchange parts of the sequence for parts of the heads.
        exchanges = self.neighbours.size() > 1
        if exchanges:
            q, k, v = to_heads(q, k, v, self.neighbours)  # [b, h/U, s/R, d], [b, max(h_k/U, 1), s/R, d] twice
        # 2. Across groups: the ring brings all keys and values. A ring of one rank is plain attention.
        o = RingAttention.apply(self.ring, q, k, v)  # [b, h/U, s/R, d]
        # 3. Among neighbours: back.
        return {"output": to_sequence(o, self.neighbours) if exchanges else o}


def build(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> ContextParallel:
    """``group``: the number of neighbouring ranks that exchange heads, 0 for all; the rings run across the groups."""
    return ContextParallel(workload, topology, layout, group, packed)
