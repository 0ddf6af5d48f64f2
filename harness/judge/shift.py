"""Change points of one series: where its level changed, and how likely chance alone would look like that.

Apache Otava (E-divisive) says where in the history; this file is the only one that knows it. It stops at the first
split that is not significant and so misses one in fifteen steps of three standard deviations after five runs. The
newest places are therefore tried one by one. A single stray run is set aside before, and most runs on both sides of a
change must tell of it. Its p-value is that of Student's t-test between the two segments, corrected for all the places
and nights at which the change could have been seen.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SEGMENT = 4  # runs on each side of a change: fewer say nothing about their own spread, and three may be stray
FRESH = 8  # runs after a place that is tried whether or not Otava names it
# The parts of the chance of a false alarm that the first two nights get on which a change can be seen; the rest is
# divided equally among the older places. Each night decides anew on a place, so that the parts add up to one.
SHARES = {SEGMENT: 1 / 6, SEGMENT + 1: 2 / 3}
WEAK = 0.05  # the p-value of a change that is not even looked at; the decision is made over all series together
SPLIT = 0.01  # that of a split which Otava goes on from, not corrected for anything
AROUND = 9  # runs whose median a stray one is compared with
OUTLYING = 4.0  # standard deviations from the median, at which a lone value is stray
CONFIRMED = 1 / 3  # as far off on the same side, the run before or after confirms it
MOST = 2 / 3  # of a segment's values are nearer to its level than to the other
NORMAL = 1.4826  # the standard deviation of normal noise over its median absolute deviation
# Its analysis needs no more than NumPy and SciPy; its distribution pins an older NumPy and brings database clients.
INSTALL = "needs Apache Otava: pip install --no-deps 'apache-otava>=0.8,<0.9', or pip install 'plumbline[trend]'"

Values = NDArray[np.float64]


class MissingOtavaError(Exception):
    """Apache Otava is not installed."""


class Shift(NamedTuple):
    """``place``: of the first value after the change; ``before`` and ``after``: the segments' means, without spikes."""

    place: int
    p: float
    before: float
    after: float


class Level(NamedTuple):
    runs: int
    mean: float
    squares: float  # the sum of squared deviations from the mean


def shifts(values: Sequence[float]) -> list[Shift]:
    """The change points in order; none in fewer than two segments' values. Values that are not finite are no values.
    Raises :class:`MissingOtavaError`."""
    every = np.asarray(values, dtype=np.float64)
    places = np.flatnonzero(np.isfinite(every))
    if len(places) < 2 * SEGMENT or float(np.ptp(every[places])) == 0.0:
        return []
    places = places[~_stray(every[places])]
    series = every[places]
    if len(series) < 2 * SEGMENT:
        return []
    return [found._replace(place=int(places[found.place])) for found in _shifts(series)]


def _shifts(series: Values) -> list[Shift]:
    judged = cache(partial(_shift, series))
    newest = len(series) - FRESH
    places = [place for place in _places(series) if place < newest]
    found = _pruned(places, len(series), judged)
    start = found[-1].place if found else 0
    fresh = [judged(start, at, len(series)) for at in range(max(newest, start + SEGMENT), len(series) - SEGMENT + 1)]
    best = min(fresh, key=lambda shift: shift.p, default=None)
    if best and best.p <= WEAK:
        found = _pruned([*places, best.place], len(series), judged)
    return found


def _pruned(places: Sequence[int], length: int, judged: Any) -> list[Shift]:
    """The changes that are left without the weak ones and the short segments, the least certain removed first."""
    left = list(places)
    while True:
        ends = [0, *left, length]
        found = [judged(*ends[at : at + 3]) for at in range(len(left))]
        short = [at for at in range(len(ends) - 1) if ends[at + 1] - ends[at] < SEGMENT]
        beside = {at for first in short for at in (first - 1, first) if 0 <= at < len(left)}
        weak = {at for at, shift in enumerate(found) if shift.p > WEAK}
        if not weak and not beside:
            return found
        left.pop(max(weak or beside, key=lambda at: found[at].p))


def _places(series: Values) -> list[int]:
    try:
        from otava.analysis import TTestSignificanceTester, TTestStats
        from otava.change_point_divisive.calculator import PairDistanceCalculator
        from otava.change_point_divisive.detector import ChangePointDetector
    except ImportError as error:
        raise MissingOtavaError(f"{INSTALL} ({error})") from None

    class Student(TTestSignificanceTester):  # type: ignore[misc]  # Otava has no types
        """Otava's own takes the population's standard deviation for the sample's, and is slow."""

        def compare(self, left: Values, right: Values) -> Any:
            return TTestStats(
                pvalue=_student(_level(left), _level(right)), mean_1=0.0, mean_2=0.0, std_1=0.0, std_2=0.0
            )

    detector = ChangePointDetector(significance_tester=Student(SPLIT), calculator=PairDistanceCalculator)
    return sorted(int(point.index) for point in detector.get_change_points(series))


def _stray(series: Values) -> NDArray[np.bool_]:
    """Far from the median around it, and neither the run before nor the one after confirms it. The newest runs may be
    the beginning of a new level."""
    from scipy.ndimage import median_filter

    off = series - median_filter(series, AROUND, mode="reflect")
    far = np.abs(off) > OUTLYING * NORMAL * median(np.abs(off).tolist())
    beside = np.stack([np.append(0.0, off[:-1]), np.append(off[1:], 0.0)])
    confirmed = (beside * np.sign(off) >= CONFIRMED * np.abs(off)).any(0)
    return np.asarray(far & ~confirmed & (np.arange(len(series)) < len(series) - FRESH))


def _shift(series: Values, start: int, index: int, end: int) -> Shift:
    left, right = series[start:index], series[index:end]
    middles = median(left.tolist()), median(right.tolist())
    if not (_held(left, *middles) and _held(right, *reversed(middles))):
        return Shift(index, 1.0, *middles)
    off = np.abs(np.concatenate([left - middles[0], right - middles[1]]))
    limit = OUTLYING * NORMAL * median(off.tolist()) or math.inf
    levels = _level(left, middles[0], limit), _level(right, middles[1], limit)
    p = _student(*levels) * (len(series) / (end - start)) ** 2 / _share(index - start, end - index)
    return Shift(index, min(1.0, p), levels[0].mean, levels[1].mean)


def _held(part: Values, own: float, other: float) -> bool:
    """Whether a segment's values are those of its level. Four stray runs near each other are not to be expected."""
    middle = (own + other) / 2
    there = int(np.count_nonzero(part > middle if own > other else part < middle))
    return own != other and there >= max(SEGMENT, math.ceil(MOST * len(part)))


def _level(part: Values, middle: float = 0.0, limit: float = math.inf) -> Level:
    """A value farther than ``limit`` from the median says nothing of the level, and is noise as large as the limit."""
    off = part - middle
    mean = float(np.where(np.abs(off) <= limit, off, 0.0).sum()) / len(part)
    noise = off.clip(-limit, limit) - mean
    return Level(len(part), middle + mean, float(noise @ noise))


def _student(left: Level, right: Level) -> float:
    """The two-sided p-value of Student's t-test: with few runs after a change, only both sides together tell the
    spread."""
    from scipy.special import stdtr

    freedom = left.runs + right.runs - 2
    squares, distance = left.squares + right.squares, abs(left.mean - right.mean)
    if freedom < 1 or squares == 0.0:
        return float(distance == 0.0)
    error = math.sqrt(squares / freedom * (1 / left.runs + 1 / right.runs))
    return 2.0 * float(stdtr(freedom, -distance / error))


def _share(before: int, after: int) -> float:
    older = max(before + after - 2 * SEGMENT + 1 - len(SHARES), 1)
    return SHARES.get(after, (1 - sum(SHARES.values())) / older)
