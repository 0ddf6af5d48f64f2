"""Whether the references learn as fast as the libraries, in this session's runs."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from harness.spec import Measurement, assessed

NEAR = 0.9  # of the library's last score
CONFIDENCE = 0.99  # of the interval of a mean
SIDES = ("curves", "reference_curves")  # the library's runs and the reference's, [samples, scores] each


def reaches_the_peer(records: Sequence[Mapping[str, Any]]) -> Measurement:
    """The samples that it takes to come near the library's last score, seed by seed on the same data."""
    arithmetic = f"each run's first score of at least {NEAR:.0%} of the library's mean last score, seed by seed"
    figures = {"law": 0.0, "unit": "samples", "direction": "lower"}
    shown, late, worst = [], False, 0.0
    for record in records:
        if (record["measure"], record["quantity"]) != ("learning", "score") or record["engine"] == "reference":
            continue
        if not (record["detail"] or {}).get("curves"):
            continue
        goal = NEAR * fmean(record["detail"]["results"])
        taken = {side: [reached(*curve, goal) for curve in record["detail"][side]] for side in SIDES}
        theirs, ours = (taken[side] for side in SIDES)
        later = [own - other for own, other in zip(ours, theirs, strict=True)]
        half = half_width(later)
        late, worst = late or fmean(later) > half, max(worst, fmean(later), key=abs)
        shown.append(
            f"{record['variant']} on {record['engine']}: {fmean(theirs):.0f} samples, "
            f"the reference {fmean(later):+.0f} ± {half:.0f}"
        )
    if not shown:
        needs = "this run has no curves of a library: a run of the default depth has them"
        return assessed("reaches_the_peer", "out of reach here", needs, arithmetic, **figures)
    status = "contradicted" if late else "reproduced"
    return assessed("reaches_the_peer", status, "; ".join(shown), arithmetic, value=worst, **figures)


def reached(samples: Sequence[int], scores: Sequence[float], goal: float) -> float:
    """Infinitely many if the run never does."""
    return next((float(at) for at, score in zip(samples, scores, strict=True) if score >= goal), math.inf)


def half_width(differences: Sequence[float]) -> float:
    """Half of the interval of their mean by Student's t."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return 0.0
    n = len(differences)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
