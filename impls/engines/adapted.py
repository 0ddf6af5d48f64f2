"""What an engine adds to a frozen model: its start, and its training under DistributedDataParallel."""

import contextlib
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.spec import Batch, Topology, Workload
from impls.common.decoder import cross_entropy
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.step import accumulate
from impls.common.trained import Trained


@torch.no_grad()
def fill(weights: Mapping[str, nn.Parameter], start: Iterable[tuple[str, Tensor]]) -> None:
    """Gives every trained parameter its start. A vector may be a matrix of one row or column."""
    left = dict(weights)
    for name, tensor in start:
        parameter = left.pop(name)
        parameter.copy_(tensor.view_as(parameter))
    if left:
        raise ValueError(f"the engine trains {', '.join(left)} too")


class Loss(nn.Module):
    """Token ids and labels [b, s] → the mean cross-entropy of a Transformers model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.model(input_ids=tokens, use_cache=False).logits, labels)


class DataParallel(Trained):
    """Adapters whose gradients DistributedDataParallel averages, as in Transformers' Trainer.

    ``model`` returns the loss of a batch. ``weights`` are trained and ``base`` is frozen, by canonical names.
    """

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        base: Mapping[str, Tensor],
        configuration: str,
        stepper: torch.optim.Optimizer | None = None,
    ) -> None:
        self.workload, self.ranks, self.model = workload, topology.dp, model
        self.weights, self.base, self.configuration = weights, base, configuration
        self.optimizer = stepper or optimizer(weights.values(), workload)
        if self.ranks > 1:
            self.model = DistributedDataParallel(
                model,
                device_ids=[device()] if device().type == "cuda" else None,
                broadcast_buffers=False,  # RoPE's frequencies never change
                gradient_as_bucket_view=True,
            )

    def backward(self, batch: Batch) -> Tensor:
        return accumulate(self.model, batch, self.workload, dist.get_rank(), self.ranks, around=self.around)

    def around(self, last: bool) -> contextlib.AbstractContextManager[object]:
        """Gradients are sent after the last micro-batch."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def frozen(self) -> Mapping[str, Tensor]:
        return self.base
