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
    states        with ZeRO-1 each rank of dp × cp steps 1/(d·c) of what it holds, 1/copies of an expert (zero)
    ‖g‖           squares: a matrix's over tp, pp, a gain's over pp, an expert's over tp, pp, ep; ZeRO-1: copies too

    p, d, c, t ranks along pp, dp, cp and tp   b sequences of a micro-batch   s sequence   h hidden_size
"""

from collections.abc import Mapping
from functools import cached_property

import torch.distributed as dist
from torch import Tensor, nn

from harness.spec import Batch, ModelConfig, MoeConfig, Topology, Trainer, Workload
from impls.common.clipping import global_norm
from impls.common.mesh import gather, lines
from impls.common.optimizer import clip
from impls.common.shards import collect, dim, shard
from impls.common.sums import sum_flat
from impls.parallelism.hybrid_3d.checkpoint import load, save
from impls.parallelism.hybrid_3d.context import Context, part_length, ring
from impls.parallelism.hybrid_3d.experts import ROUTER, Experts, is_expert
from impls.parallelism.hybrid_3d.meshes import check
from impls.parallelism.hybrid_3d.moved import Moved
from impls.parallelism.hybrid_3d.stage import parallel_stage
from impls.parallelism.hybrid_3d.states import Groups, Kind, Partitioned, Replicated
from impls.parallelism.pipeline_parallel.reference import Pipeline
from impls.parallelism.pipeline_parallel.schedules import plan_of
from impls.parallelism.sequence_parallel.reference import SequenceParallel
from impls.parallelism.tensor_parallel.reference import TensorParallel


class Hybrid(Pipeline):
    """``partition``: the optimizer's states are divided among data-parallel ranks."""

    def __init__(self, workload: Workload, topology: Topology, sequence_parallel: bool, partition: bool) -> None:
        self.sequence_parallel, self.partition, self.steps = sequence_parallel, partition, 0
        self.summed = (*SequenceParallel.summed, ROUTER) if sequence_parallel else TensorParallel.summed
        super().__init__(workload, topology, plan_of(workload, topology, "1f1b", 1))

    @cached_property
    def context(self) -> Context | None:
        """Where sequences are cut over cp."""
        cp = self.topology.cp
        return Context(self.workload, cp, self.places.get_local_rank("cp")) if cp > 1 else None

    @cached_property
    def experts(self) -> Experts | None:
        moe = isinstance(self.workload.model, MoeConfig)
        return Experts(self.places, self.topology, sums=not self.sequence_parallel) if moe else None

    def replicas(self) -> dist.ProcessGroup:
        both = lines(self.places, "dp", "cp")
        return dist.new_subgroups_by_enumeration(both)[0] if self.context else super().replicas()

    def share(self, batch: Batch) -> list[Batch]:
        micro_batches = super().share(batch)
        return [self.context.part(micro) for micro in micro_batches] if self.context else micro_batches

    def stage(self, config: ModelConfig, layers: range, first: bool, last: bool) -> nn.Module:
        place, tp = (config, layers, first, last), self.places.get_group("tp")
        own = part_length(self.workload, self.topology.cp), tp, self.sequence_parallel
        made = parallel_stage(*place, *own) if tp.size() > 1 else super().stage(*place)
        if self.experts:
            self.experts.enter(made, config)
        if self.context:
            self.context.enter(made, ring(self.workload, self.places))
        return made

    def part(self, name: str, full: Tensor) -> Tensor:
        if is_expert(name):
            return self.experts.part(name, full)
        return shard(name, full, self.places.get_local_rank("tp"), self.topology.tp)

    def spread(self, name: str) -> tuple[Groups, dist.ProcessGroup]:
        """The groups among whose ranks a parameter of a stage is divided, and that whose ranks have the same part."""
        if is_expert(name):
            return (self.places.get_group("tp"), self.experts.ep), self.experts.replicas
        return () if dim(name) is None else (self.places.get_group("tp"),), self.dp

    def states(self) -> Replicated | Partitioned:
        kinds = {name: Kind(*self.spread(name), self.homes[name][0] == self.pp.rank()) for name in self.weights}
        return (Partitioned if self.partition else Replicated)(self.weights, kinds, self.dp.size(), self.workload)

    def reduce(self) -> None:
        gains = [p.grad for name, p in self.weights.items() if name.endswith(self.summed)]
        sum_flat(gains, self.places.get_group("tp"))
        self.optimizer.reduce()

    def update(self) -> None:
        if self.workload.max_grad_norm:
            mine = self.optimizer.by_kind()
            # All ranks ask for the same sums, also for those to which they have nothing to add.
            every = dict.fromkeys(Kind(*self.spread(name), True) for name, _ in self.workload.model.shapes())
            among = {(*kind.divided, self.pp, *self.optimizer.among(kind)): kind for kind in every}
            norm = global_norm({groups: mine.get(kind, []) for groups, kind in among.items()})
            clip([gradient for each in mine.values() for gradient in each], self.workload.max_grad_norm, norm)
            del mine  # the weights' way needs the room
        self.optimizer.step()
        self.steps += 1

    def gradients(self) -> Mapping[str, Tensor]:
        return self._collect(self.optimizer.gradients())

    def parameters(self) -> Mapping[str, Tensor]:
        return self._collect(self.optimizer.parameters())

    def _collect(self, mine: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.experts:
            mine = {name: self.experts.whole(name, x) if is_expert(name) else x for name, x in mine.items()}
        return gather(collect(mine, self.places.get_group("tp")), self.pp)

    def padding(self) -> int:
        return self.optimizer.padding

    save, load = save, load


def build(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
) -> Trainer:
    """``resharding``: after a step everything is saved, and the run goes on on another mesh."""
    check(workload, topology, sequence_parallel)
    if resharding:
        return Moved(lambda mesh: Hybrid(workload, mesh, sequence_parallel, partition), workload, topology, resharding)
    return Hybrid(workload, topology, sequence_parallel, partition)
