"""CUDA's streams and copies without CUDA, for engines that request them but compute nothing that needs them.

The CPU's streams have the same interface and do nothing: no arithmetic, no collective and no shape changes.
"""

import functools

import torch
from torch import Tensor


class Stream(torch.cpu.Stream):
    """It is its own event: a CPU executes work in order."""

    def record_event(self, event: object = None) -> "Stream":
        return self

    def synchronize(self) -> None:
        pass

    def wait(self, stream: object = None) -> None:
        pass


@functools.cache
def redirect() -> None:
    """Applies to the rest of this process: ranks are fresh processes, and no other engine runs in them."""
    if torch.cuda.is_available():
        return
    torch.cuda.Stream = lambda *_args, **_kwargs: Stream()
    torch.cuda.stream, torch.cuda.synchronize = torch.cpu.stream, lambda *_args, **_kwargs: None
    torch.cuda.default_stream = torch.cuda.current_stream = torch.cpu.current_stream
    Tensor.cuda = lambda self, *_args, **_kwargs: self
    Tensor.record_stream = lambda self, stream: None
