"""The optimizer of weights that the ranks of ``replicas`` hold alike: each steps all of them, or a part (ZeRO-1).

The batch is spread over ``ranks``, dp × cp of them. A dense weight's replicas are all of these. An expert's are
ranks ÷ ep, but each has the gradient of the tokens of ep ranks. For both, the mean is the sum over replicas ÷ ranks.

A caller names a tensor by ``what``: "gradient", "master", or one of the optimizer's moments.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.flat import gathered, views
from impls.common.optimizer import MasterWeights
from impls.common.sums import sum_flat
from impls.parallelism.zero.optimizer import Zero1

MOMENTS: Mapping[str, tuple[str, ...]] = {"sgd": (), "adamw": ("exp_avg", "exp_avg_sq")}
Weights = Mapping[str, nn.Parameter]
Read = Callable[[str, str], Tensor]  # of a checkpoint: what, name → this rank's part


class Replicated:
    padding = 0  # elements

    def __init__(self, weights: Weights, workload: Workload, replicas: dist.ProcessGroup, ranks: int) -> None:
        self.weights, self.replicas, self.ranks = weights, replicas, ranks
        self.optimizer = MasterWeights(weights.values(), workload)

    def reduce(self) -> None:
        """The mean of the gradients."""
        gradients = self.own()
        sum_flat(gradients, self.replicas)
        torch._foreach_div_(gradients, self.ranks)

    def own(self) -> list[Tensor]:
        return [p.grad for p in self.weights.values()]

    def step(self) -> None:
        self.optimizer.step()

    def named(self, what: str) -> Mapping[str, Tensor]:
        masters = dict(zip(self.weights, self.optimizer.masters, strict=True))
        if what == "gradient":
            return {name: p.grad for name, p in self.weights.items()}
        return masters if what == "master" else {n: self.optimizer.optimizer.state[m][what] for n, m in masters.items()}

    @torch.no_grad()
    def load(self, read: Read, moments: Iterable[str], steps: int) -> None:
        for name, master in self.named("master").items():
            master.copy_(read("master", name))
            self.weights[name].copy_(master)
            found = {moment: read(moment, name).to(master.device) for moment in moments}
            resume(self.optimizer.optimizer, master, found, steps)


class Partitioned:
    """ZeRO-1: of n replicas each steps 1/n of the weights, as one flat tensor."""

    def __init__(self, weights: Weights, workload: Workload, replicas: dist.ProcessGroup, ranks: int) -> None:
        self.weights, self.replicas, self.ranks = weights, replicas, ranks
        self.zero = Zero1(list(weights.values()), workload, replicas)
        self.held = self.zero.partition
        self.padding = self.held.weights.numel() - sum(p.numel() for p in weights.values())

    def reduce(self) -> None:
        self.zero.reduce()
        self.zero.gradient.div_(self.ranks)

    def own(self) -> list[Tensor]:
        return [self.zero.gradient]  # [Ψ/n]

    def step(self) -> None:
        self.zero.step()

    def named(self, what: str) -> Mapping[str, Tensor]:
        if what == "gradient":
            part = self.zero.gradient  # [Ψ/n]
        else:
            part = self.held.master if what == "master" else self.zero.inner.state[self.held.master][what]
        return dict(zip(self.weights, gathered(part, self.held.parameters, self.replicas), strict=True))

    @torch.no_grad()
    def load(self, read: Read, moments: Iterable[str], steps: int) -> None:
        self.held.master.copy_(self._part(read, "master"))
        for name, parameter in self.weights.items():
            parameter.copy_(read("master", name))
        resume(self.zero.inner, self.held.master, {moment: self._part(read, moment) for moment in moments}, steps)

    def _part(self, read: Read, what: str) -> Tensor:
        flat = torch.zeros_like(self.held.weights, dtype=self.held.master.dtype)  # [Ψ]
        for name, view in zip(self.weights, views(flat, self.held.parameters), strict=True):
            view.copy_(read(what, name))
        return flat[self.held.own].clone()  # [Ψ/n]


def resume(stepping: torch.optim.Optimizer, master: Tensor, moments: Mapping[str, Tensor], steps: int) -> None:
    if moments:
        stepping.state[master] = {"step": torch.tensor(float(steps), device=master.device), **moments}
