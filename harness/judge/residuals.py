"""Whether the losses of two engines differ by chance alone: a test that their differences along the curve have mean
zero.

Two engines that do the same from the same weights on the same data still differ by rounding, and the differences grow
from step to step. They have no preferred sign. A small fault, such as a learning rate that is half a per cent off, may
leave each step inside any band around the reference's, but pushes the losses of all runs to one side.

    d_st   loss of engine − loss of reference, at step t of the run with seed s
    z_st   d_st / √(mean over s of d_st²): the last steps do not outweigh the first
    m_s    the mean of z_st over t

The steps of a run depend on each other, since a difference in the weights stays. A run is therefore one block, and only
its mean m_s is used; runs with different seeds are independent. Student's t-test on such means is valid under any
correlation within a block, and conservative where blocks have different variances (Ibragimov & Müller 2010, t-Statistic
Based Correlation and Heterogeneity Robust Inference, §2, Journal of Business & Economic Statistics 28).
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from harness.spec import DTYPES, Curves, Measurement

ALPHA = 0.002  # level of the test: a run of all topics makes dozens of them
FEWEST = 3  # runs whose means tell their own spread
DIGITS = {"fp64": 53, "fp32": 24, "bf16": 8, "fp16": 11}  # significant bits of a number
assert DIGITS.keys() == DTYPES.keys()


def zero_mean(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """The two-sided p-value of mean zero for the differences of losses, [seeds][steps] each."""
    d = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    size = np.sqrt((d**2).mean(axis=0))  # [steps]
    m = np.divide(d, size, out=np.zeros_like(d), where=size > 0).mean(axis=1)  # [seeds]
    spread = m.std(ddof=1)
    if spread == 0.0:
        return float(m.mean() == 0.0)
    t = m.mean() / (spread / np.sqrt(len(m)))
    return float(2 * stats.t.sf(abs(t), len(m) - 1))


def judge(engine: Sequence[Curves], reference: Sequence[Curves], dtype: str) -> Measurement:
    """Fails if the mean is not zero and larger than the rounding of one number in the case's precision: engines that
    round differently, one always downwards, are not wrong."""
    ours, theirs = (np.array([run.losses for run in side], dtype=np.float64) for side in (engine, reference))
    relative = (ours - theirs).mean(axis=1) / theirs.mean(axis=1)  # [seeds]
    value, runs = float(relative.mean()), len(relative)
    detail = {"relative": relative.tolist(), "losses": ours.tolist(), "reference_losses": theirs.tolist()}
    if not np.isfinite(ours).all():
        text, verdict = "a loss is NaN or infinite", "fail"
    elif runs < FEWEST:
        text, verdict = f"{runs} seeds do not tell the spread of differences; it takes {FEWEST}", "inconclusive"
    else:
        p, rounding = zero_mean(ours.tolist(), theirs.tolist()), 2.0 ** -DIGITS[dtype]
        half = float(stats.t.isf(ALPHA / 2, runs - 1)) * float(relative.std(ddof=1)) / runs**0.5
        text = f"losses are {value:+.2g} ± {half:.2g} of the reference's off, over {ours.shape[1]} steps with {runs} "
        text += f"seeds each: p = {p:.2g} for a mean of zero"
        biased = p <= ALPHA
        verdict = "fail" if biased and abs(value) > rounding else "pass"
        if biased and verdict == "pass":
            text += f"; it is within the rounding of a number, {rounding:.2g}"
        detail["p"] = p
    return Measurement("learning", "residuals", value, "", verdict, text, law=0.0, detail=detail)
