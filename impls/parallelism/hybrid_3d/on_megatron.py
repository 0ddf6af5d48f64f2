"""Megatron-Core's own GPTModel on all its axes: tensor, pipeline (1F1B) and data parallelism, sequence parallelism, the
distributed optimizer, and its distributed checkpoints."""

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing

from harness.spec import MoeConfig, Topology, Trainer, Unsupported, Workload
from impls.parallelism.hybrid_3d.experts import ALONE
from impls.parallelism.hybrid_3d.megatron_experts import ExpertParallel
from impls.parallelism.hybrid_3d.moved import Moved
from impls.parallelism.sequence_parallel import on_megatron as with_sequence_parallelism
from impls.parallelism.tensor_parallel.on_megatron import TensorParallel


class Saved(TensorParallel):
    def _checkpoint(self, loading: bool) -> dict[str, Any]:
        model = self.parts[0].module.sharded_state_dict()
        return {"model": model, "optimizer": self.optimizer.sharded_state_dict(model, loading)}

    def save(self, folder: Path) -> None:
        dist_checkpointing.save(self._checkpoint(loading=False), str(folder))

    def load(self, folder: Path) -> None:
        found = dist_checkpointing.load(self._checkpoint(loading=True), str(folder))
        self.parts[0].module.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])


def build(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
) -> Trainer:
    if topology.cp > 1:
        raise Unsupported("Megatron-Core's own attention, without Transformer Engine's, refuses context parallelism")
    if workload.model.num_hidden_layers % topology.pp:
        raise Unsupported(
            f"Megatron-Core's stages have as many layers each: {topology.pp} does not divide "
            f"{workload.model.num_hidden_layers}"
        )
    if isinstance(workload.model, MoeConfig):
        if sequence_parallel or partition or resharding:
            raise Unsupported(ALONE)
        return ExpertParallel(workload, topology)
    if resharding:
        moved = Moved(
            lambda mesh: Saved(workload, mesh, deallocate_pipeline_outputs=True), workload, topology, resharding
        )
        if partition:
            moved.fallback = (
                "the optimizer's states are whole: a reshardable checkpoint of the distributed optimizer holds no step "
                "count, which PyTorch's Adam, unlike Apex's and Transformer Engine's, asks for"
            )
        return moved
    if sequence_parallel:
        return with_sequence_parallelism.build(workload, topology, shard_states=partition)
    return TensorParallel(workload, topology, shard_states=partition, deallocate_pipeline_outputs=True)
