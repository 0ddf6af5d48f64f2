"""Megatron-Core's own GPTModel on all its axes: tensor, pipeline (1F1B) and data parallelism, sequence parallelism, the
distributed optimizer, its MoELayer, and its distributed checkpoints."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor, nn

from harness.spec import Batch, MoeConfig, Topology, Trainer, Unsupported, Workload
from impls.common.mesh import cut, mesh, placed, token_share
from impls.common.routers import has_router_losses, without_router_losses
from impls.engines.megatron.experts import ExpertParallel
from impls.engines.megatron.gpt import Gpt
from impls.engines.megatron.sequence_parallel import with_sequence_parallel
from impls.parallelism.hybrid_3d.resharding import Moved, meshes
from impls.parallelism.hybrid_3d.stage import Context, Experts, ring


class Saved:
    """What is saved and loaded of a model of Megatron-Core's."""

    def _checkpoint(self, loading: bool) -> dict[str, Any]:
        model = self.parts[0].module.sharded_state_dict()
        return {"model": model, "optimizer": self.optimizer.sharded_state_dict(model, loading)}

    def save(self, folder: Path) -> None:
        # Megatron's own is a process of each rank, which imports everything anew; this save waits in the rank itself.
        filesystem_async._results_queue = Queue()
        dist_checkpointing.save(self._checkpoint(loading=False), str(folder))

    def load(self, folder: Path) -> None:
        found = dist_checkpointing.load(self._checkpoint(loading=True), str(folder))
        self.parts[0].module.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])


class SavedModel(Saved, Gpt):
    pass


class SavedExperts(Saved, ExpertParallel):
    pass


class GoingRound(nn.Module):
    """In the place of the attention of a layer: ``attend`` to the keys of all context-parallel ranks."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], **_settings: Any) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_mask: Any, **_options: Any) -> Tensor:
        """[n, b, h, d] each, of this rank's n positions; [n, b, h·d]."""
        output = self.attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))  # [b, h, n, d]
        return output.permute(2, 0, 1, 3).flatten(2)


class ContextParallel(ExpertParallel):
    """Experts whose tokens are parts of sequences, in Megatron-Core's zig-zag layout."""

    fallback = (
        "attention goes round the reference's ring: Megatron-Core's own, without Transformer Engine's, refuses context "
        "parallelism"
    )

    def _layers(self) -> Any:
        layer = super()._layers()
        around = ring(self.workload, parallel_state.get_context_parallel_group())
        layer.submodules.self_attention.submodules.core_attention = partial(GoingRound, around)
        return layer

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        topology = self.topology
        context = Context(self.workload, topology.cp, parallel_state.get_context_parallel_rank())
        for whole in cut(batch, self.workload, self.dp_rank, topology.dp):
            micro = context.part(whole)
            yield placed(micro), token_share(micro, batch) * topology.dp * topology.cp


class WholeExperts:
    """A rank's experts where tensor-parallel ranks have all of them whole."""

    def part(self, name: str, full: Tensor) -> Tensor:
        return full

    def whole(self, name: str, part: Tensor) -> Tensor:
        return part


def build_means(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Megatron-Core's default: losses are means of micro-batches' means, not of tokens."""
    if not has_router_losses(workload.model):
        raise Unsupported("without losses of routers the engine megatron has these weights, too")
    return build(workload, topology, **variant, per_token=False)


def build_whole_experts(workload: Workload, topology: Topology, sequence_parallel: bool) -> Trainer:
    if not isinstance(workload.model, MoeConfig) or topology.tp == 1 or topology.world_size > topology.tp:
        raise Unsupported("whole experts on tensor-parallel ranks are set up here on these ranks alone")
    without_router_losses(workload.model, "whole experts are set up here without losses of routers")
    return ExpertParallel(workload, topology, WholeExperts(), sequence_parallel, expert_tensor_parallel_size=1)


def build(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
    schedule: str = "1f1b",
    per_token: bool = True,
) -> Trainer:
    if schedule != "1f1b":
        raise Unsupported("Megatron-Core has no schedule whose backward pass comes in two parts")
    experts = isinstance(workload.model, MoeConfig)
    if topology.cp > 1 and (resharding or sequence_parallel or topology.pp > 1 or not experts):
        raise Unsupported("Megatron-Core's own attention, without Transformer Engine's, refuses context parallelism")
    if workload.sequence_length % (2 * topology.cp) and topology.cp > 1:
        raise Unsupported(f"Megatron-Core cuts a sequence into 2·cp equal parts; {workload.sequence_length} has none")
    if resharding:
        if experts and min(each.ep for each in meshes(topology, resharding)) < topology.ep:
            raise Unsupported(
                "Megatron-Core has one optimizer more for experts that lie on several ranks, and names states by their "
                "optimizer's place: they cannot be read where experts lie on one"
            )

        def make(there: Topology) -> Trainer:
            if experts:
                return SavedExperts(workload, there, Experts(mesh(there), there), sequence_parallel=there.tp > 1)
            return SavedModel(workload, there, deallocate_pipeline_outputs=True)

        moved = Moved(make, workload, topology, resharding)
        if partition:
            moved.fallback = (
                "the optimizer's states are whole: a reshardable checkpoint of the distributed optimizer holds no step "
                "count, which PyTorch's Adam, unlike Apex's and Transformer Engine's, asks for"
            )
        return moved
    if experts:
        where = Experts(mesh(topology), topology)
        if topology.cp > 1:
            return ContextParallel(workload, topology, where, per_token=per_token, context_parallel_size=topology.cp)
        return ExpertParallel(workload, topology, where, sequence_parallel, partition, per_token)
    if sequence_parallel:
        return with_sequence_parallel(workload, topology, shard_states=partition)
    return Gpt(workload, topology, shard_states=partition, deallocate_pipeline_outputs=True)
