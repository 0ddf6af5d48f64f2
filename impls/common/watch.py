"""When each action of a step began and ended."""

import itertools
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch

from harness.spec import Span, Spans
from impls.common.mesh import device

Action = tuple[str, int, int]  # kind, stage, micro-batch


def now(spans: Spans | None) -> float:
    """The time at which what was asked of the device is done; 0 where nobody asks."""
    if spans is None:
        return 0.0
    if device().type == "cuda":
        torch.cuda.synchronize()
    return spans.clock()


def in_order(actions: Iterable[Action], kind: str) -> Callable[..., Action]:
    """For an engine's function that does not say which stage and micro-batch it is called for: the actions of its kind,
    in the schedule's order, step after step."""
    order = itertools.cycle([action for action in actions if action[0] == kind])
    return lambda *_: next(order)


def watched(trainer: Any, function: Callable[..., Any], action: Callable[..., Action]) -> Callable[..., Any]:
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
