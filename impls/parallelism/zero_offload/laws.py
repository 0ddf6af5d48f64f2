"""What offloading promises (Ren et al. 2021, §3.3; Rajbhandari et al. 2021, §3, §5).

Two memories, and a meter sees one of them: on CUDA that of the device. On CPU ranks device and host are one memory, so
:func:`states` is the sum of both, and the saving that the technique is for shows only in what goes to files.
"""

from harness.spec import Topology, Workload
from impls.parallelism.zero import laws
from impls.parallelism.zero_offload.pieces import BLOCK, RING, longest, padded


def device(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float:
    """Bytes of model states that stay on the device: the weights, 2Ψ in mixed precision, in stage 2, and in stage 3
    nothing, since weights come a unit at a time. Gradients have gone to the host when the backward pass ends."""
    return workload.model.parameters * workload.element_size if stage == 2 else 0.0


def host(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float:
    """Bytes of model states in a rank's host memory: gradients 2Ψ/N, the optimizer's 12Ψ/N, in stage 3 weights 2Ψ/N.

    Of what is in files only the buffers: RING pieces of the optimizer's states; two units' weights that are read, and
    two pieces of weights that are written. In float32 the masters of stage 3 are the weights.
    """
    e, shard = workload.element_size, workload.model.parameters / topology.dp
    wide, rows = max(4, e), 3 if workload.optimizer == "adamw" else 1
    held = e * shard
    unit = largest(workload, topology.dp)
    piece = min(longest(workload.model.parameters, topology.dp), unit)
    if states_on == "host":
        held += rows * wide * shard
    else:
        held += RING * buffer(rows * wide * piece)
    if weights_on == "host" and (e < wide or states_on == "files"):
        held += e * shard
    if weights_on == "files":
        held += 2 * buffer(e * unit) + 2 * buffer(e * piece)
    return held


def states(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float:
    """Bytes on device and host together: on one rank 16Ψ in mixed precision with AdamW, and what is in files less."""
    variant = {"stage": stage, "states_on": states_on, "weights_on": weights_on}
    return device(workload, topology, **variant) + host(workload, topology, **variant)


def traffic(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float | None:
    """Bytes between ranks: those of ZeRO's stage (Ren et al. 2021, §4.2). Copies to and from the host are none."""
    return laws.traffic(workload, topology, stage)


def largest(workload: Workload, ranks: int) -> int:
    """Elements of the largest unit's shard: an attention block, an MLP, or the rest of the model."""
    units: dict[str, int] = {}
    for name, shape in workload.model.shapes():
        layer, _, block = name.removeprefix("model.layers.").partition(".")
        inside = block.startswith(("self_attn.", "mlp."))
        unit = f"{layer}.{block.split('.')[0]}" if inside else "rest"
        size = 1
        for n in shape:
            size *= n
        units[unit] = units.get(unit, 0) + size
    return -(-max(units.values()) // ranks)


def buffer(size: float) -> int:
    """Bytes that an aligned buffer takes."""
    return padded(int(size)) + BLOCK
