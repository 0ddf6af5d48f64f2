"""This rank's part of a model that is cut into stages, and how its gradients become those of the whole model."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, Topology, Workload
from impls.common.clipping import global_norm
from impls.common.mesh import cut, gather, lines, mesh, placed, token_share
from impls.common.optimizer import MasterWeights, clip
from impls.common.sums import mean_flat, sum_flat
from impls.common.weights import initial
from impls.parallelism.pipeline_parallel.plan import Plan, homes
from impls.parallelism.pipeline_parallel.stage import Stage, build_stages

Homes = Mapping[str, tuple[int, ...]]
Shared = Mapping[tuple[int, ...], dist.ProcessGroup]


def shared_groups(homes: Homes, pipelines: list[list[int]]) -> Shared:
    """A group for every set of ranks along pp that hold the same parameters."""
    several = sorted({ranks for ranks in homes.values() if len(ranks) > 1})
    return {
        ranks: dist.new_subgroups_by_enumeration([[line[r] for r in ranks] for line in pipelines])[0]
        for ranks in several
    }


def sum_shared(weights: Mapping[str, nn.Parameter], homes: Homes, shared: Shared, rank: int) -> None:
    """Sums the gradients of what several ranks along pp hold, of which this is ``rank``."""
    for ranks, group in shared.items():
        if rank in ranks:
            sum_flat([p.grad for name, p in weights.items() if homes[name] == ranks], group)


class Part:
    """This rank's part of the model: its stages, their weights by canonical name, and the optimizer for them.

    ``homes``: the ranks along pp that hold each parameter. Mostly it is one; a tied embedding is at both ends, and in
    DualPipe every layer is on two ranks: their gradients are summed in ``shared`` groups.
    """

    def __init__(self, workload: Workload, topology: Topology, plan: Plan) -> None:
        places = mesh(topology)
        self.workload, self.topology = workload, topology
        self.pp, self.dp, self.dp_rank = places.get_group("pp"), places.get_group("dp"), places.get_local_rank("dp")
        self.pipelines = lines(places, "pp")  # of each, its ranks
        self.stages, self.weights = build_stages(workload, plan, self.pp.rank(), Stage)
        with torch.no_grad():
            for name, full in initial(workload):
                if name in self.weights:
                    self.weights[name].copy_(full)
        self.homes = homes(workload.model, plan)
        self.shared = shared_groups(self.homes, self.pipelines)
        self.optimizer = MasterWeights(self.weights.values(), workload)

    def share(self, batch: Batch) -> tuple[list[Batch], list[float]]:
        """This rank's micro-batches, and what the mean loss of each weighs in the mean over data-parallel ranks."""
        micro_batches = list(cut(batch, self.workload, self.dp_rank, self.topology.dp))
        weights = [token_share(micro, batch) * self.topology.dp for micro in micro_batches]
        return [placed(micro) for micro in micro_batches], weights

    def combine(self, loss: Tensor) -> Tensor:
        """After the backward passes: the gradients of the whole model's loss, and that loss on every rank."""
        dist.all_reduce(loss, group=self.pp)
        sum_shared(self.weights, self.homes, self.shared, self.pp.rank())
        mean_flat([p.grad for p in self.weights.values()], self.dp)
        return loss

    def update(self) -> None:
        if self.workload.max_grad_norm:  # what several ranks hold counts on the first of them
            mine = [p.grad for name, p in self.weights.items() if self.homes[name][0] == self.pp.rank()]
            norm = global_norm({(self.pp,): mine})
            clip([p.grad for p in self.weights.values()], self.workload.max_grad_norm, norm)
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return gather({name: p.grad for name, p in self.weights.items()}, self.pp)

    def parameters(self) -> Mapping[str, Tensor]:
        return gather(dict(zip(self.weights, self.optimizer.masters, strict=True)), self.pp)
