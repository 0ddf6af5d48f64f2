"""FP8 training with exactly one thing broken."""

from typing import Any

import torch
from torch import Tensor

from harness.spec import Curves, Topology, Workload
from harness.spec.fault import Fault
from impls.acceleration.fp8 import reference as layer
from impls.acceleration.fp8_training import reference
from impls.acceleration.fp8_training.grid import SHORT


def gradients_without_a_scale(workload: Workload, topology: Topology, seed: int, budget: int, **variant: Any) -> Curves:
    """dY is cast to E4M3 as it is: most of it lies below the smallest number, 2⁻⁹, and becomes zero."""
    scale = layer.scale
    previous = layer.Linear.backward

    def backward(ctx: Any, dy: Tensor, *seen: Tensor) -> Any:
        layer.scale = lambda amax, f, rule: torch.ones_like(amax)
        try:
            return previous(ctx, dy, *seen)
        finally:
            layer.scale = scale

    layer.Linear.backward = staticmethod(backward)
    try:
        return reference.run(workload, topology, seed, budget, **{**variant, "gradients": "e4m3"})
    finally:
        layer.Linear.backward = staticmethod(previous)


FAULTS = {
    "gradients_without_a_scale": Fault("curve_fp8_blocks", "dp1", {"learning": {"fp32": {"score"}}}, workload=SHORT),
}
