"""The promises of adapters at the ends: states, traffic and operations.

φ trained parameters   n a rank's tokens of a step   r rank   h hidden_size   V vocab_size
"""

from collections.abc import Sequence

from harness.spec import Topology, Workload
from impls.acceleration.activation_checkpointing.laws import attention_flops
from impls.finetuning.lora.shapes import targets
from impls.finetuning.lora_head.shapes import parameters

FLOAT = 4  # bytes
MOMENTS = {"sgd": 0, "adamw": 2}


def states(workload: Workload, topology: Topology, rank: int, alpha: float, ends: Sequence[str]) -> float:
    """Bytes between backward pass and update: every frozen weight, and weight, gradient and moments of the trained ones
    in float32."""
    trained = parameters(workload.model, rank, ends) * FLOAT * (2 + MOMENTS[workload.optimizer])
    return float(workload.model.parameters * workload.element_size + trained)


def traffic(workload: Workload, topology: Topology, rank: int, alpha: float, ends: Sequence[str]) -> float | None:
    """Bytes that a rank sends in a step: one ring all-reduce of φ gradients in float32."""
    if topology.dp == 1:
        return None
    return 2 * (topology.dp - 1) / topology.dp * FLOAT * parameters(workload.model, rank, ends)


def flops(workload: Workload, topology: Topology, rank: int, alpha: float, ends: Sequence[str]) -> float:
    """Operations of a rank's step. Forward: 2 a token and weight of the layers and the head, and of every factor that
    multiplies (the lookup of A's rows does not). Backward: as much again for the inputs' gradients of layers and head
    where the embedding learns, and for each factor's own."""
    model, n = workload.model, workload.tokens / topology.dp
    h, v, below = model.hidden_size, model.vocab_size, "head" not in ends or len(ends) > 1
    layers = 2 * n * sum(d * k for _, (d, k) in targets(model))
    attention = model.num_hidden_layers * attention_flops(workload, topology)
    head = 2 * n * h * v
    total = layers + attention + head
    total += layers + 2.5 * attention + head if below else 0
    total += 6 * n * rank * h if below else 0  # B: forward, its gradient, and that of the rows of A
    above = "head" in ends or "tied" in ends
    total += 2 * n * rank * (3 * v + 2 * h) if above else 0  # both factors: forward, own gradients, between them
    total += 2 * n * rank * h if above and below else 0  # and the gradient of y
    return float(total)


def added_flops(workload: Workload, rank: int, alpha: float, ends: Sequence[str]) -> float:
    """What this adds to the decoder's 6 a token and weight: the frozen weights' gradients are left out, and with the
    head's adapter alone their inputs' too."""
    model, below = workload.model, "head" not in ends or len(ends) > 1
    h, v = model.hidden_size, model.vocab_size
    base = sum(d * k for _, (d, k) in targets(model)) + h * v
    per_token = -(2.0 if below else 4.0) * base
    per_token += 6 * rank * h if below else 0
    if "head" in ends or "tied" in ends:
        per_token += 2 * rank * (3 * v + 2 * h) + (2 * rank * h if below else 0)
    return workload.tokens * per_token
