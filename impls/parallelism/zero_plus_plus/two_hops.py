"""qgZ's reduction (Wang et al. 2023, §3.3): all-to-all inside the groups, then across them, in quantised messages.

A ring's reduce-scatter would quantise partial sums N − 1 times, each time with a new error. An all-to-all quantises
each rank's gradient once, since a shard goes to its owner directly; but then all of it leaves the group. Two hops
quantise twice, with sums in full precision between them, and only 1/g leaves the group.

    m groups of g ranks; rank (j, l) is the l-th of group j and owns shard jl of the gradient; here m = g = 2

    gradient     [ 00 01 10 11 ]       m·g shards of 1/N
    reordered    [ 00 10 | 01 11 ]     by l first (§3.3.3), so that what goes to one rank lies together
    hop 1        l's shards of all groups to neighbour l; Σ over the g senders            sends g − 1 times m/N
    hop 2        j's shard, summed over this group, to group j; Σ over the m senders      sends m − 1 times 1/N
"""

import torch
import torch.distributed as dist
from torch import Tensor

from impls.parallelism.zero_plus_plus.quantisation import decode, encode


class TwoHops:
    """The handle of a running reduction: ``send`` [N · size] → ``receive`` [size], this rank's shard summed over ranks.

    The first hop is under way; ``wait()`` ends it and makes the second.
    """

    def __init__(
        self, send: Tensor, receive: Tensor, inside: dist.ProcessGroup, across: dist.ProcessGroup, bits: int
    ) -> None:
        self.receive, self.bits, self.hops = receive, bits, [inside, across]
        self.work: dist.Work | None = None
        self._hop(send.view(across.size(), inside.size(), -1).transpose(0, 1))

    def _hop(self, parts: Tensor) -> None:
        """``parts[i]`` goes to the i-th rank of the next group; after the last hop there is one part, the result."""
        while self.hops and self.hops[0].size() == 1:  # nobody to send to, so nothing to quantise
            parts = parts[0]
            self.hops.pop(0)
        if not self.hops:
            self.receive.copy_(parts)
            return
        # To a receiver each, since on the way a part is float32, twice.
        self.shape, self.sent = parts.shape, torch.stack([encode(part, self.bits) for part in parts])
        self.arrived = torch.empty_like(self.sent)
        self.work = dist.all_to_all_single(self.arrived, self.sent, group=self.hops.pop(0), async_op=True)

    def _arrive(self) -> None:
        assert self.work is not None
        self.work.wait()
        self.work = None
        one, *others = self.arrived  # of a sender each; only one more than the sum is wide at a time
        total = decode(one, self.receive.new_empty(self.shape[1:]), self.bits)
        for other in others:
            total += decode(other, torch.empty_like(total), self.bits)
        self._hop(total)

    def wait(self) -> None:
        while self.work is not None:
            self._arrive()
