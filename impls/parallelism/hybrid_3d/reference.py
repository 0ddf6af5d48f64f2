"""Data, tensor and pipeline parallelism at once (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training
on GPU Clusters", §3), with sequence, context, expert parallelism and ZeRO-1: a composition of the other references.

The ranks are a grid p × d × c × t; each belongs to one group along every axis. Of eight (p = d = t = 2, c = 1):
                     pipeline 0            pipeline 1
    stage 0       [ rank 0  rank 1 ]    [ rank 2  rank 3 ]        [ … ] tp: parts of the same layers, neighbours
    stage 1       [ rank 4  rank 5 ]    [ rank 6  rank 7 ]
                  pp: 0-4, 1-5, 2-6, 3-7     dp: 0-2, 1-3, 4-6, 5-7

    layers        cut into p stages (pipeline_parallel), each matrix of them into t parts (tensor_parallel); with
                  sequence parallelism also what lies between the matrices (sequence_parallel)
    activations   from a rank to the next stage's rank of the same part: b·s·h, or a t-th with sequence parallelism
    sequences     cut over cp, where attention goes round a ring (context_parallel): s then is s/c
    gradients     of a gain, which acts on a part only: a sum over tp; of a tied embedding: a sum over its two stages,
                  part by part; then the mean over dp × cp of what the rank holds, a 1/(p·t) of the model
    experts       spread over ep of the dp ranks, cut over tp (expert_parallel); their mean: over copies, and ÷ ep
    routers       their losses count choices over cp, or dp × cp; with sequence parallelism a rank of tp has a t-th
    states        with ZeRO-1 each rank of dp × cp steps 1/(d·c) of what it holds, 1/copies of an expert (zero)
    ‖g‖           squares: a matrix's over tp, pp, a gain's over pp, an expert's over tp, pp, ep; ZeRO-1: copies too

    p, d, c, t ranks along pp, dp, cp and tp   b sequences of a micro-batch   s sequence   h hidden_size
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, ModelConfig, MoeConfig, Topology, Trainer, Workload
from impls.common.experts import is_expert
from impls.common.mesh import cut, gather, lines, mesh, placed, token_share
from impls.common.optimizer import clip
from impls.common.shards import collect, dim, shard
from impls.common.sums import sum_flat
from impls.parallelism.hybrid_3d.checkpoint import load, save
from impls.parallelism.hybrid_3d.resharding import Moved, check
from impls.parallelism.hybrid_3d.stage import ROUTER, Context, Experts, SequenceStage, TensorStage, part_length, ring
from impls.parallelism.hybrid_3d.states import Kind, States
from impls.parallelism.pipeline_parallel.executor import Executor
from impls.parallelism.pipeline_parallel.part import shared_groups, sum_shared
from impls.parallelism.pipeline_parallel.plan import homes
from impls.parallelism.pipeline_parallel.schedules import plan_of
from impls.parallelism.pipeline_parallel.stage import Stage, build_stages
from impls.parallelism.sequence_parallel.operators import columns
from impls.parallelism.sequence_parallel.reference import SequenceParallel
from impls.parallelism.tensor_parallel.reference import TensorParallel


class Hybrid:
    """``partition``: the optimizer's states are divided among replicas. ``schedule``: one of pipeline_parallel's."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        sequence_parallel: bool = False,
        partition: bool = False,
        schedule: str = "1f1b",
    ) -> None:
        check(workload, topology, sequence_parallel)
        self.workload, self.topology, self.steps = workload, topology, 0

        # 1. The mesh: this rank's group along each axis. Ranks of dp × cp have other tokens and the same weights.
        places = mesh(topology)
        self.pp, self.tp, cp = (places.get_group(axis) for axis in ("pp", "tp", "cp"))
        self.dp_rank, pipelines = places.get_local_rank("dp"), lines(places, "pp")
        self.replicas = dist.new_subgroups_by_enumeration(lines(places, "dp", "cp"))[0]
        experts = isinstance(workload.model, MoeConfig)
        self.experts = Experts(places, topology, sums=not sequence_parallel) if experts else None
        self.context = Context(workload, topology.cp, cp.rank()) if topology.cp > 1 else None

        # 2. This rank's stage (pp): a part of each of its matrices (tp), its experts (ep), attention over a ring (cp).
        def make(config: ModelConfig, layers: range, first: bool, last: bool) -> nn.Module:
            place, length = (config, layers, first, last), part_length(workload, topology.cp)
            if sequence_parallel:
                stage = SequenceStage(*place, length, self.tp, columns)
            else:
                stage = TensorStage(*place, length, self.tp) if topology.tp > 1 else Stage(*place)
            if self.experts:
                self.experts.enter(stage, config)
            if self.context:
                self.context.enter(stage, ring(workload, cp))
            return stage

        plan = plan_of(workload, topology, schedule)
        self.stages, self.weights = build_stages(workload, plan, self.pp.rank(), make, self.part)
        self.executor = Executor(plan, pipelines, self.stages)

        # 3. Whose gradients are parts of sums: gains' over tp, a tied embedding's over its two stages.
        self.summed = (*SequenceParallel.summed, ROUTER) if sequence_parallel else TensorParallel.summed
        self.homes = homes(workload.model, plan)
        self.shared = shared_groups(self.homes, pipelines)

        # 4. The optimizer's states: of what, on how many ranks.
        kinds = {name: self.kind(name) for name in self.homes}
        self.states = States(self.weights, kinds, self.pp, self.replicas.size(), workload, partition)

    def part(self, name: str, full: Tensor) -> Tensor:
        """What this rank holds of a parameter of its stage."""
        return self.experts.part(name, full) if is_expert(name) else shard(name, full, self.tp.rank(), self.tp.size())

    def kind(self, name: str) -> Kind:
        counted = self.homes[name][0] == self.pp.rank()
        if is_expert(name):
            return Kind((self.tp, self.experts.ep), self.experts.replicas, counted)
        return Kind((self.tp,) if dim(name) is not None else (), self.replicas, counted)

    def backward(self, batch: Batch) -> Tensor:
        # 1. This rank's micro-batches: its rows of the batch (dp), and its positions of each sequence (cp).
        mine = list(cut(batch, self.workload, self.dp_rank, self.topology.dp))
        mine = [self.context.part(micro) for micro in mine] if self.context else mine
        weights = [token_share(micro, batch) * self.replicas.size() for micro in mine]
        # 2. They go through the pipeline.
        loss = self.executor.run([placed(micro) for micro in mine], weights).sum()
        dist.all_reduce(loss, group=self.pp)
        # 3. The gradients of the whole model's loss, which they are after the last W of a schedule that has W.
        sum_shared(self.weights, self.homes, self.shared, self.pp.rank())
        sum_flat([p.grad for name, p in self.weights.items() if name.endswith(self.summed)], self.tp)
        self.states.reduce()
        return loss

    def update(self) -> None:
        if self.workload.max_grad_norm:
            clip(self.states.own(), self.workload.max_grad_norm, self.states.norm())
        self.states.step()
        self.steps += 1

    def whole(self, what: str) -> Mapping[str, Tensor]:
        """The model's gradients or masters, on the first rank."""
        mine = {n: self.experts.whole(n, x) if is_expert(n) else x for n, x in self.states.named(what).items()}
        return gather(collect(mine, self.tp), self.pp)

    def gradients(self) -> Mapping[str, Tensor]:
        return self.whole("gradient")

    def parameters(self) -> Mapping[str, Tensor]:
        return self.whole("master")

    def padding(self) -> int:
        return self.states.padding()

    save, load = save, load


def build(workload: Workload, topology: Topology, resharding: str = "", **variant: Any) -> Trainer:
    """``resharding``: after a step everything is saved, and the run goes on on another mesh."""
    make = partial(Hybrid, workload, **variant)
    return Moved(make, workload, topology, resharding) if resharding else make(topology)
