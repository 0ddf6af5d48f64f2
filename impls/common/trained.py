"""The trained part of a model whose base is frozen: what every method of adaptation does alike with it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from harness.spec import Batch, Workload
from impls.common.mesh import share
from impls.common.optimizer import clip


class Trained:
    """``optimizer`` steps ``weights``, by canonical names, which are few and need no other master weights."""

    workload: Workload
    weights: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer

    def update(self) -> None:
        clip([p.grad for p in self.weights.values() if p.grad is not None], self.workload.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.weights.items() if p.grad is not None}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.weights.items()}


class Dense(Trained):
    """The plain model on one process: ``model`` maps token ids and labels to their loss, ``attention`` selects SDPA's
    kernels, and ``permute`` reverses the order of each batch."""

    permute: bool
    attention: Callable[[], AbstractContextManager[object]]
    model: Callable[[Tensor, Tensor], Tensor]

    def backward(self, batch: Batch) -> Tensor:
        if self.permute:
            batch = Batch(batch.inputs.flip(0), batch.labels.flip(0))
        total = torch.zeros((), dtype=torch.float64)
        for micro, part in share(batch, self.workload, 0, 1):
            with self.attention():
                loss = self.model(*micro) * part
                loss.backward()
            total += loss.detach().cpu()
        return total
