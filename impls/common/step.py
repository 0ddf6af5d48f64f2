"""Forward and backward over a rank's micro-batches: the part of a step that most trainers share."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.spec import Batch, Workload
from impls.common.mesh import device, share, token_share


def mean_loss(model: nn.Module, micro: Batch, workload: Workload) -> Tensor:
    """The mean loss over a micro-batch's labels, a scalar; ``model`` may be an engine around one.

    With ``applied_twice`` the first half of the sequences passes the engine, and the other half the model inside it, as
    where an encoder also serves an auxiliary loss. The same backward pass reaches the weights through both.
    """
    if not workload.applied_twice:
        return model(*micro)
    first, second = (Batch(*half) for half in zip(*(tensor.chunk(2) for tensor in micro), strict=True))
    inside = getattr(model, "module", model)  # of FSDP2, which is no wrapper, the model itself
    return model(*first) * token_share(first, micro) + inside(*second) * token_share(second, micro)


def accumulate(
    model: nn.Module,
    batch: Batch,
    workload: Workload,
    rank: int,
    ranks: int,
    scale: float = 1.0,
    around: Callable[[bool], contextlib.AbstractContextManager[object]] = lambda last: contextlib.nullcontext(),
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Accumulates the gradients of this rank's share and returns its mean loss, detached.

    ``scale`` multiplies the loss for the backward pass only: 1/N makes a sum of gradients over ranks their mean.
    ``around(last)`` surrounds each micro-batch, for example to communicate only after the last one; ``backward``
    replaces the loss's own.
    """
    micro_batches = list(share(batch, workload, rank, ranks))
    total = torch.zeros((), dtype=torch.float64, device=device())
    for index, (micro, part) in enumerate(micro_batches):
        with around(index == len(micro_batches) - 1):
            loss = mean_loss(model, micro, workload) * part * ranks
            backward(loss * scale)
        total += loss.detach()
    return total
