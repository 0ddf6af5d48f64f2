"""Collectives that a backend lacks."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """A reduce-scatter that is an exchange of parts, [N, size], and a sum. ``wait()`` makes it."""

    def __init__(self, receive: Tensor, send: Tensor, group: dist.ProcessGroup) -> None:
        self.receive, self.parts = receive, send.new_empty(group.size(), receive.numel())
        # Sends and receives would be posted under a lock for which gloo's own thread spins, even on the holder's core.
        self.work = dist.all_to_all_single(self.parts, send.view_as(self.parts), group=group, async_op=True)

    def wait(self) -> None:
        self.work.wait()
        torch.sum(self.parts, 0, out=self.receive)
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
    """Several works as one."""

    def __init__(self, works: Sequence["dist.Work | Together | Alone"]) -> None:
        self.works = works

    def wait(self) -> None:
        for work in self.works:
            work.wait()


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
    return share(parts, group) if group.size() > 1 else Alone()


def share(parts: Sequence[Tensor], group: dist.ProcessGroup) -> Together:
    """Starts to send everybody this rank's one of ``parts`` [N], and to receive the others."""
    return Together([dist.broadcast(part, group=group, group_src=r, async_op=True) for r, part in enumerate(parts)])


def all_gather_together(outputs: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Gathers into each of ``outputs`` [N · size], of one type, where this rank's part lies already. By gloo as one
    message: between busy ranks another one costs more than to copy what it brings."""
    ranks, rank = group.size(), group.rank()
    if dist.get_backend(group) != "gloo" or ranks == 1:
        parts = [output.view(ranks, -1)[rank] for output in outputs]
        Together([all_gather(*each, group) for each in zip(outputs, parts, strict=True)]).wait()
        return
    places = [[output.view(ranks, -1)[owner] for output in outputs] for owner in range(ranks)]
    sent = torch.cat(places[rank])
    received = [sent if owner == rank else torch.empty_like(sent) for owner in range(ranks)]
    share(received, group).wait()
    for owner in range(ranks):
        if owner != rank:
            torch._foreach_copy_(places[owner], received[owner].split([place.numel() for place in places[owner]]))
