"""Whether the losses of two engines differ by chance alone: a test that their differences along the curve have mean
zero.

Two engines that do the same from the same weights on the same data still differ by rounding, and the differences grow
from step to step. They have no preferred sign. A small fault, such as a learning rate that is half a per cent off, may
leave each step inside any band around the reference's, but pushes the losses of all runs to one side.

    a_st, b_st   loss of the engine and of the reference at step t of the run with seed s
    m_s          Σ_t (a_st − b_st) / Σ_t b_st

The steps of a run depend on each other, since a difference of weights stays. A run is therefore one block, of which
only the mean difference m_s is used; runs with different seeds are independent. Student's t-test on the means of blocks
is valid under any correlation within a block, and conservative where blocks have different variances (Ibragimov &
Müller 2010, t-Statistic Based Correlation and Heterogeneity Robust Inference, §2, Journal of Business & Economic
Statistics 28). It is blind to a fault that moves losses up as often as down, such as other data of the same kind.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from harness.judge.parity import MARGIN
from harness.spec import Curves, Measurement

ALPHA = 0.002  # level of the test: a run of all topics makes dozens of them
FEWEST = 3  # runs whose means tell their own spread
DIGITS = {"fp64": 53, "fp32": 24, "bf16": 8, "fp16": 11}  # significant bits of a number


def zero_mean(means: Sequence[float]) -> float:
    """The two-sided p-value of mean zero, from the means of independent blocks."""
    if min(means) == max(means):
        return float(means[0] == 0.0)
    return float(stats.ttest_1samp(means, 0.0).pvalue)


def judge(engine: Sequence[Curves], reference: Sequence[Curves], dtype: str) -> Measurement:
    """Fails if the mean is not zero, and beyond the rounding of a loss in the case's precision with the margin of
    parity: an engine whose sums are always rounded downwards is not wrong."""
    steps = [[len(run.losses) for run in side] for side in (engine, reference)]
    if len({*steps[0], *steps[1]}) > 1:
        text = f"{steps[0]} losses with these seeds, for the reference's {steps[1]}"
        return Measurement("learning", "residuals", None, "", "fail", text)
    ours, theirs = (np.array([run.losses for run in side], dtype=np.float64) for side in (engine, reference))
    relative = (ours - theirs).mean(axis=1) / theirs.mean(axis=1)  # m [seeds]
    mean, runs, bound = float(relative.mean()), len(relative), MARGIN * 2.0 ** -DIGITS[dtype]
    # By seed and step; "losses" of other measures are one run's.
    detail = {"relative": relative.tolist(), "runs": ours.tolist(), "reference_runs": theirs.tolist()}
    if not np.isfinite(ours).all():
        value, text, verdict = None, "a loss is NaN or infinite", "fail"
    elif runs < FEWEST:
        value, verdict = abs(mean), "inconclusive"
        text = f"{runs} seeds do not tell the spread of differences, {FEWEST} do"
    else:
        p = detail["p"] = zero_mean(relative.tolist())
        half = float(stats.t.isf(ALPHA / 2, runs - 1)) * float(relative.std(ddof=1)) / runs**0.5
        text = f"losses differ from the reference's by {mean:+.2g} ± {half:.2g} of them, over {ours.shape[1]} steps "
        text += f"with {runs} seeds: p = {p:.2g} for a mean of zero; rounding explains {bound:.2g}"
        value, verdict = abs(mean), "fail" if p <= ALPHA and abs(mean) > bound else "pass"
    return Measurement("learning", "residuals", value, "", verdict, text, law=0.0, bound=bound, detail=detail)
