"""The promises of QLoRA: bytes of the stored base, states, what the backward pass keeps, and traffic.

n a matrix's elements   N ranks   φ trained parameters   e bytes of an element of the model
"""

from harness.spec import ModelConfig, Topology, Workload
from impls.common.activations import saved
from impls.finetuning.lora.laws import FLOAT, MOMENTS
from impls.finetuning.lora.shapes import parameters, targets

BLOCK, SCALES = 64, 256  # weights of a scale, scales of a scale of scales
TABLES = FLOAT * 16, FLOAT * 256  # bytes of the values of four and of eight bits, one of each for the whole model


def stored(elements: int, double: bool) -> int:
    """Bytes of a matrix: 4 n + 32 n/64 bits, or 4 n + 8 n/64 + 32 n/64/256 and the mean of its scales."""
    blocks = -(-elements // BLOCK)
    scales = blocks + FLOAT * (-(-blocks // SCALES) + 1) if double else FLOAT * blocks
    return -(-elements // 2) + scales


def layers(model: ModelConfig, double: bool) -> list[int]:
    """Bytes of each layer's matrices."""
    total = sum(stored(rows * columns, double) for _, (rows, columns) in targets(model))
    return [total // model.num_hidden_layers] * model.num_hidden_layers


def states(
    workload: Workload,
    topology: Topology,
    rank: int,
    double: bool,
    sharded: bool = False,
    normal: bool = True,
    **scales: float,
) -> float:
    """Bytes between backward pass and update: the base's, 1/N of them if they are divided; e of each other frozen
    weight; weight, gradient and moments of the trained ones in float32; and the tables of values."""
    model = workload.model
    parts = topology.dp if sharded else 1
    base = sum(-(-size // parts) for size in layers(model, double))
    other = model.parameters - sum(rows * columns for _, (rows, columns) in targets(model))
    trained = parameters(model, rank) * FLOAT * (2 + MOMENTS[workload.optimizer])
    return float(base + other * workload.element_size + trained + TABLES[0] + (TABLES[1] if double else 0))


def activations(workload: Workload, topology: Topology, rank: int, **variant: float) -> float | None:
    """Bytes that the forward pass keeps at most: the decoder's and the adapters' low-rank results, and no dequantised
    weights. A norm whose gain is frozen keeps no normalised input, the first norm and the head nothing. None for
    several micro-batches: of those only one is kept."""
    if workload.micro_batches > 1:
        return None
    model, e = workload.model, workload.element_size
    w, h, tokens = max(FLOAT, e), model.hidden_size, workload.tokens // topology.dp
    heads = (model.num_attention_heads + model.num_key_value_heads) * model.qk_norm
    frozen = model.num_hidden_layers * (2 * h + heads * model.head_dim) * w + 2 * h * w + h * e
    low = rank * e * len(list(targets(model)))
    rounded = parameters(model, rank) * e if e < FLOAT else 0  # A and B as the product takes them
    return saved(workload, tokens) + tokens * (low - frozen) + rounded


def traffic(
    workload: Workload,
    topology: Topology,
    rank: int,
    double: bool,
    sharded: bool = False,
    normal: bool = True,
    **scales: float,
) -> float | None:
    """Bytes that a rank sends in a step: a ring all-reduce of φ gradients in float32; if the base is divided, also its
    part of every layer's codes and scales to N − 1 ranks, twice a micro-batch."""
    ranks = topology.dp
    if ranks == 1:
        return None
    reduced = 2 * (ranks - 1) / ranks * FLOAT * parameters(workload.model, rank)
    if not sharded:
        return reduced
    parts = sum(-(-size // ranks) for size in layers(workload.model, double))
    return reduced + 2 * workload.micro_batches * (ranks - 1) * parts
