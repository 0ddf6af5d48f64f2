"""A unit of ZeRO between device and host: gradients go down, weights come up."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from impls.common.collectives import Alone, all_gather
from impls.parallelism.zero.unit import Gathering, Reduction, Unit
from impls.parallelism.zero_offload import host


@contextlib.contextmanager
def beside(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """On CUDA: what is asked for in here follows what was asked for so far, and overlaps with what comes next."""
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


class Partition(Unit):
    """A unit of ZeRO whose shard's states and gradient, [size] in the weights' dtype, are on the host.

    ``fetch(shard)`` copies this rank's part of the weights to the device, ``finish()`` ends the reduction under way.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        stage: int,
        group: dist.ProcessGroup,
        fetch: Callable[[Tensor], None],
        finish: Callable[[], None],
    ) -> None:
        super().__init__(parameters, stage, group)
        self.fetch, self.finish = fetch, finish
        self.copies = torch.cuda.Stream() if self.full.is_cuda else None
        self.arriving: tuple[Tensor, torch.cuda.Event | None] | None = None
        self.leaving: Tensor | None = None  # what is copied to the host, on the device

    def gather(self) -> None:
        """Starts the weights' way: host or file → this rank's place → every rank's (Infinity, §6.2)."""
        if not self.full.untyped_storage().size():
            self.finish()  # its buffers go before these come
            self.full.untyped_storage().resize_(self.bytes)
            shard = self.full[self.mine]
            with torch.autograd._unsafe_preserve_version_counter(self.full), beside(self.copies):
                self.fetch(shard)
                self.gathering = all_gather(self.full, shard, self.group), shard

    def reduce(self) -> Reduction:
        """Starts the reduce-scatter in place: this rank's part goes to the host from there."""
        assert self.send is not None
        send, self.send = self.send, None
        mine = send[self.mine]
        if mine.numel() == send.numel():
            return Alone(), send, mine
        return dist.reduce_scatter_tensor(mine, send, async_op=True), send, mine

    def add(self, received: Tensor) -> None:
        """Starts a reduced gradient's copy to the host; on CPU ranks out of the whole's buffer, to free that."""
        self.settle()
        if self.copies is None:
            stays = self.gradient is not None or received.numel() == self.elements
            self.arriving = received if stays else received.clone(), None
            self.settle()
            return
        with beside(self.copies):
            there = host.empty(received.shape, received.dtype).copy_(received, non_blocking=True)
            self.arriving, self.leaving = (there, self.copies.record_event()), received

    def let_go(self) -> None:
        """The device waits for the copy, and has the gradient's buffer back."""
        if self.arriving is not None and self.arriving[1] is not None:
            self.arriving[1].wait()
        self.leaving = None

    def settle(self) -> None:
        """Adds what has arrived on the host."""
        self.let_go()
        if self.arriving is not None:
            (there, event), self.arriving = self.arriving, None
            if event is not None:
                event.synchronize()
            self.gradient = there if self.gradient is None else self.gradient.add_(there)

    def spread(self) -> Gathering | None:
        """After the step, below stage 3: this rank's new weights to every rank."""
        return None if self.stage == 3 else all_gather(self.full, self.full[self.mine], self.group)
