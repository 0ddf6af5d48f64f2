"""The versions of a stage's weights that micro-batches in flight still need, beside the newest (weight stashing)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from impls.parallelism.pipeline_parallel.stage import Stage

Set = list[nn.Parameter]


class Versions:
    """A version is a set of parameters of its own: a forward pass leaves them in autograd's graph, so its backward pass
    takes the same ones, whatever the newest are by then. An update goes into a set that nobody needs any more; sets are
    kept from step to step, as a pipeline that is never drained has them always.

    ``weights`` by name: the newest version, which ``step`` updates in place with the gradients it finds there;
    ``numbers``: the version of each micro-batch (``Plan.versions``).
    """

    def __init__(
        self, stage: Stage, weights: Mapping[str, nn.Parameter], numbers: Sequence[int], step: Callable[[], None]
    ) -> None:
        self.stage, self.names, self.weights = stage, list(weights), list(weights.values())
        self.numbers, self.step = numbers, step
        self.newest = 0
        self.held = {0: [nn.Parameter(weight.data) for weight in self.weights]}
        self.free: list[Set] = []

    def begin(self) -> None:
        """Counts updates from here on. No micro-batch may be in flight."""
        self.held, self.newest = {0: self.held[self.newest]}, 0

    def forward(self, micro: int, *arguments: Tensor | None) -> Tensor:
        """The stage's, with this micro-batch's version."""
        used = dict(zip(self.names, self.held[self.numbers[micro]], strict=True))
        output: Tensor = functional_call(self.stage, used, arguments)
        return output

    def update(self, micro: int) -> None:
        """Of the newest weights, with the gradients that the mini-batch which ends here left at its own version."""
        for weight, used in zip(self.weights, self.held[self.numbers[micro]], strict=True):
            weight.grad, used.grad = used.grad, None
        needed = {*self.numbers[micro + 1 :]}
        self.free += [self.held.pop(v) for v in list(self.held) if v not in needed and v != self.newest]
        if self.newest in needed:
            into = self.room()
            for weight, new in zip(self.weights, into, strict=True):
                weight.data = new.data.copy_(weight.data)
        else:
            into = self.held.pop(self.newest)
        self.step()
        self.newest += 1
        self.held[self.newest] = into

    def room(self) -> Set:
        """For one version more."""
        return self.free.pop() if self.free else [nn.Parameter(torch.empty_like(weight)) for weight in self.weights]
