"""Where a step's time went on one rank: the profiler's events, swept along the clock.

Each moment of a step belongs to the first of these that happens in it, on any thread (or CUDA stream):

    arithmetic   matrix products, attention, convolutions
    memory       every other operator that touches data
    waiting      a collective or message is under way, and nothing is computed
    host         the rest: Python, autograd's bookkeeping, dispatch, kernels not yet launched

Communication beside the first two is ``hidden``. PyTorch's profiler costs about a microsecond an event, which is
measured and taken off the host's share.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from harness.meter.operations import Operations
from harness.spec.run import Anatomy, Profile

STEP = "plumbline step"
OPERATORS = re.compile(r"^(aten|torch::distributed|mkldnn|quantized|torchao|fbgemm|deepspeed)::")
# Operators, and kernels on CUDA, whose time is that of multiplications.
ARITHMETIC = re.compile(
    r"^aten::(add)?(mm|mv|bmm|baddbmm|addr)$|_scaled_mm|_grouped_mm|_int_mm|convolution|scaled_dot_product.*(flash|eff|cudnn)"
    r"|^aten::_flash_attention|^aten::_flex|mkldnn.*(linear|conv)|gemm|cutlass|nvjet|flash_fwd|flash_bwd|fmha|xmma"
)
# Operators that only make a view, allocate, or call others.
BOOKKEEPING = re.compile(
    r"^aten::(.*view.*|as_strided|transpose|t|permute|expand|expand_as|reshape|detach|alias|empty.*|resolve_.*|(un)?squeeze"
    r"|select|slice|narrow|chunk|(tensor_)?split.*|unbind|unflatten|flatten|linear|matmul|contiguous|to|_to_copy|item"
    r"|_local_scalar_dense|result_type|set_|resize_|scaled_dot_product_attention|is_nonzero|result)$"
)
WIRE = re.compile(r"^(gloo|nccl|mpi|ucc):|^ncclDevKernel|^ncclKernel")
KERNEL = re.compile(r"^(void |Mem(cpy|set)|triton)")  # other kernels on CUDA
CALL = re.compile(r"^(c10d|_c10d_functional)::|ProcessGroup")


class Event(NamedTuple):
    """``thread``: of the host, or a stream of the device; None for a message under way, which no thread computes."""

    name: str
    start: float  # seconds
    end: float
    thread: tuple[str, int] | None


def kind(name: str) -> str:
    """What the time of an event itself, without those inside it, is spent on."""
    if WIRE.match(name) or CALL.match(name):
        return "waiting"
    if ARITHMETIC.search(name):
        return "arithmetic"
    moves = OPERATORS.match(name) and not BOOKKEEPING.match(name)
    return "memory" if moves or KERNEL.match(name) else "host"


def anatomy(events: Iterable[Event], start: float, end: float, cost: float = 0.0) -> Anatomy:
    """Sweeps the events between two times of one clock; ``cost``: the profiler's seconds for each event."""
    inside = [event for event in events if event.end > start and event.start < end]
    marks: list[tuple[float, str, int]] = []
    for begin, stop, what in _segments(inside):
        begin, stop = max(begin, start), min(stop, end)
        if begin < stop:
            marks += [(begin, what, 1), (stop, what, -1)]
    found = dict.fromkeys(("arithmetic", "memory", "waiting", "host", "hidden"), 0.0)
    active = dict.fromkeys(("arithmetic", "memory", "waiting", "wire", "host"), 0)
    now = start
    for at, what, change in [*sorted(marks), (end, "host", 0)]:
        computing = next((name for name in ("arithmetic", "memory") if active[name]), "")
        found[computing or ("waiting" if active["waiting"] or active["wire"] else "host")] += at - now
        if computing and active["wire"]:
            found["hidden"] += at - now
        active[what] += change
        now = at
    seen = sum(1 for event in inside if event.thread is not None)
    found["host"] = max(found["host"] - cost * seen, 0.0)
    return Anatomy(**found)


def _segments(events: Iterable[Event]) -> Iterator[tuple[float, float, str]]:
    """Start, end and kind of each event's own time, thread by thread, without the events inside it."""
    threads: dict[tuple[str, int], list[Event]] = {}
    for event in events:
        if event.thread is None:
            yield event.start, event.end, "wire"
        else:
            threads.setdefault(event.thread, []).append(event)
    for ordered in threads.values():
        ordered.sort(key=lambda event: (event.start, -event.end))
        open_: list[Event] = []
        now = 0.0
        for event in [*ordered, Event("", float("inf"), float("inf"), ("", 0))]:
            while open_ and open_[-1].end <= event.start:
                done = open_.pop()
                yield now, done.end, kind(done.name)
                now = max(now, done.end)
            if open_:
                yield now, event.start, kind(open_[-1].name)
            now = event.start
            open_.append(event)


def profiled(step: Callable[[int], Any], steps: int) -> Profile:
    """All ranks call this together."""
    cuda = torch.cuda.is_available()
    plain = []
    for index in range(steps):
        start = time.perf_counter()
        step(index)
        _synchronize(cuda)
        plain.append(time.perf_counter() - start)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as recorder:
        for index in range(steps):
            with record_function(STEP):
                step(index)
                _synchronize(cuda)
    events = list(_read(recorder, cuda))
    windows = [event for event in events if event.name == STEP and event.thread and event.thread[0] == "host"]
    lanes = [
        event for event in events if event.name != STEP and (not cuda or not event.thread or event.thread[0] != "host")
    ]
    cost = 0.0 if cuda else event_cost()
    with Operations() as work:
        step(0)
    return Profile(plain, [anatomy(lanes, w.start, w.end, cost) for w in windows], work.counted, work.moved)


def event_cost() -> float:
    """The profiler's seconds for one event on a CPU: the shortest of many short turns with it, less that without it."""
    x, calls, turns = torch.zeros(1), 50, 40

    def shortest() -> float:
        seconds = []
        for _ in range(turns):
            start = time.perf_counter()
            for _ in range(calls):
                x.add_(1)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    without = shortest()
    with profile(activities=[ProfilerActivity.CPU]):
        within = shortest()
    return max(within - without, 0.0) / calls


def _synchronize(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def _read(recorder: Any, cuda: bool) -> Iterator[Event]:
    for event in recorder.profiler.kineto_results.events():
        name, start = event.name(), event.start_ns() / 1e9
        on_device = event.device_type() == torch._C._autograd.DeviceType.CUDA
        if on_device:
            wire = bool(WIRE.match(name))
            thread = None if wire else ("device", event.device_resource_id())
        else:
            thread = None if event.is_async() and WIRE.match(name) else ("host", event.start_thread_id())
            if event.is_async() and thread is not None:
                continue
        yield Event(name, start, start + event.duration_ns() / 1e9, thread)
