"""The promises of adapters of a UNet: states and traffic.

Ψ parameters of the UNet   φ trained ones   e bytes of one of the UNet's
"""

from harness.spec import Topology, Workload
from impls.finetuning.diffusion_lora.shapes import frozen, sizes, trained
from impls.finetuning.lora.laws import FLOAT, MOMENTS


def states(workload: Workload, topology: Topology, rank: int, ema: float = 0.0, **variant: object) -> float:
    """Bytes between backward pass and update: e of each frozen weight; weight, gradient, moments and average of the
    trained ones in float32."""
    unet = sizes(workload.model)
    copies = 2 + MOMENTS[workload.optimizer] + bool(ema)
    return float(frozen(unet) * workload.element_size + trained(unet, rank) * FLOAT * copies)


def traffic(workload: Workload, topology: Topology, rank: int, **variant: object) -> float | None:
    """Bytes that a rank sends in a step: one ring all-reduce of φ gradients in float32. Averages are not sent: they
    are the same on all ranks."""
    if topology.dp == 1:
        return None
    return 2 * (topology.dp - 1) / topology.dp * FLOAT * trained(sizes(workload.model), rank)
