"""Whether an engine learns as well as the reference: scores over samples, with several seeds of both."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import stats

from harness.spec import Curves, Measurement

ALPHA, POWER = 0.01, 0.8  # level of the test; with 5 seeds on each side, p can be as small as 2 in 252
TAIL = 0.2  # share of a run whose mean score is its result


def result(curve: Curves) -> float:
    """The mean score of a run's last fifth of samples."""
    start = curve.samples[-1] * (1 - TAIL)
    return float(np.mean([score for at, score in zip(curve.samples, curve.scores, strict=True) if at >= start]))


def permutation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The exact two-sided p-value of a difference of means, over every assignment of the runs to the two sides."""
    pooled, n = np.array([*ours, *theirs]), len(ours)
    observed = abs(np.mean(ours) - np.mean(theirs))
    deals = [np.isin(np.arange(len(pooled)), chosen) for chosen in combinations(range(len(pooled)), n)]
    differences = [abs(pooled[deal].mean() - pooled[~deal].mean()) for deal in deals]
    return float(np.mean([difference >= observed * (1 - 1e-12) for difference in differences]))


def seeds_for(difference: float, deviation: float) -> int:
    """The number of seeds on each side that show a difference of means with the test's power, by the normal
    approximation."""
    z = float(stats.norm.isf(ALPHA / 2) + stats.norm.isf(1 - POWER))
    return max(4, math.ceil(2 * float(z * deviation / difference) ** 2))  # 3 against 3 cannot give a p-value below 0.1


def judge(engine: Sequence[Curves], reference: Sequence[Curves], score: str, better: str) -> list[Measurement]:
    """Judges the result against the reference's, and reports samples per second.

    Fails if the engine's runs end worse and chance is an unlikely explanation. Passes if the test would have caught an
    engine that does not learn at all (one that ends where the reference begins). Otherwise the verdict is inconclusive,
    with the number of seeds that the test needs.
    """
    ours, theirs = [result(curve) for curve in engine], [result(curve) for curve in reference]
    mine, norm = float(np.mean(ours)), float(np.mean(theirs))
    deviation = float(np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)) if len(ours) > 1 else 0.0
    gain = abs(norm - float(np.mean([curve.scores[0] for curve in reference])))
    p, needed = permutation(ours, theirs), seeds_for(gain, deviation) if gain else 0
    worse = mine < norm if better == "higher" else mine > norm
    text = f"{score} {mine:.4g} for the reference's {norm:.4g}, {len(ours)} seeds each: p = {p:.2g}"
    text += f"; the reference gains {gain:.3g}, with a standard deviation of {deviation:.2g} between runs"
    if p <= ALPHA and worse:
        verdict = "fail"
    elif not gain or needed > len(ours):
        text += f"; catching an engine that does not learn takes {needed or 'any number of'} seeds"
        verdict = "inconclusive"
    else:
        verdict = "pass"
    curves = [[list(curve.samples), list(curve.scores)] for curve in engine]
    theirs_too = [[list(curve.samples), list(curve.scores)] for curve in reference]
    detail = {"p": p, "results": ours, "reference": theirs, "curves": curves, "reference_curves": theirs_too}
    speed = float(np.mean([curve.samples[-1] / curve.seconds for curve in engine if curve.seconds > 0] or [0.0]))
    told = f"{speed:,.1f} samples/s, told"
    direction = "higher" if better == "higher" else "lower"
    return [
        Measurement("learning", "score", mine, "", verdict, text, law=norm, direction=direction, detail=detail),
        Measurement("learning", "samples", speed, "samples/s", "pass", told, direction="higher"),
    ]
