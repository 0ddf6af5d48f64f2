"""The decoder's activations: tensors that its forward pass keeps for the backward pass."""

from harness.spec import Workload


def saved(workload: Workload, tokens: int) -> float:
    """Bytes that autograd saves for ``tokens`` tokens at once: w is float32 or wider, e is the model's dtype.

        RMSNorm of n       input, normalised input [n] and 1/rms [1] (w), and its output [n] for the product (e)
        attention          q, k rotated, v and the output (e), log Σ exp of each row and head (float32 at least)
        MLP                gate, SiLU(gate), up and their product (e)
        head               log-softmax of V logits (w), the sum of weights (w) and the number of labels (int64)

    QK-norms, if the model has them, are followed by the rotation, which saves only its tables; so is a product. Adding
    a bias saves nothing, and a sliding window is a mask of s² booleans for each layer. An engine with a fused norm
    keeps less.
    """
    model, e = workload.model, workload.element_size
    w = max(4, e)
    h, f, d = model.hidden_size, model.intermediate_size, model.head_dim
    q, kv = model.num_attention_heads, model.num_key_value_heads
    norm = 2 * h * w + w + h * e
    qk_norm = (q + kv) * (2 * d + 1) * w if model.qk_norm else 0
    attention = (2 * q + 2 * kv) * d * e + q * w
    layer = 2 * norm + qk_norm + attention + 4 * f * e
    tables = 2 * workload.sequence_length * d * e
    return tokens * (model.num_hidden_layers * layer + norm + model.vocab_size * w) + tables + w + 8
