"""Change points of one series: where its level changed, and how likely chance alone would look like that.

Apache Otava (E-divisive) says where; this file is the only one that knows it. The p-value is that of Student's t-test
between the two segments, corrected for the choice among all places where the series could have been split.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEGMENT = 4  # runs on each side of a change: fewer say nothing about their own spread beside a stray one
WEAK = 0.05  # the p-value of a change that is not even looked at; the decision is made over all series together
OUTLYING = 3.0  # standard deviations from the segment's median, at which a value is cut off: a spike is no level
NORMAL = 1.4826  # the standard deviation of normal noise over its median absolute deviation
# Its analysis needs no more than NumPy and SciPy; its distribution pins an older NumPy and brings database clients.
INSTALL = "needs Apache Otava: pip install --no-deps 'apache-otava>=0.8,<0.9', or pip install 'plumbline[trend]'"

Values = NDArray[np.float64]


class MissingOtavaError(Exception):
    """Apache Otava is not installed."""


class Shift(NamedTuple):
    """``place``: of the first value after the change; ``before`` and ``after``: the segments' means, spikes cut off."""

    place: int
    p: float
    before: float
    after: float


def shifts(values: Sequence[float]) -> list[Shift]:
    """The change points in order; none in fewer than two segments' values. Raises :class:`MissingOtavaError`."""
    series = np.asarray(values, dtype=np.float64)
    if len(series) < 2 * SEGMENT or float(np.ptp(series)) == 0.0:
        return []
    places = _places(_despiked(series))
    judged = cache(partial(_shift, series))
    while True:
        ends = [0, *places, len(series)]
        found = [judged(*ends[at : at + 3]) for at in range(len(places))]
        # The least certain change is none; then the less certain of the two that a short segment lies between.
        short = [at for at in range(len(ends) - 1) if ends[at + 1] - ends[at] < SEGMENT]
        beside = {at for first in short for at in (first - 1, first) if 0 <= at < len(places)}
        weak = {at for at, shift in enumerate(found) if shift.p > WEAK}
        if not weak and not beside:
            return found
        places.pop(max(weak or beside, key=lambda at: found[at].p))


def _places(series: Values) -> list[int]:
    try:
        from otava.analysis import compute_change_points
    except ImportError as error:
        raise MissingOtavaError(f"{INSTALL} ({error})") from None
    points, _ = compute_change_points(series.tolist(), window_len=len(series), max_pvalue=WEAK / 5)
    return sorted({int(point.index) for point in points})


def _despiked(series: Values) -> Values:
    """The running median of three: a single stray value is gone, and a step stays where it is."""
    inner = np.median(np.stack([series[:-2], series[1:-1], series[2:]]), axis=0)
    return np.concatenate([series[:1], inner, series[-1:]])


def _shift(series: Values, start: int, index: int, end: int) -> Shift:
    left, right = series[start:index], series[index:end]
    middles = [median(part.tolist()) for part in (left, right)]
    off = np.abs(np.concatenate([left - middles[0], right - middles[1]]))
    if limit := OUTLYING * NORMAL * median(off.tolist()):
        left, right = (
            part.clip(middle - limit, middle + limit) for part, middle in zip((left, right), middles, strict=True)
        )
    before, after = float(left.mean()), float(right.mean())
    choices = _choices(len(left), len(right)) * (len(series) / (end - start)) ** 2
    return Shift(index, min(1.0, _student(left, right) * choices), before, after)


def _student(left: Values, right: Values) -> float:
    """The two-sided p-value of Student's t-test: with few runs after a change, only both sides together tell the
    spread."""
    from scipy.special import stdtr

    freedom = len(left) + len(right) - 2
    squares = float(((left - left.mean()) ** 2).sum() + ((right - right.mean()) ** 2).sum())
    distance = abs(float(left.mean() - right.mean()))
    if freedom < 1 or squares == 0.0:
        return float(distance == 0.0)
    error = math.sqrt(squares / freedom * (1 / len(left) + 1 / len(right)))
    return 2.0 * float(stdtr(freedom, -distance / error))


def _choices(before: int, after: int) -> float:
    """A weighted Bonferroni correction. The n-th place from the end has 1/n of the last place's share, since a change
    there has been looked for in n nights."""
    places = max(before + after - 2 * SEGMENT + 1, 1)
    nth = max(after - SEGMENT + 1, 1)
    return nth * math.fsum(1 / place for place in range(1, places + 1))
