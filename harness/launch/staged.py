"""Collectives of ranks that share a GPU: NCCL rejects such ranks, and gloo supports few collectives of CUDA tensors.

The collectives use copies on the host, below the level that meters see. This serves correctness; timed steps never use
it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work
from torch.utils._pytree import tree_map

Copies = list[tuple[Tensor, Tensor]]  # (tensor on the device, its copy on the host)


class Received(Work):
    """A message that is copied to the device when it is waited for. ``waiting`` keeps this object alive until then: C++
    alone would drop the Python subclass."""

    def __init__(self, work: Work, copies: Copies, waiting: set["Received"]) -> None:
        super().__init__()
        self.work, self.copies, self.waiting = work, copies, waiting
        waiting.add(self)

    def is_completed(self) -> bool:
        return bool(self.work.is_completed())

    def wait(self, timeout: Any = None) -> bool:
        self.work.wait()
        _up(self.copies)
        self.copies = []
        self.waiting.discard(self)
        return True


def install() -> torch.library.Library:
    """Stages every collective of CUDA tensors in this process for as long as the result lives."""
    library = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CPU"):
        namespace, _, operator = name.partition("::")
        if namespace == "c10d":
            kernel = staged(getattr(torch.ops.c10d, operator).default)
            library.impl(operator, kernel, "CUDA")  # type: ignore[no-untyped-call]
    return library


def staged(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The collective, run on host copies of its tensors; the results are copied back."""
    waiting: set[Received] = set()
    receives = "recv" in str(operator)

    def run(*arguments: Any) -> Any:
        copies: Copies = []

        def down(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            copies.append((value, value.to("cpu", copy=True)))
            return copies[-1][1]

        def up(value: Any) -> Any:
            return next((there for there, here in copies if here is value), value)

        found = operator(*tree_map(down, arguments))
        if found is None:
            return None
        *outputs, boxed = found if isinstance(found, tuple) else (found,)
        work = Work.unbox(boxed)
        if receives:
            return Received(work, copies, waiting).boxed()
        if "send" not in str(operator):  # the peer may receive it late
            work.wait()
            _up(copies)
        return (*tree_map(up, outputs), boxed) if outputs else boxed

    return run


@torch.no_grad()
def _up(copies: Copies) -> None:
    for there, here in reversed(copies):  # outputs come before inputs, and inputs may be parts of outputs
        there.data.copy_(here)  # a collective also writes without telling autograd
    if any(there.is_cuda for there, _ in copies):
        torch.cuda.current_stream().synchronize()  # the tensor may be used on another stream
