"""The start and end of each action of a step."""

import itertools
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch

from harness.spec import Span, Spans
from impls.common.mesh import device

Action = tuple[str, int, int]  # kind, stage, micro-batch


def now(spans: Spans | None) -> float:
    """The time at which the device has finished its queued work; 0 if no one records."""
    if spans is None:
        return 0.0
    if device().type == "cuda":
        torch.cuda.synchronize()
    return spans.clock()


def in_order(actions: Iterable[Action], kind: str) -> Callable[..., Action]:
    """For an engine's function that does not give its stage and micro-batch: the actions of its kind, in the schedule's
    order, step after step."""
    order = itertools.cycle([action for action in actions if action[0] == kind])
    return lambda *_: next(order)


def watched(trainer: Any, function: Callable[..., Any], action: Callable[..., Action]) -> Callable[..., Any]:
    """An engine's ``function``, whose calls append a span to ``trainer.spans`` while that is a list. ``action``
    receives the call's positional arguments and returns the action."""

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        start = now(trainer.spans)
        found = function(*arguments, **keywords)
        if trainer.spans is not None:
            trainer.spans.append(Span(*action(*arguments), start, now(trainer.spans)))
        return found

    return call
