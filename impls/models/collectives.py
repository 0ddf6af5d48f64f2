"""Collectives that a backend lacks."""

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """A reduce-scatter that is an exchange of parts, [N, size], and a sum. ``wait()`` makes it."""

    def __init__(self, receive: Tensor, send: Tensor, group: dist.ProcessGroup) -> None:
        self.receive, self.parts = receive, send.new_empty(group.size(), receive.numel())
        self.work = dist.all_to_all_single(self.parts.view(-1), send, group=group, async_op=True)

    def is_completed(self) -> bool:
        return self.work.is_completed()

    def wait(self) -> None:
        self.work.wait()
        torch.sum(self.parts, 0, out=self.receive)
        free(self.parts)


class Alone:
    """What one rank shares with itself is there already, or on CUDA after what the current stream was given so far;
    gloo would copy it twice."""

    def __init__(self) -> None:
        self.event = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None

    def is_completed(self) -> bool:
        return True

    def wait(self) -> None:
        if self.event is not None:
            self.event.wait()


def free(buffer: Tensor) -> None:
    """At once: a backend's thread may hold the last of its buffers for a while yet."""
    buffer.untyped_storage().resize_(0)


def reduce_scatter(receive: Tensor, send: Tensor, group: dist.ProcessGroup) -> dist.Work | Exchange:
    """Starts the sum over ranks of ``send`` [N · size], of which ``receive`` [size] gets this rank's part; it may lie
    there in ``send``. gloo's own is an all-reduce of everything, with twice the traffic and thrice the time."""
    if dist.get_backend(group) == "gloo":
        return Exchange(receive, send, group)
    return dist.reduce_scatter_tensor(receive, send, group=group, async_op=True)
