"""Step times of several engines, measured in interleaved rounds, and the conclusions that they allow."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.spec import Measurement

Rounds = Sequence[Sequence[float]]  # round → step times

RESAMPLES = 1000
DECIDABLE = 0.10  # a larger minimum detectable effect decides nothing
MARK = 1.5  # on GPUs, a reference slower than this × the fastest engine is marked


@dataclass(frozen=True)
class Timing:
    """Seconds per step: ``median`` with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


def timing(rounds: Rounds) -> Timing:
    """``rounds`` holds the step times of each round. Rounds are resampled, not steps: neighbouring steps drift
    together."""
    medians = _medians(rounds)
    drawn = _resampled(medians)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Timing(float(np.median(medians)), float(low), float(high))


def effect(ours: Rounds, others: Iterable[Rounds] = ()) -> float:
    """The smallest ratio − 1 that A/A runs of this very engine would not produce by chance.

    Two random halves of its own rounds differ by chance alone, by √2 times the difference of two whole runs. The part
    that all the ``others`` share in a round is the machine's drift; a ratio does not see it, so it is divided out.
    """
    medians = _medians(ours)
    if len(medians) < 2:
        return float("inf")
    common = [np.log(_medians(rounds)) for rounds in others]
    relative = np.log(medians) - (np.mean(common, axis=0) if common else 0.0)
    generator = np.random.default_rng(1)
    halves = generator.permuted(np.tile(relative, (RESAMPLES, 1)), axis=1)
    middle = len(medians) // 2
    differences = np.median(halves[:, :middle], axis=1) - np.median(halves[:, middle:], axis=1)
    return float(np.quantile(np.abs(differences), 0.95)) / math.sqrt(2)


def effects(rounds: Mapping[str, Rounds]) -> dict[str, float]:
    """:func:`effect` of each engine beside the others."""
    return {name: effect(ours, [r for other, r in rounds.items() if other != name]) for name, ours in rounds.items()}


def ratio(ours: Rounds, theirs: Rounds) -> tuple[float, float, float]:
    """Ours ÷ theirs, round by round, so that drift affects both alike: median and 95 % bootstrap interval."""
    by_round = _medians(ours) / _medians(theirs)
    low, high = np.quantile(_resampled(by_round), [0.025, 0.975])
    return float(np.median(by_round)), float(low), float(high)


def _medians(rounds: Rounds) -> NDArray[np.float64]:
    return np.array([np.median(steps) for steps in rounds])


def _resampled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    generator = np.random.default_rng(0)
    return np.asarray(np.median(generator.choice(values, (RESAMPLES, len(values))), axis=1))


def judge(
    engine: str,
    rounds: Mapping[str, Rounds],
    tokens: int,
    flops: float | None,
    ceiling: float,
    spoilt: int,
    wrong: Collection[str] = (),
    marked: bool = False,
) -> list[Measurement]:
    """The measurement for one engine of a block; ``rounds`` holds all engines that compute the same variant.

    Time never fails: the verdict only says whether noise hides a difference of a tenth. ``marked``: as on GPUs, a
    reference slower than :data:`MARK` × the fastest engine that is not ``wrong`` is marked. ``flops``: of a step; None
    if nobody counts them.
    """
    mine, noise = timing(rounds[engine]), effects(rounds)[engine]
    ratios = {other: ratio(rounds[engine], times) for other, times in rounds.items() if other != engine}
    fastest = min(rounds, key=lambda name: timing(rounds[name]).median)
    detail = {
        "samples": [second for steps in rounds[engine] for second in steps],
        "rounds": len(rounds[engine]),
        "low": mine.low,
        "high": mine.high,
        "minimum_detectable_effect": noise,
        "tokens_per_second": tokens / mine.median,
        "tflops": flops / mine.median / 1e12 if flops else None,
        "mfu": flops / mine.median / ceiling if flops and ceiling else None,
        "ratios": {other: value[0] for other, value in ratios.items()},
        "ratio_intervals": {other: value[1:] for other, value in ratios.items()},
        "ratio_to_fastest": ratios[fastest][0] if fastest != engine else 1.0,
        "fastest": fastest,
    }
    text = f"{mine.median * 1e3:.2f} ms per step (95 %: {mine.low * 1e3:.2f} to {mine.high * 1e3:.2f})"
    text += f", {detail['ratio_to_fastest']:.2f} × {fastest}" if fastest != engine else ", the fastest"
    text += f"; differences under {noise:.1%} are noise"
    if spoilt:
        text += f"; {spoilt} disturbed rounds were repeated"
    right = [other for other in ratios if other not in wrong]
    if marked and engine == "reference" and right:
        best = min(right, key=lambda name: timing(rounds[name]).median)
        middle, low, high = ratios[best]
        if low > MARK:
            detail["marked"] = f"{middle:.2f} × {best} ({low:.2f} to {high:.2f}), more than {MARK:g} ×"
            text += f"; marked: {detail['marked']}"
    verdict = "pass" if noise <= DECIDABLE else "inconclusive"
    return [Measurement("throughput", "step_time", mine.median, "s", verdict, text, detail=detail)]


def fresh(ratios: Sequence[float]) -> Measurement:
    """Whether a timed Function computes: see :meth:`harness.launch.fresh.Fresh.ratio`, in each turn."""
    largest = max(ratios)
    text = f"right on inputs drawn between timed steps, {len(ratios)} times"
    if largest > 1:
        text = f"results of other inputs, or none, where inputs were drawn between timed steps ({len(ratios)} times): "
        text += "its times do not count"
    verdict = "fail" if largest > 1 else "pass"
    return Measurement("throughput", "fresh_inputs", largest, "× halfway", verdict, text, bound=1.0)
