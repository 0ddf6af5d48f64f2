"""Sequence parallelism (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
§4.2.2).

Tensor parallelism leaves norms, residual sums and the blocks' inputs whole: every rank computes and keeps the same
tensors. These operations act on each token alone, so each rank can process only its part of the sequence (figure 5):

         │   sequence    │       heads       │   sequence    │   width of MLP    │ sequence
    x ───┼─┬──── norm ───┼ g ─ attention ─ ḡ ┼─ + ─┬─ norm ──┼ g ──── MLP ──── ḡ ┼─ + ───
         │ └─────────────┼───────────────────┼───┘ └─────────┼───────────────────┼───┘
         │ [s/t, b, h]   │     [s, b, h]     │  [s/t, b, h]  │     [s, b, h]     │ [s/t, b, h]

g joins the parts (all-gather), ḡ sums the blocks' partial results and gives each rank its part of the sum
(reduce-scatter); in the backward pass the two change roles. The embedding ends in ḡ, the head begins with g.
A gain sees only this rank's part of the sequence, so its gradient is a sum over ranks.

Each rank saves its part Y_i of the norm's output Y, and gathers Y again in the backward pass. Then everything that a
layer saves is divided by t. The bytes of the paper's layer (table 2: 2-byte elements, GELU, dropout, attention that
saves its s × s scores; laws.py has ours):

    tensor parallelism                          s·b·h (10 + 24/t + 5as/(ht))
    tensor parallelism + sequence parallelism   s·b·h (34 + 5as/h) / t

If t does not divide s, every rank holds ⌈s/t⌉ positions, with zeros beyond s.

    b batch   s sequence   h hidden_size   a heads   V vocab_size   v this rank's part of V   t ranks
"""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from harness.spec import ModelConfig, Topology, Workload
from impls.common.decoder import MLP, Attention, Layer, mean
from impls.common.rope import rope_table
from impls.parallelism.sequence_parallel.operators import columns, naive_columns, scatter
from impls.parallelism.tensor_parallel.operators import Group, biased
from impls.parallelism.tensor_parallel.reference import ParallelDecoder, TensorParallel, heads
from impls.parallelism.tensor_parallel.vocabulary import CrossEntropy, embedding

Columns = Callable[..., tuple[Tensor, ...]]  # part [s/t, b, h], group, s, weights → [s, b, n/t] for each weight


class SequenceParallelDecoder(ParallelDecoder):
    """Tensor parallelism's part of the decoder; outside the blocks it has this rank's part of the sequence."""

    def __init__(self, config: ModelConfig, group: Group, columns: Columns) -> None:
        super().__init__(config, group)
        self.columns = columns

    def attention(self, y: Tensor, part: Attention, cos: Tensor, sin: Tensor) -> Tensor:
        """[s/t, b, h] → [s/t, b, h], over this rank's heads."""
        weights = part.q_proj.weight, part.k_proj.weight, part.v_proj.weight
        projected = [p.transpose(0, 1) for p in self.columns(y, self.group, len(cos), *weights)]  # [b, s, n/t]
        z = F.linear(heads(projected, part, cos, sin), part.o_proj.weight).transpose(0, 1)
        return biased(scatter(z, self.group), part.o_proj)

    def mlp(self, y: Tensor, part: MLP, s: int) -> Tensor:
        """[s/t, b, h] → [s/t, b, h], over this rank's part of the width."""
        gate, up = self.columns(y, self.group, s, part.gate_proj.weight, part.up_proj.weight)
        z = F.linear(F.silu(biased(gate, part.gate_proj)) * biased(up, part.up_proj), part.down_proj.weight)
        return biased(scatter(z, self.group), part.down_proj)

    def embed(self, tokens: Tensor) -> Tensor:
        """[b, s] → [s/t, b, h]"""
        return scatter(embedding(tokens.t(), self.model.embed_tokens.weight, self.start), self.group)

    def blocks(self, x: Tensor, layers: Iterable[Layer], s: int) -> Tensor:
        """[s/t, b, h] → [s/t, b, h]"""
        cos, sin = (table.to(x.dtype) for table in rope_table(s, self.config, x.device, self.positions))
        for layer in layers:
            x = x + self.attention(layer.input_layernorm(x), layer.self_attn, cos, sin)
            x = x + self.mlp(layer.post_attention_layernorm(x), layer.mlp, s)
        return x

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """[s/t, b, h] and [b, s] → mean cross-entropy, the same scalar on every rank."""
        labels = labels.t()
        (logits,) = self.columns(self.model.norm(x), self.group, len(labels), self.lm_head.weight)  # [s, b, v]
        return mean(CrossEntropy.apply(logits, labels, self.start, self.group), labels)


class SequenceParallel(TensorParallel):
    # Over heads for the QK-norms, as before; over the sequence for the other gains, and for the biases behind sums.
    summed = ("norm.weight", "o_proj.bias", "down_proj.bias")


def build(
    workload: Workload, topology: Topology, sequence_parallel: bool = True, gather_again: bool = True
) -> TensorParallel:
    if not sequence_parallel:
        return TensorParallel(workload, topology)
    decoder = partial(SequenceParallelDecoder, columns=columns if gather_again else naive_columns)
    return SequenceParallel(workload, topology, decoder)
