"""When each action of a step began and ended."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from harness.spec import Span, Spans
from impls.models.mesh import device


def now(spans: Spans | None) -> float:
    """The time at which what was asked of the device is done; 0 where nobody asks."""
    if spans is None:
        return 0.0
    if device().type == "cuda":
        torch.cuda.synchronize()
    return spans.clock()


def watched(
    trainer: Any, function: Callable[..., Any], action: Callable[..., tuple[str, int, int]]
) -> Callable[..., Any]:
    """An engine's ``function``, whose calls add a span to ``trainer.spans`` while that is a list. ``action`` is given
    the call's positional arguments and says which action it was."""

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        start = now(trainer.spans)
        found = function(*arguments, **keywords)
        if trainer.spans is not None:
            trainer.spans.append(Span(*action(*arguments), start, now(trainer.spans)))
        return found

    return call
