"""Sums and means of many tensors over a group of ranks, in one message."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from impls.common.flat import views


def sum_flat(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Sums tensors over the group in place, in one all-reduce."""
    if group.size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    torch._foreach_copy_(list(tensors), views(flat, tensors))


def mean_flat(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Averages tensors over the group in place, in one all-reduce."""
    if group.size() > 1:
        sum_flat(tensors, group)
        torch._foreach_div_(list(tensors), group.size())
