"""PyTorch's asynchronous tensor parallelism: fused operators over symmetric memory, in our sequence-parallel decoder.

``torch.compile`` with ``_inductor.config._micro_pipeline_tp`` would put the same operators in. But in 2.13 that pass
leaves out, without a word, each group for which ``enable_symm_mem_for_group`` was not called, which is deprecated as
no longer needed; and of what DTensor makes of our decoder it matches nothing. So they are called by name.
"""

from typing import Any

import torch
import torch.distributed._symmetric_memory  # registers the operators
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from harness.spec import ModelConfig, Topology, Unsupported, Workload
from impls.common.decoder import MLP, Attention
from impls.parallelism.sequence_parallel.operators import start_join
from impls.parallelism.sequence_parallel.reference import SequenceParallel, SequenceParallelDecoder
from impls.parallelism.tensor_parallel.operators import Group
from impls.parallelism.tensor_parallel.reference import heads

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


class FusedDecoder(SequenceParallelDecoder):
    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__(config, group, lambda x, group, s, *weights: Columns.apply(x, group, *weights))

    def attention(self, y: Tensor, part: Attention, cos: Tensor, sin: Tensor) -> Tensor:
        weights = part.q_proj.weight, part.k_proj.weight, part.v_proj.weight
        projected = [p.transpose(0, 1) for p in self.columns(y, self.group, len(cos), *weights)]  # [b, s, n/t]
        out: Tensor = Rows.apply(heads(projected, part, cos, sin).transpose(0, 1), self.group, part.o_proj.weight)
        return out

    def mlp(self, y: Tensor, part: MLP, s: int) -> Tensor:
        gate, up = self.columns(y, self.group, s, part.gate_proj.weight, part.up_proj.weight)
        out: Tensor = Rows.apply(F.silu(gate) * up, self.group, part.down_proj.weight)
        return out


def build(workload: Workload, topology: Topology, technique: str) -> SequenceParallel:
    if workload.sequence_length % topology.tp:
        raise Unsupported(
            f"the fused operators cut the sequence into equal parts only, and tp {topology.tp} does not divide "
            f"{workload.sequence_length}"
        )
    if 0 < torch.cuda.device_count() < topology.world_size:
        raise Unsupported("symmetric memory needs a GPU for each rank")
    return SequenceParallel(workload, topology, FusedDecoder)
