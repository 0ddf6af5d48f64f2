"""The moment at which a step's backward pass begins, whichever call starts it."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch.autograd import Variable

Reading = TypeVar("Reading")


class FirstBackward(Generic[Reading]):
    """``noted``: the value of ``read()`` when autograd's engine first ran while this was active, the moment at which
    all tensors kept for the backward pass are held. None if no backward pass used the engine.

    ``loss.backward()``, ``torch.autograd.grad`` and a pipeline's own call all use it.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self.noted: Reading | None = None

    def __enter__(self) -> "FirstBackward[Reading]":
        self._engine = Variable._execution_engine
        Variable._execution_engine = self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        Variable._execution_engine = self._engine

    def run_backward(self, *arguments: Any, **keywords: Any) -> Any:
        if self.noted is None:
            self.noted = self._read()
        return self._engine.run_backward(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
