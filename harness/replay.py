"""Passes our figures to pytest-benchmark: its clock replays the step times that the interleaved rounds measured."""

from collections.abc import Sequence
from typing import Any


class ReplayClock:
    """A clock whose pairs of readings are one measured step apart."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._now, self._inside = 0.0, False

    def load(self, seconds: Sequence[float]) -> None:
        self._seconds, self._inside = list(seconds), False

    def __call__(self) -> float:
        if self._inside and self._seconds:
            self._now += self._seconds.pop(0)
        else:
            self._now += 1e-9  # pytest-benchmark measures its timer's own precision first
        self._inside = not self._inside
        return self._now

    def __repr__(self) -> str:
        return "replayed step times"


def play(benchmark: Any, clock: ReplayClock, seconds: Sequence[float], facts: dict[str, Any]) -> None:
    """Hands ``seconds`` to the ``benchmark`` fixture whose timer is ``clock``, with ``facts`` for its JSON. They
    replace the test's parameters, since a case cannot be written as text."""
    benchmark.extra_info.update(facts)
    benchmark.params = {name: facts[name] for name in ("measure", "case")}
    clock.load(seconds)
    benchmark.pedantic(_nothing, rounds=len(seconds), iterations=1)


def _nothing() -> None:
    """The function that the benchmark calls; the work has been done before."""
