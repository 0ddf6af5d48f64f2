"""The vocabulary cut across ranks: its embedding and its cross-entropy (Shoeybi et al. 2019, §3).

The softmax shares only three numbers per token: the largest logit m, Σ exp(z − m), and the label's z − m.

    b batch   s sequence   V vocab_size   v this rank's rows of V, from ``start`` on
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from impls.parallelism.tensor_parallel.operators import Group


def local(tokens: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Row numbers in this rank's part of the vocabulary, 0 for tokens outside it; and a mask of the tokens inside
    it."""
    index = tokens - start
    mine = (index >= 0) & (index < size)
    return index * mine, mine


def embedding(tokens: Tensor, weight: Tensor, start: int) -> Tensor:
    """Rows of a [V, h] table of which each rank holds v: [b, s] → [b, s, h], zeros for rows on other ranks. The sum
    over ranks is the embedding."""
    index, mine = local(tokens, start, weight.shape[0])
    return torch.nn.functional.embedding(index, weight) * mine.unsqueeze(-1)


class CrossEntropy(Function):
    """−log softmax of the label, [b, s], from logits [b, s, v]; each rank holds its own columns."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, start: int, group: Group) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        largest = wide.amax(-1)
        if group.size() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        exponentials = (wide - largest.unsqueeze(-1)).exp_()
        index, mine = local(labels, start, logits.shape[-1])
        label = (wide.gather(-1, index.unsqueeze(-1)).squeeze(-1) - largest) * mine  # 0 except on the rank with it
        total, label = sums = torch.stack((exponentials.sum(-1), label))
        if group.size() > 1:
            dist.all_reduce(sums, group=group)
        ctx.save_for_backward(exponentials.div_(total.unsqueeze(-1)), index, mine)
        ctx.dtype = logits.dtype
        return total.log() - label

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        softmax, index, mine = ctx.saved_tensors
        d = softmax.scatter_add(-1, index.unsqueeze(-1), -mine.unsqueeze(-1).to(softmax.dtype))
        return d.mul_(gradient.unsqueeze(-1)).to(ctx.dtype), None, None, None
