"""Layers of experts on a mesh (expert_parallel): who holds which of them, and whose gradients make their mean.

    dp4 ep2     rank 0, 2     experts 0 … E/2 − 1       replicas of each other
                rank 1, 3     experts E/2 … E − 1       tokens go between 0 and 1, and between 2 and 3

An expert's gradient on a rank is that of all tokens along ep, where a dense weight's is that of the rank's own: its
mean over all dp × cp ranks is the mean over its replicas, divided by ep once more.
"""

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from harness.spec import MoeConfig, Topology
from impls.common.mesh import lines
from impls.parallelism.expert_parallel.reference import ParallelExperts
from impls.parallelism.expert_parallel.spread import narrowed, part_of, whole_of, widened

ROUTER = "mlp.gate.weight"  # on every rank


def is_expert(name: str) -> bool:
    """Whether a parameter is the weights of experts."""
    return ".experts." in name


def _kind(name: str) -> str:
    return name.rpartition(".")[2].removesuffix("_proj")


class Experts:
    """The groups of a mesh in which experts lie, and are exchanged with. ``sums``: a layer adds up over tp what its
    ranks' parts of the experts give; with sequence parallelism it is the stage that does."""

    def __init__(self, places: DeviceMesh, topology: Topology, sums: bool = True) -> None:
        ep, cp = topology.ep, topology.cp
        neighbours = [line[i : i + ep] for line in lines(places, "dp") for i in range(0, topology.dp, ep)]
        replicas = [
            [line[d * cp + c] for d in range(place, topology.dp, ep) for c in range(cp)]
            for line in lines(places, "dp", "cp")
            for place in range(ep)
        ]
        self.ep, self.replicas = (dist.new_subgroups_by_enumeration(ranks)[0] for ranks in (neighbours, replicas))
        self.tp, self.sums = places.get_group("tp"), sums

    def enter(self, stage: nn.Module, config: MoeConfig) -> None:
        """Gives a stage's layers this rank's experts."""
        for layer in stage.model.layers.values():
            layer.mlp = ParallelExperts(config, self.ep, self.tp, self.sums)

    def part(self, name: str, full: Tensor) -> Tensor:
        return part_of(_kind(name), full, self.ep, self.tp)

    def whole(self, name: str, part: Tensor) -> Tensor:
        return whole_of(_kind(name), part, self.ep, self.tp)

    def narrowed(self, name: str, experts: Tensor) -> Tensor:
        return narrowed(_kind(name), experts, self.tp)

    def widened(self, name: str, part: Tensor) -> Tensor:
        return widened(_kind(name), part, self.tp)
