"""How tiles travel between HBM, where whole tensors are, and SRAM, where tiles are computed.

Every such transfer of a reference is one of these two calls, so that a test can count bytes."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def load(x: Tensor, rows: slice) -> Tensor:
    """Rows of a matrix [..., s, d] → [..., B, d], from HBM to SRAM. Tiles have at least float32's precision, as tensor
    cores accumulate."""
    return x[..., rows, :].to(torch.promote_types(x.dtype, torch.float32))


def store(x: Tensor, rows: slice, tile: Tensor) -> None:
    """A tile from SRAM to HBM, in the precision of the matrix."""
    x[..., rows, :] = tile


def blocks(length: int, size: int) -> Iterator[slice]:
    """The positions of one block after another; the last may be shorter."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def documents(cu_seqlens: Tensor | None) -> list[slice]:
    """The positions of each packed document that is not empty; ``cu_seqlens`` [documents + 1] has the starts and the
    end. All positions, if nothing is packed."""
    if cu_seqlens is None:
        return [slice(None)]
    return [slice(start, end) for start, end in pairwise(cu_seqlens.tolist()) if start < end]


def grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[b, h, …] → [b, h_k, g, …]: the g query heads that share a key head are one axis (GQA; MQA if h_k = 1)."""
    return x.unflatten(1, (kv_heads, -1))
