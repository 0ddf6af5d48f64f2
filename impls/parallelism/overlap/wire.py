"""Communication in transit while this rank computes, and, if it is recorded, the times of both."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Span, Spans, Unsupported
from impls.common.mesh import device

Start = Callable[[], tuple[Tensor, Sequence[dist.Work]]]  # the tensor is ready once all the work is done


class Flight:
    """An issued communication. ``wait`` returns the tensor when it is ready."""

    def __init__(self, wire: "Wire", start: Start) -> None:
        wire.pause()
        self.wire, self.issued, self.waited = wire, time.monotonic(), False
        self.tensor, self.works = start()
        self.landed: Future[float] | None = None if wire.spans is None else wire.landing(self.works)
        wire.note("X", self.issued, time.monotonic())
        if not wire.overlap:
            self.wait()

    def wait(self) -> Tensor:
        if not self.waited:
            self.wire.pause()
            self.waited, begun = True, time.monotonic()
            if self.landed is None or len(self.works) == 1:
                _wait(self.works)
            if self.landed is not None:
                landed, done = self.landed.result(), time.monotonic()
                self.wire.note("C", self.issued, landed)
                self.wire.note("X", begun, done)
            self.works = ()
        return self.tensor


def _wait(works: Sequence[dist.Work]) -> float:
    """The time at which all of it is done."""
    for work in works:
        work.wait()
    return time.monotonic()


class Wire:
    """The communication of one group. Without ``overlap`` every communication is waited for at once.

    Once ``spans`` is a list, it collects this rank's actions (F, B), each from ``compute`` to the next issue or wait;
    C, from issue to completion; and X, while the rank issues or waits.
    """

    def __init__(self, group: dist.ProcessGroup, overlap: bool = True) -> None:
        self.group, self.overlap = group, overlap
        self.spans: Spans | None = None
        self.action, self.since = ("F", 0, 0), 0.0
        self.waiters = ThreadPoolExecutor(4)  # creates its threads only when there is work for them

    def record(self, spans: Spans | None) -> None:
        if device().type != "cpu":
            raise Unsupported("a collective on a GPU is timed by events on its stream; only CPU ranks are watched here")
        self.spans, self.since = spans, 0.0

    def landing(self, works: Sequence[dist.Work]) -> "Future[float]":
        """The time at which all of it is done. A collective calls back; gloo's messages do not, so a thread waits for
        them. Both may be late if they get no core, but neither is ever early."""
        if len(works) > 1:
            return self.waiters.submit(_wait, works)
        landed: Future[float] = Future()
        works[0].get_future().then(lambda _: landed.set_result(time.monotonic()))
        return landed

    def sum(self, x: Tensor) -> Flight:
        """All-reduce in place."""
        return Flight(self, lambda: (x, [dist.all_reduce(x, group=self.group, async_op=True)]))

    def hand_on(self, x: Tensor) -> Flight:
        """Sends x to the next rank of the ring; receives from the previous one."""
        rank, t = self.group.rank(), self.group.size()
        found = torch.empty_like(x)
        pair = [
            dist.P2POp(dist.isend, x, group=self.group, group_peer=(rank + 1) % t),
            dist.P2POp(dist.irecv, found, group=self.group, group_peer=(rank - 1) % t),
        ]
        return Flight(self, lambda: (found, dist.batch_isend_irecv(pair)))

    def compute(self, kind: str, stage: int, micro: int) -> None:
        """From now on this rank computes this action."""
        if self.spans is not None:
            self.pause()
            self.action, self.since = (kind, stage, micro), time.monotonic()

    def pause(self) -> None:
        if self.spans is not None and self.since:
            self.spans.append(Span(*self.action, self.since, time.monotonic()))
            self.since = 0.0

    def note(self, kind: str, start: float, end: float) -> None:
        if self.spans is not None:
            self.spans.append(Span(kind, *self.action[1:], start, end))
