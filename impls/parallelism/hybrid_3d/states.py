"""Gradients and the optimizer's states of what a rank holds: the same on every data-parallel rank, or divided."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.spec import Workload
from impls.common.flat import gathered, views
from impls.common.optimizer import MasterWeights
from impls.common.sums import mean_flat
from impls.parallelism.zero.optimizer import Partition, Zero1

MOMENTS = {"sgd": (), "adamw": ("exp_avg", "exp_avg_sq")}
Read = Callable[[str, str], Tensor]  # of a checkpoint: kind, name → this rank's part
Groups = tuple[ProcessGroup, ...]


class Kind(NamedTuple):
    """Of a parameter that a rank has: the groups among whose ranks it is divided, who has the same part of it, and
    whether the global norm counts this stage's."""

    divided: Groups
    copies: ProcessGroup
    counted: bool


class Replicated:
    """``weights`` and their kinds by name. A gradient is the sum over some of the ``share`` ranks whose mean is wanted;
    the others of them have copies of the weight."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], kinds: Mapping[str, Kind], share: int, workload: Workload
    ) -> None:
        self.weights, self.kinds, self.share = weights, kinds, share
        self.optimizer = MasterWeights(weights.values(), workload)
        self.padding = 0  # elements
        self.kinds_of_moments = MOMENTS[workload.optimizer]

    def reduce(self) -> None:
        """The mean of the gradients over all who share the batch."""
        for copies in dict.fromkeys(kind.copies for kind in self.kinds.values()):
            gradients = [p.grad for name, p in self.weights.items() if self.kinds[name].copies is copies]
            mean_flat(gradients, copies)
            if copies.size() < self.share:
                torch._foreach_div_(gradients, self.share / copies.size())

    def among(self, kind: Kind) -> Groups:
        """Who steps other parts of what this rank holds."""
        return ()

    def by_kind(self) -> Mapping[Kind, list[Tensor]]:
        """The gradients that this rank steps."""
        found: dict[Kind, list[Tensor]] = {}
        for name, parameter in self.weights.items():
            found.setdefault(self.kinds[name], []).append(parameter.grad)
        return found

    def step(self) -> None:
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad for name, p in self.weights.items()}

    def parameters(self) -> Mapping[str, Tensor]:
        return dict(zip(self.weights, self.optimizer.masters, strict=True))

    def moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The optimizer's, by kind and name."""
        state, masters = self.optimizer.optimizer.state, self.parameters()
        return {kind: {name: state[m][kind] for name, m in masters.items()} for kind in self.kinds_of_moments}

    @torch.no_grad()
    def load(self, read: Read, steps: int) -> None:
        for name, master in self.parameters().items():
            master.copy_(read("master", name))
            self.weights[name].copy_(master)
            moments = {kind: read(kind, name).to(master.device) for kind in self.kinds_of_moments}
            _resume(self.optimizer.optimizer, master, moments, steps)


class Partitioned:
    """ZeRO-1, once for the parameters of each kind: those who have copies step a part each."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], kinds: Mapping[str, Kind], share: int, workload: Workload
    ) -> None:
        self.weights, self.share = weights, share
        members: dict[Kind, list[nn.Parameter]] = {}
        for name, parameter in weights.items():
            members.setdefault(kinds[name], []).append(parameter)
        self.zero = {kind: Zero1(own, workload, kind.copies) for kind, own in members.items()}
        held = sum(zero.partition.weights.numel() for zero in self.zero.values())
        self.padding = held - sum(parameter.numel() for parameter in weights.values())
        self.kinds_of_moments = MOMENTS[workload.optimizer]

    def reduce(self) -> None:
        for zero in self.zero.values():
            zero.reduce()
            zero.gradient.div_(self.share)

    def among(self, kind: Kind) -> Groups:
        return (kind.copies,)

    def by_kind(self) -> Mapping[Kind, list[Tensor]]:
        return {kind: [zero.gradient] for kind, zero in self.zero.items()}

    def step(self) -> None:
        for zero in self.zero.values():
            zero.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return self._named(lambda zero: zero.gradient)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named(lambda zero: zero.partition.master)

    def moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The optimizer's, whole, by kind and name."""
        of = {kind: partial(_moment, kind) for kind in self.kinds_of_moments}
        return {kind: self._named(moment) for kind, moment in of.items()}

    @torch.no_grad()
    def load(self, read: Read, steps: int) -> None:
        names = {parameter: name for name, parameter in self.weights.items()}
        for zero in self.zero.values():
            held = zero.partition

            def part(kind: str, held: Partition = held) -> Tensor:
                flat = torch.zeros_like(held.weights, dtype=held.master.dtype)
                for parameter, view in zip(held.parameters, views(flat, held.parameters), strict=True):
                    view.copy_(read(kind, names[parameter]))
                return flat[held.own].clone()

            held.master.copy_(part("master"))
            for parameter in held.parameters:
                parameter.copy_(read("master", names[parameter]))
            _resume(zero.inner, held.master, {kind: part(kind) for kind in self.kinds_of_moments}, steps)

    def _named(self, part: Callable[[Zero1], Tensor]) -> Mapping[str, Tensor]:
        found: dict[nn.Parameter, Tensor] = {}
        for zero in self.zero.values():
            held = zero.partition
            found.update(zip(held.parameters, gathered(part(zero), held.parameters, held.group), strict=True))
        return {name: found[parameter] for name, parameter in self.weights.items()}


def _moment(kind: str, zero: Zero1) -> Tensor:
    return zero.inner.state[zero.partition.master][kind]


def _resume(stepping: torch.optim.Optimizer, master: Tensor, moments: Mapping[str, Tensor], steps: int) -> None:
    if moments:
        stepping.state[master] = {"step": torch.tensor(float(steps), device=master.device), **moments}
