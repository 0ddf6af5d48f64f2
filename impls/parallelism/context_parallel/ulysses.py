"""DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv:2309.14509, §3.1): an all-to-all exchanges parts of the sequence for
parts of the heads, attention is computed as on one rank, and a second all-to-all reverses the exchange.

    rank r has     all h heads of s/U positions      before the attention, and after it
                   h/U heads of all s positions      in it

               ┌ position ┐               ┌ position ┐
     head  a │  0  0  1  1         a │  0  0  0  0        the number is the rank
           b │  0  0  1  1   ⇄     b │  1  1  1  1

With grouped queries (h_k < h) a rank needs the key heads of its own queries. If there are fewer key heads than
ranks (h_k < U), a head goes to each of the U/h_k ranks that need it, and autograd sums the returned gradients.

    U     ranks that exchange        n      s/U, positions of a rank
    h     heads of queries           h_k    heads of keys, and of values        b d   batch, head dimension
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from harness.spec import Unsupported

Group = dist.ProcessGroup


def head_shares(heads: int, kv_heads: int, ranks: int) -> tuple[int, int]:
    """Query heads and key heads of each of ``ranks``. Raises Unsupported if they cannot be divided."""
    if heads % ranks:
        raise Unsupported(f"{heads} query heads cannot be distributed to {ranks} ranks that exchange heads")
    if kv_heads % ranks and ranks % kv_heads:
        raise Unsupported(f"{kv_heads} key heads and {ranks} ranks: neither number divides the other")
    return heads // ranks, max(kv_heads // ranks, 1)


class AllToAll(Function):
    """x [U, …]: part i goes to rank i, and part i of the result is from rank i. It is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, x = group, x.contiguous()
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return AllToAll.apply(gradient, ctx.group), None


def to_heads(q: Tensor, k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, ...]:
    """q [b, h, n, d], k and v [b, h_k, n, d] → q [b, h/U, s, d], k and v [b, max(h_k/U, 1), s, d]."""
    ranks = group.size()
    heads, kv_heads = head_shares(q.shape[1], k.shape[1], ranks)
    # 1. Sort by receiving rank; queries, keys and values in one message.
    message = torch.cat([by_rank(x, ranks) for x in (q, k, v)], dim=3)  # [U, n, b, h/U + 2 max(h_k/U, 1), d]
    # 2. Exchange.
    received = AllToAll.apply(message, group)
    # 3. Concatenate the ranks' positions.
    return whole_sequence(received).split([heads, kv_heads, kv_heads], dim=1)


def to_sequence(o: Tensor, group: Group) -> Tensor:
    """o [b, h/U, s, d] → [b, h, n, d]."""
    message = o.unflatten(2, (group.size(), -1)).permute(2, 3, 0, 1, 4)  # [U, n, b, h/U, d], by their positions' rank
    received = AllToAll.apply(message, group)  # [U, n, b, h/U, d], by their heads' rank
    return received.permute(2, 0, 3, 1, 4).flatten(1, 2)  # [b, h, n, d]


def by_rank(x: Tensor, ranks: int) -> Tensor:
    """[b, heads, n, d] → [U, n, b, heads for each rank, d]; a head that several ranks need is repeated. With the
    sequence first, the received parts form the whole sequence in order."""
    if x.shape[1] < ranks:
        x = x.repeat_interleave(ranks // x.shape[1], dim=1)  # [b, U, n, d]
    return x.unflatten(1, (ranks, -1)).permute(1, 3, 0, 2, 4)


def whole_sequence(received: Tensor) -> Tensor:
    """[U, n, b, heads, d] → [b, heads, s, d], a view."""
    return received.flatten(0, 1).permute(1, 2, 0, 3)
