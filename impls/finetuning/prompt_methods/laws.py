"""The promises of methods that train φ new parameters of a frozen model of Ψ; e bytes of a frozen one."""

from harness.spec import Topology, Workload
from impls.finetuning.prompt_methods.shapes import parameters

FLOAT = 4  # bytes
MOMENTS = {"sgd": 0, "adamw": 2}


def new(workload: Workload, method: str, unmasked: bool = False, **sizes: int) -> int:
    """φ. Which tokens have labels does not change it."""
    return parameters(workload.model, method, **sizes)


def states(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes between backward pass and update: e of each frozen weight; weight, gradient and moments of the trained ones
    in float32."""
    trained = new(workload, **variant) * FLOAT * (2 + MOMENTS[workload.optimizer])
    return float(workload.model.parameters * workload.element_size + trained)


def traffic(workload: Workload, topology: Topology, **variant: object) -> float | None:
    """Bytes that a rank sends in a step: one ring all-reduce of φ gradients in float32."""
    if topology.dp == 1:
        return None
    return 2 * (topology.dp - 1) / topology.dp * FLOAT * new(workload, **variant)


def added_flops(
    workload: Workload, method: str, m: int = 0, tokens: int = 0, width: int = 0, unmasked: bool = False
) -> float:
    """What a method adds to the decoder's 6 operations a token and weight. The gradients of frozen weights are left
    out, 2 each. Rows of a prompt pass through the layers, 4 each, and attention is over T positions more; an MLP of
    prompts runs once a micro-batch and rank, and is not counted."""
    model = workload.model
    h, layers, sequences = model.hidden_size, model.num_hidden_layers, workload.batch_size
    layer = sum(shape[0] * shape[1] for _, shape in model.layer_shapes() if len(shape) == 2)
    heads, n = model.num_attention_heads * model.head_dim, workload.sequence_length
    total = -2.0 * workload.tokens * (layers * layer + h * model.vocab_size)
    if method == "bottleneck":
        total += 6.0 * workload.tokens * layers * 2 * 2 * m * h
    elif method == "prefix":
        total += 12.0 * layers * heads * sequences * n * tokens
    elif method in ("prompt", "p_tuning"):
        longer = (n + tokens) ** 2 - n**2
        total += sequences * layers * (4.0 * tokens * layer + 12.0 * heads * longer)
    return total
