"""qgZ's reduction (Wang et al. 2023, §3.3): all-to-all inside the groups, then across them, in quantised messages.

A ring's reduce-scatter would quantise partial sums N − 1 times, each time with a new error. An all-to-all quantises
each rank's gradient once, since a shard goes directly to its owner, but then all of it leaves the group. Two hops
quantise twice, with sums in full precision between them, and only 1/g leaves the group.

    m groups of g ranks; rank (j, l) is the l-th of group j and owns shard jl of the gradient; here m = g = 2

    gradient     [ 00 01 10 11 ]       m·g shards of 1/N
    reordered    [ 00 10 | 01 11 ]     by l first (§3.3.3), so that shards for one rank are adjacent
    hop 1        l's shards of all groups to neighbour l; Σ over the g senders            sends g − 1 times m/N
    hop 2        j's shard, summed over this group, to group j; Σ over the m senders      sends m − 1 times 1/N
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from impls.parallelism.zero_plus_plus.quantisation import decode, encode

Wait = Callable[[], Tensor]


def two_hops(whole: Tensor, inside: dist.ProcessGroup, across: dist.ProcessGroup, bits: int) -> Wait:
    """Starts the first hop of a gradient [N · size]; waiting performs the second hop, and returns this rank's shard of
    the sum over ranks, [size]."""
    reordered = whole.view(across.size(), inside.size(), -1).transpose(0, 1)  # [g, m, size]
    first = exchange(reordered, inside, bits)

    def wait() -> Tensor:
        summed = first()  # [m, size]
        return exchange(summed, across, bits)()  # [size]

    return wait


def exchange(parts: Tensor, group: dist.ProcessGroup, bits: int) -> Wait:
    """Starts to send ``parts[i]`` [..., size], quantised, to the i-th rank; waiting returns the sum over senders, in
    float32 at least."""
    if group.size() == 1:  # a single rank sends nothing, so nothing is quantised
        return lambda: parts[0]
    sent = torch.stack([encode(part, bits) for part in parts])  # [ranks, ..., bytes]
    arrived = torch.empty_like(sent)  # [ranks, ..., bytes]
    work = dist.all_to_all_single(arrived, sent, group=group, async_op=True)
    wide, shape = torch.promote_types(parts.dtype, torch.float32), parts.shape[1:]

    def wait() -> Tensor:
        work.wait()
        total = torch.zeros(shape, dtype=wide, device=arrived.device)  # [..., size]
        for message in arrived:  # only one part beside the sum is converted at a time
            total += decode(message, torch.empty_like(total), bits)
        return total

    return wait
