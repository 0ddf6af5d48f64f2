"""The promises of low-rank adapters: states, traffic and operations.

φ trained parameters   e bytes of one of the frozen model's   n a rank's tokens of a step   r rank
"""

from harness.spec import Topology, Workload
from impls.acceleration.activation_checkpointing.laws import attention_flops
from impls.finetuning.lora.shapes import parameters, targets

FLOAT = 4  # bytes
MOMENTS = {"sgd": 0, "adamw": 2}


def states(workload: Workload, topology: Topology, rank: int, dora: bool = False, **scales: float) -> float:
    """Bytes between backward pass and update: e of each frozen weight, and weight, gradient and moments of the trained
    ones in float32."""
    trained = parameters(workload.model, rank, dora) * FLOAT * (2 + MOMENTS[workload.optimizer])
    return float(workload.model.parameters * workload.element_size + trained)


def traffic(workload: Workload, topology: Topology, rank: int, dora: bool = False, **scales: float) -> float | None:
    """Bytes that a rank sends in a step: one ring all-reduce of φ gradients in float32."""
    if topology.dp == 1:
        return None
    return 2 * (topology.dp - 1) / topology.dp * FLOAT * parameters(workload.model, rank, dora)


def flops(workload: Workload, topology: Topology, rank: int, dora: bool = False, **scales: float) -> float:
    """Operations of a rank's step: 4 a token and frozen weight, forward and the gradient of the input; 6 a token and
    element of A and B. The input of the first layer's q, k and v has no gradient. DoRA computes B A once a micro-batch
    for its norm."""
    model, n = workload.model, workload.tokens / topology.dp
    attention = model.num_hidden_layers * attention_flops(workload, topology)
    total = 4.0 * n * model.hidden_size * model.vocab_size + 3.5 * attention  # 2 products forward, 5 backward
    for name, (d, k) in targets(model):
        first = name.startswith("model.layers.0.self_attn") and not name.endswith("o_proj")
        total += n * (4 * d * k + 6 * rank * (d + k))
        total -= n * (2 * d * k + 2 * rank * k) if first else 0
        total += workload.micro_batches * 2 * d * rank * k if dora else 0
    return total


def added_flops(workload: Workload, rank: int, dora: bool = False, **scales: float) -> float:
    """What adapters add to the decoder's 6 a token and weight: the frozen weights' gradients are left out."""
    model = workload.model
    frozen = sum(d * k for _, (d, k) in targets(model)) + model.hidden_size * model.vocab_size
    return workload.tokens * (6.0 * parameters(model, rank) - 2.0 * frozen)
