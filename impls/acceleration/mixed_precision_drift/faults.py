"""Training in bfloat16 with exactly one thing broken."""

from typing import Any

import torch
from torch import Tensor

from harness.spec import Curves
from harness.spec.fault import Fault
from impls.acceleration.mixed_precision_drift import reference
from impls.acceleration.mixed_precision_drift.grid import DRIFT


def masters_forgotten(*arguments: Any, masters: bool) -> Curves:
    """The masters are the rounded weights again before each step."""
    return reference.run(*arguments, masters=False)


def rounding_that_is_not_random(*arguments: Any, **variant: Any) -> Curves:
    """Stochastic rounding rounds to the nearest number."""

    def nearest(x: Tensor, generator: torch.Generator) -> Tensor:
        return x.bfloat16()

    reference.rounded = nearest
    return reference.run(*arguments, **variant)


FAULTS = {
    "masters_forgotten": Fault("drift_masters", "dp1", {"learning": {"bf16": {"score"}}}, workload=DRIFT),
    "rounding_that_is_not_random": Fault("drift_stochastic", "dp1", {"learning": {"bf16": {"score"}}}, workload=DRIFT),
}
