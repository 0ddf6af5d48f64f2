"""What a rank does with the parameters that it holds, kind by kind: which ranks have the same part of them, and over
which ranks their squares add up to the model's norm.

    ‖g‖² = Σ over kinds of Σ over ``divided``, pp (and with ZeRO-1 replicas) of this rank's squares
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.clipping import global_norm
from impls.parallelism.hybrid_3d.steps import Partitioned, Read, Replicated, Weights

Groups = tuple[dist.ProcessGroup, ...]


class Kind(NamedTuple):
    """Of a parameter: the groups among whose ranks it is divided, that whose ranks have the same part, and whether the
    norm counts it on this rank's stage."""

    divided: Groups
    replicas: dist.ProcessGroup
    counted: bool


class States:
    """``weights``: this rank's, by name; ``kinds``: of all the model's, so that all ranks ask for the same sums."""

    def __init__(
        self,
        weights: Weights,
        kinds: Mapping[str, Kind],
        pp: dist.ProcessGroup,
        ranks: int,
        workload: Workload,
        partition: bool,
    ) -> None:
        self.kinds, self.pp, self.partition = kinds, pp, partition
        mine: dict[Kind, dict[str, nn.Parameter]] = {}
        for name, weight in weights.items():
            mine.setdefault(kinds[name], {})[name] = weight
        states = Partitioned if partition else Replicated
        self.of = {kind: states(own, workload, kind.replicas, ranks) for kind, own in mine.items()}

    def reduce(self) -> None:
        for states in self.of.values():
            states.reduce()

    def own(self) -> list[Tensor]:
        """The gradients that this rank steps."""
        return [gradient for states in self.of.values() for gradient in states.own()]

    def norm(self) -> Tensor:
        """‖g‖, of every element of the model once."""
        sums: dict[Groups, list[Tensor]] = {self.among(kind): [] for kind in self.kinds.values()}
        for kind, states in self.of.items():
            sums[self.among(kind)] += states.own() if kind.counted else []
        return global_norm(sums)

    def among(self, kind: Kind) -> Groups:
        """The groups over which its squares are added."""
        return *kind.divided, self.pp, *((kind.replicas,) if self.partition else ())

    def step(self) -> None:
        for states in self.of.values():
            states.step()

    def named(self, what: str) -> dict[str, Tensor]:
        """Of this rank's parameters, whole among replicas, all of which call this."""
        return {name: tensor for states in self.of.values() for name, tensor in states.named(what).items()}

    def load(self, read: Read, moments: Iterable[str], steps: int) -> None:
        for states in self.of.values():
            states.load(read, moments, steps)

    def padding(self) -> int:
        return sum(states.padding for states in self.of.values())
