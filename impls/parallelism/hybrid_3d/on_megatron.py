"""Megatron-Core's own GPTModel on all its axes: tensor, pipeline (1F1B) and data parallelism, sequence parallelism, the
distributed optimizer, its MoELayer, and its distributed checkpoints."""

from pathlib import Path
from queue import Queue
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor

from harness.spec import MoeConfig, Topology, Trainer, Unsupported, Workload
from impls.common.mesh import mesh
from impls.common.routers import without_router_losses
from impls.engines.megatron.experts import ExpertParallel
from impls.engines.megatron.gpt import Gpt
from impls.engines.megatron.sequence_parallel import with_sequence_parallel
from impls.parallelism.hybrid_3d.resharding import Moved, meshes
from impls.parallelism.hybrid_3d.stage import Experts


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


class WholeExperts:
    """A rank's experts where tensor-parallel ranks have all of them whole."""

    def part(self, name: str, full: Tensor) -> Tensor:
        return full

    def whole(self, name: str, part: Tensor) -> Tensor:
        return part


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
) -> Trainer:
    if schedule != "1f1b":
        raise Unsupported("Megatron-Core has no schedule whose backward pass comes in two parts")
    if topology.cp > 1:
        raise Unsupported("Megatron-Core's own attention, without Transformer Engine's, refuses context parallelism")
    experts = isinstance(workload.model, MoeConfig)
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
        return ExpertParallel(workload, topology, Experts(mesh(topology), topology), sequence_parallel, partition)
    if sequence_parallel:
        return with_sequence_parallel(workload, topology, shard_states=partition)
    return Gpt(workload, topology, shard_states=partition, deallocate_pipeline_outputs=True)
