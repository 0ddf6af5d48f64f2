"""Causal attention inside documents that share a row: three ways to the same.

    q [b, a, s, d]   k, v [b, k, s, d]: a/k heads of queries share one   document [b, s]: whose a token is

A token sees those before it in its own document: the mask is block-diagonal, and triangular in each block. In a layer
with a sliding window it sees the last so many of them, its own place among them. Documents are not interrupted in a
row, so that distances in the row are those in the document.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention


def visible(document: Tensor, window: int = 0) -> Tensor:
    """[b, 1, s, s], true where query i sees key j. ``window``: 0 for all before it."""
    s = document.shape[1]
    same = document[:, :, None] == document[:, None, :]  # [b, s, s]
    seen = torch.ones(s, s, dtype=torch.bool, device=document.device).tril()  # [s, s]
    return (same & (seen.triu(1 - window) if window else seen))[:, None]


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The formula itself, softmax(q kᵀ/√d) v, with the softmax in float32 at least."""
    heads = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)  # [b, a, s, d]
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))  # [b, a, s, s]
    wide = torch.promote_types(q.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide).to(q.dtype) @ v  # [b, a, s, d]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's kernels, which are given the mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def tiles(document: Tensor, window: int = 0) -> BlockMask:
    """FlexAttention is given a rule instead of a mask, and skips the tiles in which no token sees another."""
    b, s = document.shape
    reach = window or s

    def rule(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i - j < reach) & (document[row, i] == document[row, j])

    return create_block_mask(rule, b, None, s, s, device=str(document.device))


@cache
def compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    return compiled()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


# The mask of documents, and attention by it.
WAYS = {"eager": (visible, eager), "sdpa": (visible, sdpa), "flex": (tiles, flex)}
