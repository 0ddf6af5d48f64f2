"""PyTorch's experimental context parallelism: its templates of ring attention around SDPA's flash kernels.

``context_parallel`` itself knows the operators of CUDA alone; on the CPU its templates are given the kernel that SDPA
uses there. With load balancing its layout is the zig-zag, without it is contiguous."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.experimental._context_parallel import _attention as templates

from harness.spec import Topology, Workload
from impls.parallelism.context_parallel.block_attention import needs_flash
from impls.parallelism.context_parallel.spread import Spread

aten = torch.ops.aten


class OnCpu(Function):
    @staticmethod
    def forward(ctx: Any, group: Any, *tensors: Tensor) -> Tensor:
        kernel = aten._scaled_dot_product_flash_attention_for_cpu
        output, logsumexp = templates._templated_ring_attention(group, 2, kernel, *tensors, is_causal=True)
        ctx.group = group
        ctx.save_for_backward(*tensors, output, logsumexp)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        kernel = aten._scaled_dot_product_flash_attention_for_cpu_backward
        gradients = templates._templated_ring_attention_backward(
            ctx.group, 2, kernel, d_output, "grad_out", *ctx.saved_tensors, is_causal=True, dropout_p=0.0
        )
        return None, *gradients


class OnCuda(Function):
    @staticmethod
    def forward(ctx: Any, mesh: Any, *tensors: Tensor) -> Tensor:
        needs_flash(tensors[0])
        output, logsumexp, *lengths, seed, offset, _ = templates._scaled_dot_product_ring_flash_attention(
            mesh, *tensors, is_causal=True
        )
        ctx.mesh, ctx.lengths = mesh, lengths
        ctx.save_for_backward(*tensors, output, logsumexp, seed, offset)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, seed, offset = ctx.saved_tensors
        gradients = templates._scaled_dot_product_ring_flash_attention_backward(
            ctx.mesh, d_output, *tensors, *ctx.lengths, 0.0, True, seed, offset
        )
        return None, *gradients


def ring(mesh: DeviceMesh, layout: str) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]:
    """Attention of this rank's queries, keys and values over a mesh of one axis, and how it falls back here."""
    templates._cp_options.enable_load_balance = layout == "zigzag"
    if torch.cuda.is_available():
        return partial(OnCuda.apply, mesh), ""
    text = "context_parallel's templates around the CPU's kernel: it has operators for CUDA alone"
    return partial(OnCpu.apply, mesh.get_group()), text


class RingAttention(Spread):
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"output": self.attend(*(inputs[name] for name in ("query", "key", "value")))}


def build(
    workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1, packed: bool = False
) -> RingAttention:
    attention = RingAttention(workload, topology, layout, group, packed)
    attention.attend, attention.fallback = ring(attention.mesh()["ring"], layout)
    return attention
