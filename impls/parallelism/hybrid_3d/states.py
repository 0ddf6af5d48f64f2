"""Gradients and the optimizer's states of what a rank holds: the same on every data-parallel rank, or divided."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.spec import Workload
from impls.common.flat import runs, views
from impls.common.optimizer import MasterWeights, optimizer
from impls.common.sums import mean_flat
from impls.parallelism.zero.unit import Unit, padding, step, whole

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
        return _sorted((self.kinds[name], p.grad) for name, p in self.weights.items())

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
    """ZeRO-1: of those who have copies each steps its part of flat units, which hold parameters of one kind."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], kinds: Mapping[str, Kind], share: int, workload: Workload
    ) -> None:
        self.weights, self.share = weights, share
        members: dict[Kind, list[nn.Parameter]] = {}
        for name, parameter in weights.items():
            members.setdefault(kinds[name], []).append(parameter)
        cut = [(kind, run) for kind, parameters in members.items() for run in runs(parameters)]
        self.kinds = [kind for kind, _ in cut]
        self.units = [Unit(run, 1, kind.copies) for kind, run in cut]
        self.optimizer = optimizer([unit.master for unit in self.units], workload)
        self.padding = padding(self.units)
        self.kinds_of_moments = MOMENTS[workload.optimizer]

    def reduce(self) -> None:
        for unit in self.units:
            unit.collect()
            work, _, part = unit.reduce()
            work.wait()
            unit.add(part.div_(self.share))

    def among(self, kind: Kind) -> Groups:
        return (kind.copies,)

    def by_kind(self) -> Mapping[Kind, list[Tensor]]:
        return _sorted((kind, unit.gradient) for kind, unit in zip(self.kinds, self.units, strict=True))

    def step(self) -> None:
        step(self.units, self.optimizer)

    def gradients(self) -> Mapping[str, Tensor]:
        return self._named([unit.gradient for unit in self.units if unit.gradient is not None])

    def parameters(self) -> Mapping[str, Tensor]:
        return self._named([unit.master.detach() for unit in self.units])

    def moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The optimizer's, whole, by kind and name."""
        states = [self.optimizer.state[unit.master] for unit in self.units]
        return {kind: self._named([state[kind] for state in states]) for kind in self.kinds_of_moments}

    @torch.no_grad()
    def load(self, read: Read, steps: int) -> None:
        names = {parameter: name for name, parameter in self.weights.items()}
        for unit in self.units:

            def part(kind: str, unit: Unit = unit) -> Tensor:
                flat = torch.zeros(unit.elements, dtype=unit.master.dtype, device=unit.master.device)
                for parameter, view in zip(unit.parameters, views(flat, unit.parameters), strict=True):
                    view.copy_(read(kind, names[parameter]))
                return flat[unit.mine].clone()

            unit.master.copy_(part("master"))
            for parameter in unit.parameters:
                parameter.copy_(read("master", names[parameter]))
            _resume(self.optimizer, unit.master, {kind: part(kind) for kind in self.kinds_of_moments}, steps)

    def _named(self, shards: list[Tensor]) -> Mapping[str, Tensor]:
        found = whole(self.units, shards)
        return {name: found[parameter] for name, parameter in self.weights.items()}


def _sorted(gradients: Iterable[tuple[Kind, Tensor | None]]) -> Mapping[Kind, list[Tensor]]:
    found: dict[Kind, list[Tensor]] = {}
    for kind, gradient in gradients:
        assert gradient is not None
        found.setdefault(kind, []).append(gradient)
    return found


def _resume(stepping: torch.optim.Optimizer, master: Tensor, moments: Mapping[str, Tensor], steps: int) -> None:
    if moments:
        stepping.state[master] = {"step": torch.tensor(float(steps), device=master.device), **moments}
