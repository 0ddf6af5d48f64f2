"""PyTorch's experimental context parallelism: its templates of ring attention around SDPA's flash kernels.

``context_parallel`` itself supports only CUDA's operators; on the CPU its templates receive the kernel that SDPA uses
there. With load balancing its layout is zig-zag, without it contiguous.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.experimental._context_parallel import _attention

from harness.spec import Unsupported

aten = torch.ops.aten
templates: Any = _attention


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
        if tensors[0].dtype != torch.bfloat16:
            raise Unsupported(f"SDPA's flash kernel on CUDA takes torch.bfloat16, not {tensors[0].dtype}")
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
    """Attention of this rank's queries, keys and values over a mesh of one axis, and its fallback here."""
    templates._cp_options.enable_load_balance = layout == "zigzag"
    if torch.cuda.is_available():
        return partial(OnCuda.apply, mesh), ""
    text = "context_parallel's templates around the CPU's kernel, since it has operators only for CUDA"
    return partial(OnCpu.apply, mesh.get_group()), text
