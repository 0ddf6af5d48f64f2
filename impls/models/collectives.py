"""Collectives that a backend lacks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """A reduce-scatter that is an exchange of parts, [N − 1, size], and a sum. ``wait()`` makes it."""

    def __init__(self, receive: Tensor, send: Tensor, group: dist.ProcessGroup) -> None:
        sent, rank = send.view(group.size(), -1), group.rank()
        self.receive, self.own = receive, sent[rank]
        self.parts = send.new_empty(group.size() - 1, receive.numel())
        self.work = exchange(list(sent), [*self.parts[:rank], self.own, *self.parts[rank:]], group)

    def wait(self) -> None:
        self.work.wait()
        if self.receive.data_ptr() == self.own.data_ptr():
            self.receive.add_(self.parts.sum(0) if len(self.parts) > 1 else self.parts[0])
        else:
            torch.sum(self.parts, 0, out=self.receive).add_(self.own)
        free(self.parts)


class Alone:
    """What one rank shares with itself is there already, or on CUDA after what the current stream was given so far;
    gloo would copy it twice."""

    def __init__(self) -> None:
        self.event = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None

    def wait(self) -> None:
        if self.event is not None:
            self.event.wait()


class Together:
    """Several messages as one."""

    def __init__(self, works: Sequence[dist.Work]) -> None:
        self.works = works

    def wait(self) -> None:
        for work in self.works:
            work.wait()


def exchange(sent: Sequence[Tensor], received: Sequence[Tensor], group: dist.ProcessGroup) -> Together:
    """Starts to send everybody else in the group one of ``sent`` and to receive from them what they have for us."""
    others = [rank for rank in range(group.size()) if rank != group.rank()]
    works = [dist.irecv(received[other], group=group, group_src=other) for other in others]
    return Together(works + [dist.isend(sent[other], group=group, group_dst=other) for other in others])


def free(buffer: Tensor) -> None:
    """At once: a backend's thread may hold the last of its buffers for a while yet."""
    buffer.untyped_storage().resize_(0)


def reduce_scatter(receive: Tensor, send: Tensor, group: dist.ProcessGroup) -> dist.Work | Exchange:
    """Starts the sum over ranks of ``send`` [N · size], of which ``receive`` [size] gets this rank's part; it may lie
    there in ``send``. gloo's own is an all-reduce of everything, with twice the traffic and thrice the time."""
    if dist.get_backend(group) == "gloo":
        return Exchange(receive, send, group)
    return dist.reduce_scatter_tensor(receive, send, group=group, async_op=True)


def all_gather(output: Tensor, shard: Tensor, group: dist.ProcessGroup) -> dist.Work | Together | Alone:
    """Starts the gather of every rank's ``shard`` [size] into ``output`` [N · size]; it may lie there. gloo's own
    copies what it gathers twice, which takes twice the time and the memory."""
    parts, rank = output.view(group.size(), -1), group.rank()
    if dist.get_backend(group) != "gloo" and group.size() > 1:
        return dist.all_gather_into_tensor(output, shard, group=group, async_op=True)
    if shard.data_ptr() != parts[rank].data_ptr():
        parts[rank].copy_(shard)
    if group.size() == 1:
        return Alone()
    return exchange([parts[rank]] * group.size(), list(parts), group)
