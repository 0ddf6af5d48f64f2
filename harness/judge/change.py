"""A figure before and after: regressed, improved, the same, or inconclusive.

Correctness is judged by its own verdicts. Counts (memory, traffic, floating-point operations) must stay within the band
of the earlier runs. Step times are judged beside the reference of their own run,
since a machine's speed drifts from run to run.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median, median_low
from typing import Any, NamedTuple

from harness.judge.speed import DECIDABLE

BAD = ("fail", "error")
COUNTS = ("memory", "traffic", "flops")  # the same in each run of the same software
GRANULE = 512.0  # bytes: the smallest block of CUDA's caching allocator, so that a smaller difference costs nothing
# The peaks of two ranks that exchange data depend on which one is ahead.
UNREPEATABLE = (("memory", "peak"),)
CONTROL = "reference"


class Sample(NamedTuple):
    """The figure of one run, with the detail of its measurement."""

    value: float
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure in a selection of runs, the oldest first. All but ``samples`` is from the latest run."""

    unit: str
    direction: str
    verdict: str
    reason: str
    law: float | None = None
    samples: tuple[Sample, ...] = ()
    topic: str = ""
    engine: str = ""

    @property
    def value(self) -> float | None:
        return median(sample.value for sample in self.samples) if self.samples else None

    def __str__(self) -> str:
        return told(self.value, self.unit)


class Judged(NamedTuple):
    """``low`` and ``high`` bound the ratio after / before."""

    verdict: str
    reason: str
    low: float | None = None
    high: float | None = None


def told(value: float | None, unit: str) -> str:
    if value is None:
        return "no figure"
    number = f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


def judge(measure: str, quantity: str, before: Figure, after: Figure, family: float, same_machine: bool) -> Judged:
    """The change of a figure that both selections have. ``family``: the largest relative spread of the quantity over
    the earlier runs, of any case of the engine."""
    speed = measure == "throughput" and "minimum_detectable_effect" in _latest(before) | _latest(after)
    elsewhere = "" if same_machine else ", on other hardware"
    if after.verdict in BAD:
        verdict = "same" if before.verdict in BAD else "regressed"
        earlier = "as before" if verdict == "same" else f"was {before}, {before.verdict}"
        return Judged(verdict, f"{after.verdict}, {earlier}{elsewhere}: {after.reason}", *_bounds(before, after))
    if before.verdict in BAD and after.verdict == "pass":
        reason = f"{after}, passes; was {before}, {before.verdict}{elsewhere}: {before.reason}"
        return Judged("improved", reason, *_bounds(before, after))
    if speed:
        return _speed(before, after, same_machine)
    if after.verdict != "pass" and after.verdict != before.verdict:
        return Judged("inconclusive", f"{after.verdict}, was {before.verdict}: {after.reason}", *_bounds(before, after))
    if measure in COUNTS and before.samples and after.samples:
        found = _count((measure, quantity), before, after, family)
        return found._replace(reason=found.reason + elsewhere)
    return Judged("same", f"{after}, was {before}: {after.verdict} in both{elsewhere}", *_bounds(before, after))


def spread(values: Iterable[float]) -> float:
    """Largest ÷ smallest − 1 of values above 0."""
    found = [value for value in values if value > 0]
    return max(found) / min(found) - 1 if found else 0.0


def _latest(figure: Figure) -> dict[str, Any]:
    return dict(figure.samples[-1].detail) if figure.samples else {}


def _bounds(before: Figure, after: Figure) -> tuple[float | None, float | None]:
    """The smallest and the largest ratio of two runs' figures."""
    first, last = [[sample.value for sample in figure.samples] for figure in (before, after)]
    if not first or not last or min(first) <= 0:
        return None, None
    return min(last) / max(first), max(last) / min(first)


def _count(name: tuple[str, str], before: Figure, after: Figure, family: float) -> Judged:
    """The band: the earlier runs' figures, as much again on both sides, and the allocator's granularity. What cannot be
    repeated is as uncertain as the least repeatable case of its engine, and undecided if nobody repeated it."""
    value, now = before.value, after.value
    assert value is not None
    assert now is not None
    bounds = _bounds(before, after)
    meters = _latest(before).get("meter"), _latest(after).get("meter")
    if meters[0] != meters[1]:
        return Judged("inconclusive", f"{after}, was {before}, but by another meter: {meters[1]}, was {meters[0]}")
    earlier = [sample.value for sample in before.samples]
    slack = max(earlier) - min(earlier)
    if name in UNREPEATABLE:
        slack = max(slack, family * max(earlier))
    if name[0] == "memory" and before.unit == "B":
        slack = max(slack, GRANULE)
    least, most = min(earlier) - slack, max(earlier) + slack
    runs = f"{len(earlier)} earlier runs" if len(earlier) > 1 else "one earlier run"
    if least <= now <= most:
        return Judged("same", f"{after}, was {before}: within the band of {runs}", *bounds)
    text = f"{after}, was {before}"
    text += f": {now / value - 1:+.2%}" if value else ""
    text += f", outside of the band of {runs} ({told(least, '')} to {told(most, before.unit)})"
    if name in UNREPEATABLE and len(earlier) == 1:
        return Judged("inconclusive", f"{text}; it differs from run to run, so compare with several runs", *bounds)
    return Judged("regressed" if _worse(before, after, now > value) else "improved", text, *bounds)


def _worse(before: Figure, after: Figure, more: bool) -> bool:
    """A figure that should equal its law, or has none, is worse the farther it is from it."""
    if after.direction != "equal":
        return more == (after.direction == "lower")
    if before.law is None or before.law != after.law or before.value is None or after.value is None:
        return True
    return abs(after.value - after.law) > abs(before.value - before.law)


def _speed(before: Figure, after: Figure, same_machine: bool) -> Judged:
    """Ratio to the control of the same run, by paired rounds. Without a control, only several earlier runs tell how far
    the machine's own speed drifts."""
    text = f"{told(_ms(after), 'ms')}, was {told(_ms(before), 'ms')}"
    if not same_machine:
        return Judged("inconclusive", f"{text}, on other hardware: speeds are not compared")
    if not before.samples or not after.samples:
        return Judged("inconclusive", f"{text}: no step times in one of them")
    control = _control(before.samples[-1], after.samples[-1])
    first, last = [[found for s in each.samples if (found := _log(s, control))] for each in (before, after)]
    if not first or not last:
        return Judged("inconclusive", f"{text}: no step times with intervals in one of them")
    change = median(middle for middle, _ in last) - median(middle for middle, _ in first)
    half = math.hypot(last[-1][1], first[-1][1])
    drift = math.exp(max(first)[0] - min(first)[0]) - 1
    noise = max(_noise(before.samples[-1]), _noise(after.samples[-1]), drift)
    ratio, low, high = math.exp(change), math.exp(change - half), math.exp(change + half)
    text += f": {ratio:.3f} × ({low:.3f} to {high:.3f})" + (f" beside {control}" if control else "")
    if not control and len(first) < 2:
        text += "; nothing was timed beside it, and one earlier run does not show how far this machine drifts: time the"
        return Judged("inconclusive", f"{text} reference too", low, high)
    text += f"; differences under {noise:.1%} are noise"
    beyond = abs(change) > math.log1p(noise)
    if beyond and (low > 1 or high < 1):
        return Judged("regressed" if change > 0 else "improved", text, low, high)
    return Judged("inconclusive" if beyond or noise > DECIDABLE else "same", text, low, high)


def _control(before: Sample, after: Sample) -> str:
    """The reference; for the reference itself, the engine in the middle of those that were timed beside it."""
    first, last = before.detail.get("ratios") or {}, after.detail.get("ratios") or {}
    common = [name for name in first if first[name] and last.get(name)]
    if CONTROL in common or not common:
        return CONTROL if common else ""
    changes = {last[name] / first[name]: name for name in common}
    return str(changes[median_low(changes)])


def _log(sample: Sample, control: str) -> tuple[float, float] | None:
    """The logarithm of the step time, or of its ratio to the control's, and half of its interval."""
    if control:
        value = (sample.detail.get("ratios") or {}).get(control)
        low, high = (sample.detail.get("ratio_intervals") or {}).get(control) or (None, None)
    else:
        value, low, high = sample.value, sample.detail.get("low"), sample.detail.get("high")
    return (math.log(value), math.log(high / low) / 2) if value and low and high else None


def _noise(sample: Sample) -> float:
    found = sample.detail.get("minimum_detectable_effect")
    return math.inf if found is None else float(found)


def _ms(figure: Figure) -> float | None:
    return None if figure.value is None else 1e3 * figure.value
