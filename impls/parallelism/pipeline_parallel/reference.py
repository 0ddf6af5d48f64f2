"""Pipeline parallelism: the layers are cut into stages, and micro-batches follow one another through them.

    rank 0   layers 0 … L/p − 1        activations [b, s, h] ──▶
    rank 1   layers L/p … 2L/p − 1                           ◀── their gradients
    …

A rank idles while its first micro-batch is on the way and its last one comes back: the *bubble*, here always
idle ÷ total time. With m micro-batches that take F forward and B backward in a stage of p (Huang et al. 2019, §2.3;
Narayanan et al. 2021, §2.2):

    GPipe, 1F1B      (p − 1)(F + B) idle    of (m + p − 1)(F + B)           bubble (p − 1)/(m + p − 1)
    interleaved      (p − 1)(F + B)/v       of (m + (p − 1)/v)(F + B)
    ZB-H1            (p − 1)(F + B − W)     W: the weights' gradients, no longer a part of B (Qi et al. 2023, §2.3)
    PipeDream, 2BW   as 1F1B, with m or m/p updates in it; a flush at each of m/p updates would idle (p − 1)/(2p − 1)

What is run, in which order, on which rank is data (schedules.py); one executor runs them all (executor.py).

    p ranks   m micro-batches   v stages a rank   b sequences of a micro-batch   s sequence   h hidden_size
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, ModelConfig, Spans, Topology, Workload
from impls.common.clipping import global_norm
from impls.common.mesh import cut, gather, lines, mesh, placed, token_share
from impls.common.optimizer import MasterWeights, clip
from impls.common.sums import mean_flat, sum_flat
from impls.common.weights import initial
from impls.parallelism.pipeline_parallel.executor import channels, run
from impls.parallelism.pipeline_parallel.places import homes, plan_of
from impls.parallelism.pipeline_parallel.schedules import Plan
from impls.parallelism.pipeline_parallel.stage import Stage, build_stages


class Pipeline:
    defers = True  # splits the backward pass where the plan does

    def __init__(self, workload: Workload, topology: Topology, plan: Plan) -> None:
        self.places = places = mesh(topology)
        self.workload, self.topology, self.plan = workload, topology, plan
        self.pp, self.dp, self.dp_rank = places.get_group("pp"), self.replicas(), places.get_local_rank("dp")
        pipelines = lines(places, "pp")
        self.groups = {channel: dist.new_subgroups_by_enumeration(pipelines)[0] for channel in channels(plan)}
        self.stages, self.weights = build_stages(workload, plan, self.pp.rank(), self.stage)
        if self.defers and any(action.kind == "W" for action in plan.actions[self.pp.rank()]):
            for stage in self.stages.values():
                stage.defer()
        with torch.no_grad():
            for name, full in initial(workload):
                if name in self.weights:
                    self.weights[name].copy_(self.part(name, full))
        # A tied embedding is at both ends, and every layer is twice in DualPipe: their gradients are sums.
        self.homes = homes(workload.model, plan)
        self.shared = {
            ranks: dist.new_subgroups_by_enumeration([[line[r] for r in ranks] for line in pipelines])[0]
            for ranks in sorted({ranks for ranks in self.homes.values() if len(ranks) > 1})
        }
        self.optimizer = self.states()
        self.spans: Spans | None = None

    def backward(self, batch: Batch) -> Tensor:
        micro_batches = self.share(batch)
        weights = [token_share(micro, batch) * self.dp.size() for micro in micro_batches]
        total = self.run([placed(micro) for micro in micro_batches], weights)
        dist.all_reduce(total, group=self.pp)
        for ranks, group in self.shared.items():
            if self.pp.rank() in ranks:
                sum_flat([p.grad for name, p in self.weights.items() if self.homes[name] == ranks], group)
        self.reduce()
        return total

    def replicas(self) -> dist.ProcessGroup:
        """The ranks that hold what this one holds."""
        return self.places.get_group("dp")

    def share(self, batch: Batch) -> list[Batch]:
        """This rank's micro-batches, on the host."""
        return list(cut(batch, self.workload, self.dp_rank, self.topology.dp))

    def stage(self, config: ModelConfig, layers: range, first: bool, last: bool) -> Stage:
        return Stage(config, layers, first, last)

    def states(self) -> MasterWeights:
        return MasterWeights(self.weights.values(), self.workload)

    def part(self, name: str, full: Tensor) -> Tensor:
        """What this rank holds of a parameter that its stages have."""
        return full

    def reduce(self) -> None:
        """The mean of the gradients over the replicas."""
        mean_flat([p.grad for p in self.weights.values()], self.dp)

    def run(self, micro_batches: list[Batch], weights: list[float]) -> Tensor:
        """The schedule: the weighted sum of losses on the ranks that have a last stage, elsewhere 0."""
        return run(self.plan, self.stages, micro_batches, weights, self.groups, self.spans).sum()

    def update(self) -> None:
        if self.workload.max_grad_norm:  # what several ranks hold counts on the first of them
            mine = [p.grad for name, p in self.weights.items() if self.homes[name][0] == self.pp.rank()]
            norm = global_norm({(self.pp,): mine})
            clip([p.grad for p in self.weights.values()], self.workload.max_grad_norm, norm)
        self.optimizer.step()

    def record(self, spans: Spans | None) -> None:
        self.spans = spans

    def gradients(self) -> Mapping[str, Tensor]:
        return gather({name: p.grad for name, p in self.weights.items()}, self.pp)

    def parameters(self) -> Mapping[str, Tensor]:
        return gather(dict(zip(self.weights, self.optimizer.masters, strict=True)), self.pp)


def build(workload: Workload, topology: Topology, schedule: str = "1f1b", chunks: int = 2) -> Pipeline:
    """``chunks``: stages a rank of the interleaved schedule."""
    from impls.parallelism.pipeline_parallel.asynchronous import Asynchronous  # a Pipeline too

    plan = plan_of(workload, topology, schedule, chunks)
    return (Asynchronous if plan.versions else Pipeline)(workload, topology, plan)
