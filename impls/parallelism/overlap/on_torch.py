"""PyTorch's asynchronous tensor parallelism: fused operators over symmetric memory, in our decoder, with sequence
parallelism's step.

``torch.compile`` with ``_inductor.config._micro_pipeline_tp`` would insert the same operators. But in 2.13 that pass
skips, without a warning, each group for which ``enable_symm_mem_for_group`` was not called (which is deprecated as no
longer needed), and it matches nothing in the graph that DTensor makes of our decoder. So the operators are called by
name.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed._symmetric_memory  # registers the operators
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from harness.spec import ModelConfig, Topology, Unsupported, Workload
from impls.common.decoder import MLP, Attention, Decoder, mean
from impls.common.features import without
from impls.common.rope import rope_table
from impls.common.shards import bounds
from impls.parallelism.sequence_parallel.operators import scatter, start_join
from impls.parallelism.sequence_parallel.reference import SequenceParallel
from impls.parallelism.tensor_parallel.operators import Group
from impls.parallelism.tensor_parallel.reference import heads
from impls.parallelism.tensor_parallel.vocabulary import CrossEntropy, embedding

gather_matmul = torch.ops.symm_mem.fused_all_gather_matmul
matmul_scatter = torch.ops.symm_mem.fused_matmul_reduce_scatter


class Columns(Function):
    """[s/t, b, h] → [s, b, n/t] for each [n/t, h] weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.save_for_backward(x, *weights)
        products = [weight.t() for weight in weights]
        _, outs = gather_matmul(x.contiguous(), products, 0, group.group_name, return_A=False)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        whole, joining = start_join(x, ctx.group)
        dx = matmul_scatter(torch.cat(gradients, -1), torch.cat(weights), "sum", 0, ctx.group.group_name)
        joining.wait()
        return dx, None, *[gradient.flatten(0, 1).t() @ whole.flatten(0, 1) for gradient in gradients]


class Rows(Function):
    """[s, b, n/t] and [h, n/t] → [s/t, b, h]."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Group, weight: Tensor) -> Tensor:
        ctx.group = group
        ctx.save_for_backward(z, weight)
        out: Tensor = matmul_scatter(z.contiguous(), weight.t(), "sum", 0, group.group_name)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        whole, (dz,) = gather_matmul(gradient.contiguous(), [weight], 0, ctx.group.group_name)
        return dz, None, whole.flatten(0, 1).t() @ z.flatten(0, 1)


class FusedDecoder(Decoder):
    """This rank's part of the decoder; between the products it has this rank's part of the sequence, [s/t, b, h]."""

    def __init__(self, config: ModelConfig, group: Group) -> None:
        t = group.size()
        self.start, end = bounds(config.vocab_size, group.rank(), t)
        part = {n: getattr(config, n) // t for n in ("num_attention_heads", "num_key_value_heads", "intermediate_size")}
        super().__init__(replace(config, vocab_size=end - self.start, **part))
        self.group = group

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Token ids [b, s] and labels [b, s] → mean cross-entropy, the same scalar on every rank."""
        tokens, labels = tokens.t(), labels.t()
        x = scatter(embedding(tokens, self.model.embed_tokens.weight, self.start), self.group)
        cos, sin = (table.to(x.dtype) for table in rope_table(len(tokens), self.config, x.device))
        for layer in self.model.layers:
            x = x + self.attention(layer.input_layernorm(x), layer.self_attn, cos, sin)
            x = x + self.mlp(layer.post_attention_layernorm(x), layer.mlp)
        (logits,) = Columns.apply(self.model.norm(x), self.group, self.lm_head.weight)  # [s, b, v]
        return mean(CrossEntropy.apply(logits, labels, self.start, self.group), labels)

    def attention(self, y: Tensor, part: Attention, cos: Tensor, sin: Tensor) -> Tensor:
        weights = part.q_proj.weight, part.k_proj.weight, part.v_proj.weight
        projected = [p.transpose(0, 1) for p in Columns.apply(y, self.group, *weights)]  # [b, s, n/t]
        out: Tensor = Rows.apply(heads(projected, part, cos, sin).transpose(0, 1), self.group, part.o_proj.weight)
        return out

    def mlp(self, y: Tensor, part: MLP) -> Tensor:
        gate, up = Columns.apply(y, self.group, part.gate_proj.weight, part.up_proj.weight)
        out: Tensor = Rows.apply(F.silu(gate) * up, self.group, part.down_proj.weight)
        return out


def build(workload: Workload, topology: Topology, technique: str) -> SequenceParallel:
    without(workload, "the decoder around the fused operators", "o_bias", "mlp_bias")
    if workload.sequence_length % topology.tp:
        raise Unsupported(
            f"the fused operators cut the sequence into equal parts only, and tp {topology.tp} does not divide "
            f"{workload.sequence_length}"
        )
    if 0 < torch.cuda.device_count() < topology.world_size:
        raise Unsupported("symmetric memory needs a GPU for each rank")
    return SequenceParallel(workload, topology, FusedDecoder)
