"""A substitute for flash-attn, which has no kernels for the CPU, under libraries that are built around it.

It provides flash-attn's functions, with the arguments that those libraries use, by PyTorch's flash kernel.
Communication and the merging of blocks remain the libraries' own. Dropout, windows, slopes and soft caps are rejected.

    q dq o do [b, s, h, d]    k dk v dv [b, s, h_k, d]    L [b, h, s] float32; packed, the first two dims are one
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from impls.parallelism.context_parallel.block_attention import attend, attend_backward

FALLBACK = "PyTorch's flash kernel in place of flash-attn's, which has none for the CPU"
NARROW = "its rings add float32 gradients to the kernel's own buffers if these are float32 too"


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
) -> tuple[Tensor, Tensor, None, None]:
    _plain_only(q, softmax_scale, dropout_p, window_size_left, window_size_right, softcap, alibi_slopes)
    output, logsumexp = attend(*(x.transpose(1, 2) for x in (q, k, v)), causal)
    return output.transpose(1, 2), logsumexp.contiguous(), None, None


def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    rng_state: Tensor | None = None,
) -> None:
    _plain_only(q, softmax_scale, dropout_p, window_size_left, window_size_right, softcap, alibi_slopes)
    gradients = attend_backward(*(x.transpose(1, 2) for x in (dout, q, k, v, out)), softmax_lse, causal)
    for buffer, gradient in zip((dq, dk, dv), gradients, strict=True):
        buffer.copy_(gradient.transpose(1, 2))


def _varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **options: Any,
) -> tuple[Tensor, Tensor, None, None]:
    output, logsumexp = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    for rows, columns in zip(_spans(cu_seqlens_q), _spans(cu_seqlens_k), strict=True):
        part = _forward(q[None, rows], k[None, columns], v[None, columns], **options)
        output[rows], logsumexp[:, rows] = part[0][0], part[1][0]
    return output, logsumexp, None, None


def _varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    **options: Any,
) -> None:
    for rows, columns in zip(_spans(cu_seqlens_q), _spans(cu_seqlens_k), strict=True):
        by_rows, by_columns = (x[None, rows] for x in (dout, q)), (x[None, columns] for x in (k, v))
        buffers = (dq[None, rows], dk[None, columns], dv[None, columns])
        _backward(*by_rows, *by_columns, out[None, rows], softmax_lse[None, :, rows], *buffers, **options)


def _spans(cu_seqlens: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(cu_seqlens.tolist())]


def _plain_only(q: Tensor, softmax_scale: float, *others: Any) -> None:
    if softmax_scale != q.shape[-1] ** -0.5 or others not in ((0.0, -1, -1, 0.0, None), (0, -1, -1, 0.0, None)):
        raise ValueError(
            f"the stand-in for flash-attn takes a scale of {q.shape[-1] ** -0.5:g}, no dropout, windows, soft cap or "
            f"slopes; it was given {softmax_scale:g} and {others}"
        )


def _differentiable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    _plain_only(q, softmax_scale or q.shape[-1] ** -0.5, dropout_p, *window_size, softcap, alibi_slopes)
    tensors = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*tensors, is_causal=causal, enable_gqa=True).transpose(1, 2)


@contextmanager
def stand_in() -> Iterator[str]:
    """Inside, ``import flash_attn`` returns this module if there is neither a GPU nor flash-attn. Yields the fallback's
    text."""
    if torch.cuda.is_available() or find_spec("flash_attn"):
        yield ""
        return
    package, interface = (ModuleType(name) for name in ("flash_attn", "flash_attn.flash_attn_interface"))
    interface._flash_attn_forward, interface._flash_attn_backward = _forward, _backward
    interface._flash_attn_varlen_forward, interface._flash_attn_varlen_backward = _varlen_forward, _varlen_backward
    # yunchang checks the version: the arguments above exist since 2.6.3.
    package.flash_attn_interface, package.flash_attn_func, package.__version__ = interface, _differentiable, "2.8.3"
    with patch.dict(sys.modules, {module.__name__: module for module in (package, interface)}):
        yield FALLBACK
