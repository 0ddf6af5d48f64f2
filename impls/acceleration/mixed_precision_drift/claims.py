"""Published figures of training without float32 masters compared with this session's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.spec import Measurement, assessed

BAND = 2.0  # standard deviations over seeds


def paper_masters(records: Sequence[Mapping[str, Any]]) -> Measurement:
    """Masters end where float32 does; without them the loss ends above."""
    arithmetic = "bfloat16 has 8 significant bits: an update below 2⁻⁹ of its weight is lost in rounding to nearest"
    ends = {
        record["variant"]: np.array(record["detail"]["results"])
        for record in records
        if record["engine"] == "reference" and record["quantity"] == "score" and record["detail"].get("results")
    }
    names = ("drift_fp32", "drift_masters", "drift_bf16", "drift_stochastic")
    figures = {"law": 0.0, "unit": "of float32's final loss"}
    if any(name not in ends for name in names):
        reason = "this run has no curves of the reference's four variants"
        return assessed("paper_masters", "out of reach here", reason, arithmetic, **figures)
    # The seeds of all variants draw the same data and weights.
    drifts = {name: ends[name] / ends["drift_fp32"] - 1 for name in names[1:]}
    text = {name: f"{drift.mean():+.2%} ± {drift.std(ddof=1):.2%}" for name, drift in drifts.items()}
    masters, none = drifts["drift_masters"], drifts["drift_bf16"]
    held = abs(masters.mean()) < abs(none.mean()) and none.mean() > BAND * none.std(ddof=1)
    reason = (
        f"after 300 steps, against float32 with the same seeds: masters {text['drift_masters']}, none "
        f"{text['drift_bf16']}, stochastic rounding {text['drift_stochastic']}"
    )
    status = "reproduced" if held else "contradicted"
    return assessed("paper_masters", status, reason, arithmetic, value=float(masters.mean()), **figures)
