"""The promises of sequence parallelism: all activations ÷ t, for the bytes of tensor parallelism or a quarter more."""

from harness.spec import Topology, Workload
from impls.parallelism.tensor_parallel import laws as tensor_parallel
from impls.parallelism.tensor_parallel.laws import held, ring


def states(workload: Workload, topology: Topology, **variant: bool) -> float:
    """Bytes of weights, gradients and the optimizer's states: sequence parallelism cuts none of them."""
    return tensor_parallel.states(workload, topology)


def activations(
    workload: Workload, topology: Topology, sequence_parallel: bool = True, gather_again: bool = True
) -> float:
    """Bytes that autograd saves of a micro-batch of n = b·s tokens, in float32 or wider where w stands, in the
    dtype e, or as indices (8 bytes) and masks (1):

        RMSNorm of h (2 a layer, 1 at the end)    input, normalised input [h] and 1/rms [1] (w)
        and for the products after it             its output [h] (e)
        QK-norm of d, a/t + k/t heads             input, normalised input [d] and 1/rms [1] (w)
        attention                                 q, k rotated, v and the output (e), log Σ exp a row and head (w)
        MLP, f/t wide                             gate, SiLU(gate), up and their product (e)
        embedding and head                        index and mask each, the labels' mask; softmax of V/t logits (w)

    for n tokens, and the number of labels that count (8 bytes). With sequence parallelism the first two lines are for
    b·⌈s/t⌉ tokens; the naive form saves the second line gathered. So everything is ÷ t, like the paper's 34 + 5as/h,
    while tensor parallelism alone leaves the first two lines whole, like the paper's 10. A fused attention saves no
    5as/h. An engine with a fused norm keeps less.
    """
    model, t, e = workload.model, topology.tp, workload.element_size
    w = max(4, e)
    h, f, d = model.hidden_size, model.intermediate_size, model.head_dim
    b, s = workload.batch_size // topology.dp // workload.micro_batches, workload.sequence_length
    q, kv = model.num_attention_heads / t, model.num_key_value_heads / t
    part = -(-s // t) if sequence_parallel else s
    norm = b * part * (2 * h * w + w + h * e * (1 if gather_again else t))
    heads = (q + kv) * (2 * d + 1) * w * model.qk_norm + (2 * q + 2 * kv) * d * e + q * w
    layer = 2 * norm + b * s * (heads + 4 * f / t * e)
    vocabulary = -(-model.vocab_size // t) * w + 2 * (8 + 1) + 1
    return model.num_hidden_layers * layer + norm + b * s * vocabulary + 8 + 2 * s * d * e


def traffic(
    workload: Workload, topology: Topology, sequence_parallel: bool = True, gather_again: bool = True
) -> float | None:
    """Bytes that a rank sends in a step; a reduce-scatter or an all-gather is half of an all-reduce of its buffer:

        every layer     2 + 2 all-gathers (g; ḡ backward) and 2 + 2 reduce-scatters (ḡ; g backward)
        embedding       1 reduce-scatter forward, 1 all-gather backward; the head the other way round
        and again       1 all-gather backward for each g: 2 a layer and the head's

    of t·⌈s/t⌉·b·h elements each, where tensor parallelism has all-reduces of s·b·h; its cross-entropy; and the
    gradients of all gains, and of the biases behind sums, in one buffer, once a step. None where there is one rank.
    """
    if not sequence_parallel:
        return tensor_parallel.traffic(workload, topology)
    model, dp, t, e = workload.model, topology.dp, topology.tp, workload.element_size
    if topology.world_size == 1:
        return None
    layers, h, s = model.num_hidden_layers, model.hidden_size, workload.sequence_length
    b = workload.batch_size // dp // workload.micro_batches
    both, statistic = ring(t * -(-s // t) * b * h * e, t), b * s * max(4, e)
    step = (4 * layers + 2) * both + ring(statistic, t) + ring(2 * statistic, t)
    if gather_again:
        step += (2 * layers + 1) * both / 2
    of_layer = 2 * h + 2 * model.head_dim * model.qk_norm + (model.o_bias + model.mlp_bias) * h
    gains = (layers * of_layer + h) * e
    return workload.micro_batches * step + ring(gains, t) + ring(held(workload, t) * e, dp)
