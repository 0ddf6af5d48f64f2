"""Step times of several engines, measured in interleaved rounds, and what may be said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.spec import Finding

RESAMPLES = 1000
DECIDABLE = 0.10  # a minimum detectable effect above this decides nothing
REFERENCE_LIMIT = 1.15  # a reference that is slower than this × the fastest engine is a toy


@dataclass(frozen=True)
class Timing:
    """Seconds a step: ``median`` with its 95 % bootstrap interval; ``effect`` the smallest ratio − 1 that A/A runs of
    this very engine would not have produced by chance."""

    median: float
    low: float
    high: float
    effect: float


def timing(rounds: Sequence[Sequence[float]]) -> Timing:
    """``rounds``: the step times of each round. Rounds are resampled, not steps: neighbours drift together."""
    medians = np.array([np.median(steps) for steps in rounds])
    drawn = _resampled(medians)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Timing(float(np.median(medians)), float(low), float(high), _effect(medians))


def _effect(medians: NDArray[np.float64]) -> float:
    """A/A: two halves of the same engine's rounds, drawn at random, differ by chance alone."""
    if len(medians) < 2:
        return float("inf")
    generator = np.random.default_rng(1)
    halves = generator.permuted(np.tile(medians, (RESAMPLES, 1)), axis=1)
    middle = len(medians) // 2
    ratios = np.median(halves[:, :middle], axis=1) / np.median(halves[:, middle:], axis=1)
    return float(np.quantile(np.abs(np.log(ratios)), 0.95))


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Ours ÷ theirs, round by round, so that drift hits both alike: median and 95 % bootstrap interval."""
    by_round = np.array([np.median(a) / np.median(b) for a, b in zip(ours, theirs, strict=True)])
    low, high = np.quantile(_resampled(by_round), [0.025, 0.975])
    return float(np.median(by_round)), float(low), float(high)


def _resampled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    generator = np.random.default_rng(0)
    return np.asarray(np.median(generator.choice(values, (RESAMPLES, len(values))), axis=1))


def judge(
    engine: str,
    rounds: Mapping[str, Sequence[Sequence[float]]],
    tokens: int,
    flops: float,
    ceiling: float,
    spoilt: int,
) -> list[Finding]:
    """The findings for one engine of a block; ``rounds`` holds all engines that compute the same variant."""
    mine = timing(rounds[engine])
    ratios = {other: ratio(rounds[engine], times) for other, times in rounds.items() if other != engine}
    fastest = min(rounds, key=lambda name: timing(rounds[name]).median)
    peers = {name: times for name, times in rounds.items() if name != "reference"}
    detail = {
        "samples": [second for steps in rounds[engine] for second in steps],
        "rounds": len(rounds[engine]),
        "low": mine.low,
        "high": mine.high,
        "minimum_detectable_effect": mine.effect,
        "tokens_per_second": tokens / mine.median,
        "tflops": flops / mine.median / 1e12,
        "mfu": flops / mine.median / ceiling if ceiling else None,
        "ratios": {other: value[0] for other, value in ratios.items()},
        "ratio_intervals": {other: value[1:] for other, value in ratios.items()},
        "ratio_to_fastest": ratios[fastest][0] if fastest != engine else 1.0,
        "fastest": fastest,
    }
    text = f"{mine.median * 1e3:.2f} ms a step (95 % {mine.low * 1e3:.2f} to {mine.high * 1e3:.2f})"
    text += f", {detail['ratio_to_fastest']:.2f} × {fastest}" if fastest != engine else ", the fastest"
    text += f"; differences under {mine.effect:.1%} are noise"
    verdict, bound = "pass", None
    if spoilt:
        text += f"; {spoilt} spoilt rounds were repeated"
    if mine.effect > DECIDABLE:
        verdict = "inconclusive"
    elif engine == "reference" and peers:
        best = min(peers, key=lambda name: timing(peers[name]).median)
        middle, low, high = ratios[best]
        bound = REFERENCE_LIMIT
        text += f"; {middle:.2f} × the fastest engine {best} ({low:.2f} to {high:.2f}), at most {bound:g} is asked"
        verdict = "pass" if middle <= bound else "fail" if low > bound else "inconclusive"
    return [Finding("throughput", "step_time", mine.median, "s", verdict, text, bound=bound, detail=detail)]
