"""Ring Attention (Liu et al. 2023, arXiv:2310.01889, §3, algorithm 1): keys and values go round a ring of N ranks.

Each rank keeps its queries, and in each step computes attention with the block of keys and values that it holds.
Meanwhile the block is sent to the next rank, so no rank holds more than two. k₀ is rank 0's first block:

    step         0    1    2    3
    rank 0      k₀   k₃   k₂   k₁        0 → 1
    rank 1      k₁   k₀   k₃   k₂        ↑   ↓
    rank 2      k₂   k₁   k₀   k₃        3 ← 2
    rank 3      k₃   k₂   k₁   k₀

The layout determines the part of a block that a rank's queries may see (``layouts``).

    N      ranks of the ring                     q o do    [b, h, n, d]      of this rank
    n      positions of a rank                   k v       [b, h_k, n, d]    of the block that is here
    h h_k  heads of queries, of keys             L         [b, h, n]         log-sum-exp of a row of S = q kᵀ/√d
    O_b L_b  output and log-sum-exp of a block alone
"""

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from impls.parallelism.context_parallel.block_attention import attend, attend_backward
from impls.parallelism.context_parallel.layouts import Block


class Ring(NamedTuple):
    """A ring and this rank in it; ``plan``: its computations with the keys of each rank."""

    group: dist.ProcessGroup
    rank: int
    size: int
    plan: list[list[Block]]

    def source(self, step: int) -> int:
        """The owner of the keys that are here in this step."""
        return (self.rank - step) % self.size


class Passing:
    """Tensors in transit to the next rank, while those of the previous rank arrive."""

    def __init__(self, ring: Ring, tensors: Sequence[Tensor]) -> None:
        self.sent = [x.contiguous() for x in tensors]  # kept until they have been sent
        self.received = [torch.empty_like(x) for x in self.sent]
        there, here = (dist.get_global_rank(ring.group, (ring.rank + i) % ring.size) for i in (1, -1))
        operations = [dist.P2POp(dist.isend, x, there, ring.group) for x in self.sent]
        operations += [dist.P2POp(dist.irecv, x, here, ring.group) for x in self.received]
        self.works = dist.batch_isend_irecv(operations)

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.received


def merge(o: Tensor, logsumexp: Tensor, o_b: Tensor, l_b: Tensor) -> None:
    """Adds a block to the softmax over those so far, in place:

        O ← O + σ(L_b − L) (O_b − O)        L ← log(e^L + e^L_b)

    where the logistic function σ(L_b − L) = e^L_b / (e^L + e^L_b) is the block's share of the sum of exponentials.
    o and o_b [b, h, n, d], L and L_b [b, h, n]. Adding the blocks' own softmaxes would give a different result."""
    o.lerp_(o_b.to(o.dtype), torch.sigmoid(l_b - logsumexp).unsqueeze(-1))
    torch.logaddexp(logsumexp, l_b, out=logsumexp)


class RingAttention(Function):
    @staticmethod
    def forward(ctx: Any, ring: Ring, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [b, h, n, d], k and v [b, h_k, n, d], of this rank → o [b, h, n, d]."""
        wide = torch.promote_types(q.dtype, torch.float32)
        o = torch.zeros_like(q, dtype=wide)  # [b, h, n, d]: over the blocks so far
        logsumexp = torch.full_like(q[..., 0], -inf, dtype=wide)  # [b, h, n]
        k_s, v_s = k, v  # [b, h_k, n, d]: of the block that is here
        for step in range(ring.size):
            # 1. The block goes on to the next rank.
            onward = Passing(ring, (k_s, v_s)) if step + 1 < ring.size else None
            # 2. Meanwhile these queries attend to the visible part of the block, which is added to the softmax so far.
            for rows, columns, causal in ring.plan[ring.source(step)]:
                o_b, l_b = attend(q[:, :, rows], k_s[:, :, columns], v_s[:, :, columns], causal)
                merge(o[:, :, rows], logsumexp[:, :, rows], o_b, l_b)
            # 3. The block of the previous rank has arrived.
            if onward:
                k_s, v_s = onward.wait()
        o = o.to(q.dtype)
        ctx.save_for_backward(q, k, v, o, logsumexp)
        ctx.ring = ring
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        """With the L of all blocks, P = e^(S − L) is a block's part of the whole softmax, so the gradients of the
        blocks simply add up. Block j's gradients dk_j travel one step behind k_j, and every rank adds its part:

            step         0        1         2            3               end
            k_0 is on    rank 0   rank 1    rank 2       rank 3
            dk_0         rank 0:  rank 1:   rank 2:      rank 3:         rank 0:
                         own ×    starts    adds         adds            adds own ×

        These are N − 1 hops, since the owner's part × (``dk``, ``dv``) waits for the others' sum."""
        q, k, v, o, logsumexp = ctx.saved_tensors
        ring: Ring = ctx.ring
        # For this rank's own positions: [b, h, n, d], and twice [b, h_k, n, d].
        dq, dk, dv = (torch.zeros_like(x, dtype=logsumexp.dtype) for x in (q, k, v))
        k_s, v_s = k, v  # [b, h_k, n, d]: of the block that is here
        arriving: Passing | None = None  # dk_s and dv_s of the block that is here in the next step
        for step in range(ring.size):
            # 1. The block goes on to the next rank.
            onward = Passing(ring, (k_s, v_s)) if step + 1 < ring.size else None
            # 2. Meanwhile the gradients of these queries, and the block's gradients from these queries, are computed.
            parts = []
            for rows, columns, causal in ring.plan[ring.source(step)]:
                of_rows = do[:, :, rows], q[:, :, rows]
                whole = o[:, :, rows], logsumexp[:, :, rows]
                dq_b, dk_b, dv_b = attend_backward(*of_rows, k_s[:, :, columns], v_s[:, :, columns], *whole, causal)
                dq[:, :, rows] += dq_b
                parts.append((columns, dk_b, dv_b))
            # 3. The block's gradients from the previous ranks have arrived; this rank's are added.
            if step == 0:  # this rank's own block: its part stays here
                dk_s, dv_s = dk, dv
            elif step == 1:  # the first rank that the block visits: the sum begins
                dk_s, dv_s = torch.zeros_like(dk), torch.zeros_like(dv)
            else:
                assert arriving is not None
                dk_s, dv_s = arriving.wait()
            for columns, dk_b, dv_b in parts:
                dk_s[:, :, columns] += dk_b
                dv_s[:, :, columns] += dv_b
            # 4. The gradients follow the block, after the last step to its owner.
            if step > 0:
                arriving = Passing(ring, (dk_s, dv_s))
            # 5. The block of the previous rank has arrived.
            if onward:
                k_s, v_s = onward.wait()
        # 6. The gradients of this rank's own keys and values have returned.
        if arriving:
            for total, of_others in zip((dk, dv), arriving.wait(), strict=True):
                total += of_others
        return None, dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
