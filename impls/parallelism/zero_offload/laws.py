"""The promises of offloading (Ren et al. 2021, §3.3; Rajbhandari et al. 2021, §3, §5).

There are two memories, and a meter sees only one: on CUDA the device's. On CPU ranks device and host are one memory, so
:func:`states` is the sum of both, and the technique saves memory there only through files.
"""

from harness.spec import Topology, Workload
from impls.parallelism.zero import laws

BLOCK = 4096  # bytes: direct reads and writes need offsets, lengths and addresses that are multiples of it
PIECES = 32  # pieces of a rank's states
RING = 3  # buffers of a stream of pieces: one is read, one stepped, one written


def device(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float:
    """Bytes of model states that stay on the device: the weights (2Ψ in mixed precision) in stage 2; nothing in stage
    3, where weights arrive one unit at a time. Gradients are on the host when the backward pass has ended."""
    return workload.model.parameters * workload.element_size if stage == 2 else 0.0


def buffers(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float:
    """Bytes in memory for states in files: RING pieces of the optimizer's states; two units' weights, being read, and
    two pieces of weights, to be written."""
    e, ranks = workload.element_size, topology.dp
    record = max(4, e) * (3 if workload.optimizer == "adamw" else 1)
    unit = largest(workload, ranks)
    piece = min(longest(workload.model.parameters, ranks), unit)
    held = RING * buffer(record * piece) if states_on == "files" else 0
    return held + (2 * buffer(e * unit) + 2 * buffer(e * piece) if weights_on == "files" else 0)


def states(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float:
    """Bytes on device and host together: those of ZeRO's stage, minus the states in files, plus the files' buffers.

    With AdamW in mixed precision 2Ψ+14Ψ/N (stage 2) and 16Ψ/N (3), of which the gradients have 2Ψ/N and the optimizer's
    states 12Ψ/N.
    """
    gradients = workload.model.parameters * workload.element_size / topology.dp
    whole = laws.states(workload, topology, stage)
    if states_on == "files":
        weights = 0.0 if weights_on == "files" else gradients if stage == 3 else gradients * topology.dp
        whole = weights + gradients
    return whole + buffers(workload, topology, stage, states_on, weights_on)


def traffic(workload: Workload, topology: Topology, stage: int, states_on: str, weights_on: str) -> float | None:
    """Bytes between ranks: those of ZeRO's stage (Ren et al. 2021, §4.2). Copies to and from the host do not count."""
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
    """Bytes of an aligned buffer."""
    return padded(int(size)) + BLOCK


def longest(parameters: int, ranks: int) -> int:
    """Elements of a piece: a 32nd of a rank's part of the model, rounded so that a row of any dtype fills whole
    blocks."""
    return padded(-(-parameters // (PIECES * ranks)))


def padded(size: int) -> int:
    """``size`` rounded up to a number of blocks."""
    return -(-size // BLOCK) * BLOCK
