"""Context parallelism: the sequence of one attention is cut across N ranks.

Ring Attention (Liu et al. 2023, arXiv:2310.01889, §3, algorithm 1), with the keys' layouts of Striped Attention
(Brandon et al. 2023, arXiv:2311.09431, §3) and of Llama 3 (2024, §3.3.2); DeepSpeed-Ulysses (Jacobs et al. 2023, §3.1;
in ``exchange``); and USP (Fang & Zhao 2024, arXiv:2405.07719, §3), which has both: Ulysses among neighbours, and a
ring of such groups.

The naive form gathers all keys and values on every rank. The ring never has more than two blocks of them: while the
queries meet the block that is here, it is on its way to the next rank.

    step         0    1    2    3
    rank 0      k₀   k₃   k₂   k₁        0 → 1
    rank 1      k₁   k₀   k₃   k₂        ↑   ↓
    rank 2      k₂   k₁   k₀   k₃        3 ← 2
    rank 3      k₃   k₂   k₁   k₀

With each further block's output O_b and log-sum-exp L_b (σ is the logistic function)

    O ← O + σ(L_b − L) (O_b − O)        L ← log(e^L + e^L_b)

which is the softmax over both, for σ(L_b − L) is the block's share of e^L + e^L_b. Sums of the blocks' own softmaxes
are something else. The backward pass computes P = e^(S − L) with the L of all blocks, so that each block's gradients
can simply be added. Those of keys and values travel with their block, from the first rank that it visits until it is
home: N − 1 hops, for what its own rank has to add waits there.

    N      ranks, R in a ring × U that exchange heads          q o     [b, h, n, d]      this rank's
    s n    sequence length, s/N                                k v     [b, h_k, n, d]
    h h_k  heads of queries, of keys                           O L     so far, in float32 at least; L [b, h, n]
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from harness.spec import Topology, Workload
from impls.parallelism.context_parallel.block_attention import attend, attend_backward
from impls.parallelism.context_parallel.exchange import ToHeads, ToSequence, head_shares
from impls.parallelism.context_parallel.layouts import blocks
from impls.parallelism.context_parallel.ring import Passing, Ring
from impls.parallelism.context_parallel.spread import Spread


def naive(query: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """softmax(q Kᵀ/√d) V over all s keys; ``places`` [n]: where in the sequence the queries are."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (keys, values))
    later = torch.arange(keys.shape[2], device=places.device) > places.unsqueeze(1)
    scores = (query @ keys.mT * query.shape[-1] ** -0.5).masked_fill(later, -inf)
    return scores.softmax(-1) @ values


def joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=2) if len(parts) > 1 else parts[0]


def merge(output: Tensor, logsumexp: Tensor, o_b: Tensor, l_b: Tensor) -> None:
    """Makes ``output`` and ``logsumexp`` those over a further block as well, in place."""
    output.lerp_(o_b.to(output.dtype), torch.sigmoid(l_b - logsumexp).unsqueeze(-1))
    torch.logaddexp(logsumexp, l_b, out=logsumexp)


class RingAttention(Function):
    @staticmethod
    def forward(ctx: Any, ring: Ring, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        k, v = key, value
        for step in range(ring.size):
            onward = Passing(ring, (k, v)) if step + 1 < ring.size else None
            here = ring.plan[ring.source(step)]
            found = (attend(query[:, :, b.rows], k[:, :, b.columns], v[:, :, b.columns], b.causal) for b in here)
            if step == 0:  # this rank's own keys: every row sees some of them
                output, logsumexp = (joined(parts) for parts in zip(*found, strict=True))
                wide = logsumexp.dtype if ring.size > 1 else query.dtype
                output = output.to(wide)
            else:
                for block, (o_b, l_b) in zip(here, found, strict=True):
                    merge(output[:, :, block.rows], logsumexp[:, :, block.rows], o_b, l_b)
            if onward:
                k, v = onward.wait()
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.ring, ctx.wide = ring, wide
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        query, k, v, output, logsumexp = ctx.saved_tensors
        ring: Ring = ctx.ring
        home: Passing | None = None  # gradients of keys and values, on their way

        def gradients(rows: slice, columns: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            d_o, q, o, l_rows = (x[:, :, rows] for x in (d_output, query, output, logsumexp))
            return attend_backward(d_o, q, k[:, :, columns], v[:, :, columns], o, l_rows, causal)

        for step in range(ring.size):
            onward = Passing(ring, (k, v)) if step + 1 < ring.size else None
            here = ring.plan[ring.source(step)]
            if step == 0:
                d_query, *own = map(joined, zip(*(gradients(*block) for block in here), strict=True))
                d_query = d_query.to(ctx.wide)
            else:
                d_kv = []
                for block in here:
                    d_q, *both = gradients(*block)
                    d_query[:, :, block.rows] += d_q
                    d_kv.append(both)
                sums = home.wait() if home else [x.new_zeros(x.shape, dtype=ctx.wide) for x in own]
                for block, both in zip(here, d_kv, strict=True):
                    for total, part in zip(sums, both, strict=True):
                        total[:, :, block.columns] += part
                d_q = both = part = d_kv = None  # the next block's take their place
                home = Passing(ring, sums)
            if onward:
                k, v = onward.wait()
        d_kv = own
        if home:
            d_kv = home.wait()
            for total, part in zip(d_kv, own, strict=True):
                total += part
        return None, *(x.to(query.dtype) for x in (d_query, *d_kv))


class ContextParallel(Spread):
    """{"query": q, "key": k, "value": v} → {"output": o}: heads for positions, the ring, and back."""

    def __init__(self, workload: Workload, topology: Topology, layout: str, group: int, packed: bool) -> None:
        super().__init__(workload, topology, layout, group, packed)
        head_shares(workload.model.num_attention_heads, workload.model.num_key_value_heads, self.group)
        mesh = self.mesh()
        rank = mesh.get_local_rank("ring")
        plan = [blocks(layout, rank, source, self.lengths) for source in range(self.ring)]
        self.rings, self.heads = Ring(mesh.get_group("ring"), rank, self.ring, plan), mesh.get_group("group")

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = [inputs[name] for name in ("query", "key", "value")]
        if self.group == 1:
            return {"output": RingAttention.apply(self.rings, *tensors)}
        output = RingAttention.apply(self.rings, *ToHeads.apply(self.heads, *tensors))
        return {"output": ToSequence.apply(self.heads, output)}


def build(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> ContextParallel:
    """``group``: neighbouring ranks that exchange heads, 0 for all; the rings run across the groups."""
    return ContextParallel(workload, topology, layout, group, packed)
