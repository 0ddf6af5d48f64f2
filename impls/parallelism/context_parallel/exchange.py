"""DeepSpeed-Ulysses (Jacobs et al. 2023, §3.1): an all-to-all turns parts of the sequence into parts of the heads.

    rank r has     all h heads of s/U positions      before the attention, and after it
                   h/U heads of all s positions      in it

               ┌ position ┐               ┌ position ┐
     head  a │  0  0  1  1         a │  0  0  0  0        the number is the rank
           b │  0  0  1  1   ⇄     b │  1  1  1  1

With grouped queries (h_k < h) a rank needs the key heads of its own queries. Where there are fewer key heads than
ranks (h_k < U), a head goes to each of the U/h_k ranks that want it, and the gradients that these send back are summed.

Queries, keys and values travel in one message. A message's dims are [U, n, b, heads, d]: sequence first, so that what
arrives is the whole sequence already, in order, and each tensor a view of it.

    U     ranks that exchange        n      s/U, positions of a rank          H    heads of a rank in the attention:
    h     heads of queries           h_k    heads of keys, and of values           h/U, and max(h_k/U, 1) of keys
    b d   batch, head dimension
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from harness.spec import Unsupported

Group = dist.ProcessGroup


def head_shares(heads: int, kv_heads: int, ranks: int) -> tuple[int, int]:
    """Heads of queries, and of keys, of each of ``ranks``. Unsupported where they cannot be shared out."""
    if heads % ranks:
        raise Unsupported(f"{heads} query heads cannot be dealt out to {ranks} ranks that exchange heads")
    if kv_heads % ranks and ranks % kv_heads:
        raise Unsupported(f"{kv_heads} key heads can neither be dealt out to {ranks} ranks nor each to as many of them")
    return heads // ranks, max(kv_heads // ranks, 1)


def by_rank(x: Tensor, ranks: int) -> Tensor:
    """[b, heads, n, d] → [U, n, b, heads for each rank, d], a view; what several ranks want is repeated."""
    if x.shape[1] < ranks:
        x = x.repeat_interleave(ranks // x.shape[1], dim=1)
    return x.unflatten(1, (ranks, -1)).permute(1, 3, 0, 2, 4)


def by_sequence(x: Tensor, ranks: int) -> Tensor:
    """[b, heads, s, d] → [U, n, b, heads, d], a view: the part of the sequence that each rank has."""
    return x.unflatten(2, (ranks, -1)).permute(2, 3, 0, 1, 4)


def traded(parts: list[Tensor], group: Group) -> Tensor:
    """What the ranks send for what they are sent, each [U, n, b, H, d]; ``parts`` go in one message."""
    message = torch.cat(parts, dim=3).contiguous()
    received = torch.empty_like(message)
    dist.all_to_all_single(received, message, group=group)
    free(message)
    return received


def free(message: Tensor) -> None:
    """Frees what has arrived at once: gloo's threads may hold a message for as long as they get no processor."""
    message.untyped_storage().resize_(0)


def whole_sequence(received: Tensor) -> Tensor:
    """[U, n, b, H, d] → [b, H, s, d], a view."""
    return received.flatten(0, 1).permute(1, 2, 0, 3)


def whole_heads(received: Tensor, kv_heads: int = 0) -> Tensor:
    """[U, n, b, heads of each rank, d] → [b, all heads, n, d]; copies of one of ``kv_heads`` are summed."""
    x = received.permute(2, 0, 3, 1, 4).flatten(1, 2)
    return x.unflatten(1, (kv_heads, -1)).sum(2) if 0 < kv_heads < x.shape[1] else x


class ToHeads(Function):
    """q [b, h, n, d], k and v [b, h_k, n, d] → q [b, h/U, s, d], k and v [b, max(h_k/U, 1), s, d]."""

    @staticmethod
    def forward(ctx: Any, group: Group, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        ranks = group.size()
        ctx.group, ctx.kv_heads = group, key.shape[1]
        share, kv_share = head_shares(query.shape[1], key.shape[1], ranks)
        ctx.heads = [share, kv_share, kv_share]
        received = traded([by_rank(x, ranks) for x in (query, key, value)], group)
        return whole_sequence(received).split(ctx.heads, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        received = traded([by_sequence(x, ctx.group.size()) for x in gradients], ctx.group)
        d_query, *d_both = received.split(ctx.heads, dim=3)
        return None, whole_heads(d_query), *(whole_heads(x, ctx.kv_heads) for x in d_both)


class ToSequence(Function):
    """[b, h/U, s, d] → [b, h, n, d]."""

    @staticmethod
    def forward(ctx: Any, group: Group, output: Tensor) -> Tensor:
        ctx.group = group
        return whole_heads(traded([by_sequence(output, group.size())], group))

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[None, Tensor]:
        received = traded([by_rank(d_output, ctx.group.size())], ctx.group)
        # In memory [b, s, h/U, d]: of anything else the kernel makes such a copy, and there would be two.
        laid_out = received.flatten(0, 1).transpose(0, 1).contiguous()
        if laid_out.data_ptr() != received.data_ptr():
            free(received)
        return None, laid_out.transpose(1, 2)
