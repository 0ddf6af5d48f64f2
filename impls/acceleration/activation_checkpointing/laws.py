"""The promises of activation checkpointing: bytes kept for the backward pass, and operations done twice.

n  a rank's tokens of a micro-batch, b·s      e  bytes of the model's dtype      w  of float32 or wider      t  tp
"""

from typing import Any

from harness.spec import Topology, Workload
from impls.acceleration.activation_checkpointing.cuts import halves, replays, segments
from impls.parallelism.tensor_parallel import laws as tensor_parallel
from impls.parallelism.tensor_parallel.laws import ring

RANDOM = 5056  # bytes of the state of PyTorch's CPU generator, of which each segment keeps one


def layer(workload: Workload, topology: Topology) -> float:
    """Bytes that a layer keeps of each token if nothing is recomputed:

    RMSNorm of h, 2             input, normalised input [h] and 1/rms [1] (w), and its output [h] (e)
    QK-norm of d, a/t + k/t     input, normalised input [d] and 1/rms [1] (w)
    attention                   q, k rotated, v and the output (e); softmax of s scores a head, see :func:`scores`
    MLP, f/t wide               gate, SiLU(gate), up and their product (e)
    dropout, 2                  which elements stay, [h] (e)
    """
    model, t, e = workload.model, topology.tp, workload.element_size
    w = max(4, e)
    q, kv = model.num_attention_heads / t, model.num_key_value_heads / t
    norms = 2 * (2 * model.hidden_size * w + w + model.hidden_size * e)
    heads = (q + kv) * (2 * model.head_dim + 1) * w * model.qk_norm + (2 * q + 2 * kv) * model.head_dim * e
    dropped = 2 * model.hidden_size * e if model.dropout else 0
    return norms + heads + scores(workload, topology) + 4 * model.intermediate_size / t * e + dropped


def scores(workload: Workload, topology: Topology) -> float:
    """Bytes of a token's row of softmax in every head: in float32, and rounded if the model is narrower."""
    e = workload.element_size
    return (
        workload.model.num_attention_heads / topology.tp * workload.sequence_length * (max(4, e) + (e if e < 4 else 0))
    )


def products(workload: Workload, topology: Topology) -> float:
    """Bytes of a token's results of a layer's products with weights: q, k, v, o, gate, up and down."""
    model, t = workload.model, topology.tp
    heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    return (heads / t + 2 * model.intermediate_size / t + 2 * model.hidden_size) * workload.element_size


def around(workload: Workload, topology: Topology) -> float:
    """Bytes of a token outside the layers: the last norm, the softmax of V/t logits (w), three indices (8) and masks
    (1) of the vocabulary."""
    model, e = workload.model, workload.element_size
    w = max(4, e)
    norm = 2 * model.hidden_size * w + w + model.hidden_size * e
    return norm + -(-model.vocab_size // topology.tp) * w + 2 * (8 + 1) + 1


def activations(workload: Workload, topology: Topology, **variant: Any) -> float | None:
    """Bytes kept when the backward pass begins. With segments: an input each (x = h·e a token), which is a copy on the
    host if it is offloaded, one state of the random generator, and what the policy keeps. The first replay then adds
    one segment's layers. None for several micro-batches: of those only one is kept (gradient_accumulation)."""
    if workload.micro_batches > 1:
        return None
    model, e = workload.model, workload.element_size
    n, layers = workload.tokens / topology.dp, model.num_hidden_layers
    whole, x = layer(workload, topology), model.hidden_size * e
    tables = 2 * workload.sequence_length * model.head_dim * e
    cut = _cut(workload, **variant)
    if variant.get("attention_alone"):
        kept = layers * (n * (whole - scores(workload, topology)) + RANDOM)
    elif cut:
        kept = len(cut) * (n * x + RANDOM)
        kept += layers * n * products(workload, topology) if variant.get("by_operator") else 0
    else:
        kept = layers * n * whole
    return kept + n * around(workload, topology) + tables


def _cut(workload: Workload, each: int | str = 0, nested: bool = False, **selective: bool) -> list[range]:
    """The outermost segments."""
    layers = workload.model.num_hidden_layers
    return halves(range(layers)) if nested else segments(layers, each)


def attention_flops(workload: Workload, topology: Topology) -> float:
    """Operations of QKᵀ and of the product with V in one layer's forward pass: 2·2·n·s·a·d/t, masked ones included."""
    model = workload.model
    tokens = workload.tokens / topology.dp
    return 4 * tokens * workload.sequence_length * model.num_attention_heads * model.head_dim / topology.tp


def layer_flops(workload: Workload, topology: Topology) -> float:
    """Operations of one layer's forward pass over a rank's tokens of a step: 2 a token and weight, and attention's."""
    matrices = (a[0] * a[1] for _, a in workload.model.layer_shapes() if len(a) == 2)
    dense = 2 * workload.tokens / topology.dp * sum(matrices) / topology.tp
    return dense + attention_flops(workload, topology)


def step(workload: Workload, topology: Topology, **variant: Any) -> float:
    """Operations of a rank's step: forward once, backward twice as many, and what is computed again."""
    model = workload.model
    head = 2 * workload.tokens / topology.dp * model.hidden_size * -(-model.vocab_size // topology.tp)
    forward = model.num_hidden_layers * layer_flops(workload, topology) + head
    return 3 * forward + recomputed(workload, topology, **variant)


def recomputed(workload: Workload, topology: Topology, **variant: Any) -> float:
    """Operations that the backward pass repeats: every layer's forward pass, ≈ 1/3 of a step; nested log₂ L of them;
    selective attention's two products alone."""
    layers = workload.model.num_hidden_layers
    if variant.get("attention_alone") or variant.get("by_operator"):
        return layers * attention_flops(workload, topology)
    return _replayed(workload, **variant) * layer_flops(workload, topology)


def _replayed(workload: Workload, each: int | str = 0, nested: bool = False, **selective: bool) -> int:
    """Forward passes of single layers in the backward pass."""
    layers = workload.model.num_hidden_layers
    if nested:
        return replays(range(layers))
    return layers if each and not selective.get("attention_alone") else 0


def traffic(workload: Workload, topology: Topology, **variant: Any) -> float | None:
    """Bytes that a rank sends in a step: those without recomputation, and of each layer that is replayed the two sums
    over tensor-parallel ranks of its forward pass, b·s·h elements each."""
    plain = tensor_parallel.traffic(workload, topology)
    if plain is None:
        return None
    tokens = workload.tokens / topology.dp
    again = 2 * ring(tokens * workload.model.hidden_size * workload.element_size, topology.tp)
    return plain + _replayed(workload, **variant) * again
