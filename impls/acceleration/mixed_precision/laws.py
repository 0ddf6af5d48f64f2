"""The promises of mixed precision: bytes a parameter, and the bytes that ranks send."""

from harness.spec import Topology, Workload
from impls.acceleration.mixed_precision.recipe import Recipe

FLOAT = 4  # bytes of a float32 number
MOMENTS = {"sgd": 0, "adamw": 2}


def states(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes of weights, gradients, masters and moments between backward pass and update: 2+2+12 a parameter with AdamW
    (Rajbhandari et al. 2020, §3.1), 2+4+12 with gradients accumulated in float32, 4+4+8 with autocast, 2+2+4 without
    masters."""
    recipe, e, moments = Recipe(**variant), workload.element_size, MOMENTS[workload.optimizer]
    if recipe.autocast:
        each = FLOAT + FLOAT + moments * FLOAT
    elif recipe.masters:
        each = e + (FLOAT if recipe.wide else e) + FLOAT + moments * FLOAT
    else:
        each = e + (FLOAT if recipe.wide else e) + moments * e
    return float(workload.model.parameters * each)


def traffic(workload: Workload, topology: Topology, **variant: object) -> float | None:
    """Bytes a rank sends in a step: one ring all-reduce of the gradients, in float32 or narrow."""
    if topology.dp == 1:
        return None
    wide = Recipe(**variant).wide
    share = 2 * (topology.dp - 1) / topology.dp
    return share * workload.model.parameters * (FLOAT if wide else workload.element_size)
