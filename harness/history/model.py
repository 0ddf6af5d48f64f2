"""The records of the history: a series of one figure, a comparison of two selections of runs, an alarm."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Point:
    """The figure of one run. ``samples``: the repetitions behind it, where they were kept (seconds of timed steps)."""

    run: str
    started: str  # UTC, ISO 8601
    value: float
    verdict: str
    samples: tuple[float, ...] = ()


@dataclass(frozen=True)
class Series:
    """One figure of one case on one machine, the oldest run first. Runs of different hardware are different series."""

    case: str
    measure: str
    quantity: str
    unit: str
    direction: str  # as in Measurement
    machine: str  # names the hardware: equal for runs whose figures may be compared
    points: tuple[Point, ...] = ()
    topic: str = ""
    engine: str = ""


@dataclass(frozen=True)
class Change:
    """One figure before and after. ``low`` and ``high`` bound the ratio after / before; None where it has none."""

    case: str
    measure: str
    quantity: str
    unit: str
    before: float | None
    after: float | None
    low: float | None
    high: float | None
    verdict: str  # regressed, improved, same, inconclusive, new, gone
    reason: str


@dataclass(frozen=True)
class Comparison:
    """``environment``: key → (before, after), only where they differ; the values are texts."""

    before: tuple[str, ...]  # runs
    after: tuple[str, ...]
    changes: tuple[Change, ...]
    environment: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Alarm:
    """A series' level changed for the worse (or, ``improved``, for the better) at ``run``, the first run after it."""

    series: Series
    run: str
    before: float  # mean of the segment that ended
    after: float
    improved: bool
    p: float  # after false-discovery control over all series of the family
    environment: dict[str, tuple[str, str]] = field(default_factory=dict)  # what changed with it
