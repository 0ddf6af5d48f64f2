"""Change points over all series of a store: the first run of a new level, and what changed with it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from statistics import median

from harness.history.environments import differences
from harness.history.model import Alarm, Series
from harness.history.series import ABOUT_RUNS, Environments, environments, series
from harness.judge.change import CONTROL
from harness.judge.shift import SEGMENT, MissingOtavaError, Shift, shifts
from harness.spec.case import word
from harness.store import Store

# The share of false alarms, and without any change the probability of one each night: less than one in a month of
# nights, even if every night were independent of the others.
FALSE = 1 / 31


def trend(found: Sequence[Series], environments: Environments | None = None) -> list[Alarm]:
    """The newest alarm first, and in each run the largest. ``environments``: those of the runs, to say what changed.

    Step times are divided by those of the engines that were timed beside them, so that the machine's own drift cancels.
    Raises :class:`harness.judge.shift.MissingOtavaError`.
    """
    from scipy.stats import false_discovery_control

    family = [each for each in found if each.measure not in ABOUT_RUNS and len(each.points) >= 2 * SEGMENT]
    beside = _beside(family)
    tests: list[tuple[Series, Series, Shift | None]] = []
    for each in family:
        judged = paired(each, beside.get(_block(each), ()))
        seen = shifts([point.value for point in judged.points])
        tests += [(each, judged, shift) for shift in seen] or [(each, judged, None)]
    if not tests:
        return []
    chances = false_discovery_control([shift.p if shift else 1.0 for *_, shift in tests])
    alarms = [
        _alarm(each, judged, shift, float(chance), environments or {})
        for (each, judged, shift), chance in zip(tests, chances, strict=True)
        if shift and chance <= FALSE
    ]
    starts = {(id(alarm.series), point.run): point.started for alarm in alarms for point in alarm.series.points}
    alarms.sort(key=_size, reverse=True)
    return sorted(alarms, key=lambda alarm: starts[id(alarm.series), alarm.run], reverse=True)


def sought(store: Store) -> tuple[list[Alarm], str]:
    """The change points of all series of a store, and why there are none if they could not be sought."""
    try:
        return trend(series(store), environments(store)), ""
    except MissingOtavaError as error:
        return [], f"Change points were not sought: {error}"


def recent(alarm: Alarm, runs: int) -> bool:
    """Whether its first run is among the last ``runs`` of its series."""
    return any(point.run == alarm.run for point in alarm.series.points[-runs:])


def paired(series: Series, beside: Sequence[Series]) -> Series:
    """The series without the drift that the controls show, in its own unit: the control is the reference, or for the
    reference the median of all others. Runs without a control are left out; a control that was timed in fewer than
    half of the runs is none."""
    runs = {point.run for point in series.points}
    others = [each for each in beside if each.engine != series.engine]
    drift: dict[str, list[float]] = {}
    for control in [each for each in others if each.engine == CONTROL] or others:
        common = {point.run: point.value for point in control.points if point.run in runs and 0 < point.value < inf}
        if 2 * len(common) >= len(runs):
            middle = median(common.values())
            for run, value in common.items():
                drift.setdefault(run, []).append(value / middle)
    if not drift:
        return series
    points = [replace(each, value=each.value / median(drift[each.run])) for each in series.points if each.run in drift]
    return replace(series, points=tuple(points))


def _block(series: Series) -> tuple[str, str, str, str]:
    """Equal for the series of step times that were taken together."""
    return series.case.replace(f"-{word(series.engine)}-", "-", 1), series.measure, series.quantity, series.machine


def _beside(family: Sequence[Series]) -> Mapping[tuple[str, str, str, str], Sequence[Series]]:
    found: dict[tuple[str, str, str, str], list[Series]] = {}
    for each in family:
        if (each.measure, each.unit) == ("throughput", "s"):
            found.setdefault(_block(each), []).append(each)
    return found


def _alarm(series: Series, judged: Series, shift: Shift, p: float, environments: Environments) -> Alarm:
    last, first = judged.points[shift.place - 1].run, judged.points[shift.place].run
    less = shift.after < shift.before
    changed = differences([environments.get(last, {})], [environments.get(first, {})])
    improved = series.direction != "equal" and less == (series.direction == "lower")
    return Alarm(series, first, shift.before, shift.after, improved, p, changed)


def _size(alarm: Alarm) -> float:
    return abs(alarm.after / alarm.before - 1) if alarm.before else inf
