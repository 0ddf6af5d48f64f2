"""The outcome of a job on one rank. A dead rank is a value, not an exception."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """``target`` is ``"module:function"``, called in the rank as ``function(context, **arguments)``."""

    target: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Done:
    rank: int
    value: Any


@dataclass(frozen=True)
class Failure:
    """``at``: seconds since the job was sent; ``echo``: the rank only waits for a peer, or lost one."""

    rank: int
    at: float
    text: str
    echo: bool = False

    @property
    def message(self) -> str:
        """One line: a traceback's exception, or the text's beginning."""
        last = self.text.rpartition("Traceback (most recent call last):\n")[2]
        return next((line for line in last.splitlines() if line and not line[0].isspace()), "")


class Raised(Failure):
    """The job raised; the text is the traceback."""


class Killed(Failure):
    """The process ended; the text names the signal or exit status and holds the end of its output."""


class Hung(Failure):
    """The rank had not answered when time ran out or a peer failed; the text holds its stacks."""


class Lost(Failure):
    """The rank's node was lost; the text names the node and its ranks."""


class OutOfMemory(Failure):
    """The allocator or the kernel ran out of memory."""


@dataclass(frozen=True)
class Unsupported:
    """The engine reported that it cannot do this."""

    rank: int
    reason: str


Outcome = Done | Failure | Unsupported


def failures(outcomes: Sequence[Outcome]) -> list[Failure]:
    """The failures, the earliest first; ranks that only wait for a peer, or lost one, come last."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    return sorted(failed, key=lambda failure: (failure.echo, isinstance(failure, Hung), failure.at))


def describe(outcomes: Sequence[Outcome]) -> str:
    """The first failure's message, then all ranks' tracebacks or stacks, from the rank that failed first. The message
    is the same whichever rank that was, so that reports can group failures by it."""
    failed = failures(outcomes)
    blocks = [
        f"rank {failure.rank} · {type(failure).__name__} after {failure.at:.1f} s\n{failure.text.rstrip()}"
        for failure in failed
    ]
    return "\n\n".join([failed[0].message, *blocks]) if failed else ""
