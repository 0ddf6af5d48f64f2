"""Attention of one block with its log-sum-exp, and its backward pass, by SDPA's flash kernels.

    q dq o do [b, h, s, d]    k dk v dv [b, h_k, s_k, d], h_k a divisor of h    L [b, h, s] float32 at least

The backward pass receives the output and L of *all* blocks: P = exp(S − L) is then this block's part of the whole
softmax, and D = rowsum(dO ∘ O) that of the whole row (Dao 2023, algorithm 2).
"""

import torch
from torch import Tensor

from harness.spec import Unsupported

aten = torch.ops.aten


def needs_flash(query: Tensor) -> None:
    """Raises Unsupported if SDPA has no flash kernel: other kernels hold all probabilities, or return no L."""
    if query.is_cuda and query.dtype != torch.bfloat16:
        raise Unsupported(f"SDPA's flash kernel on CUDA takes torch.bfloat16, not {query.dtype}")


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """O and L."""
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal)
    needs_flash(query)
    return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[:2]


def attend_backward(
    d_output: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, logsumexp: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK, dV of this block."""
    tensors = (d_output, query, key, value, output, logsumexp)
    if not query.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, causal)
    tensors = (*tensors[:5], logsumexp.contiguous())
    unused = torch.empty(2, dtype=torch.uint64, device=query.device)  # the random state of dropout, which is off
    lengths = (None, None, query.shape[2], key.shape[2])
    return aten._scaled_dot_product_flash_attention_backward(*tensors, *lengths, 0.0, causal, unused, unused)
