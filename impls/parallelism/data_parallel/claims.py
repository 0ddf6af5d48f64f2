"""Published figures of data parallelism compared with this session's."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed, measured


def linear_regression_speedup(records: Sequence[Mapping[str, Any]]) -> Measurement:
    """2.15 s → 1.22 s on two GPUs, but with twice the global batch and so half the steps."""
    published = 2.15 / 1.22
    arithmetic = (
        f"2.15 / 1.22 = {published:.2f} ×; each rank keeps batch 32, so two ranks take 157 steps per epoch while one "
        "takes 313: the work of each rank is halved, the global batch doubled, and the two models differ"
    )
    work = {"engine": "torch", "variant": "ddp", "workload": "tiny", "dtype": "fp32", "quantity": "step_time"}
    one, two = (measured(records, topology=name, **work) for name in ("dp1", "dp2"))
    name, figures = "linear_regression_speedup", {"law": published, "unit": "×"}
    if not (one and two):
        reason = "no step times of torch DDP on 1 and 2 ranks in this run (measure throughput with 2 ranks)"
        return assessed(name, "out of reach here", reason, arithmetic, **figures)
    speedup = one[0] / two[0]
    status = "reproduced" if abs(speedup / published - 1) <= 0.1 else "contradicted"
    reason = f"with the same global batch (decoder of 0.9 M parameters) two ranks are {speedup:.2f} × as fast"
    return assessed(name, status, reason, arithmetic, value=speedup, **figures)
