"""Megatron-Core's own GPTModel on all its axes: tensor, pipeline (1F1B) and data parallelism, sequence parallelism, the
distributed optimizer, its MoELayer, and its distributed checkpoints."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor, stack

from harness.spec import MoeConfig, Topology, Trainer, Unsupported, Workload
from impls.common.mesh import gather, mesh
from impls.common.shards import collect
from impls.common.weights import initial
from impls.parallelism.expert_parallel.on_megatron import on_this_device
from impls.parallelism.hybrid_3d.experts import Experts, is_expert
from impls.parallelism.hybrid_3d.meshes import meshes
from impls.parallelism.hybrid_3d.moved import Moved
from impls.parallelism.sequence_parallel import on_megatron as with_sequence_parallelism
from impls.parallelism.tensor_parallel.on_megatron import TensorParallel


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


class ExpertParallel(TensorParallel):
    def __init__(self, workload: Workload, topology: Topology, sequence_parallel: bool, partition: bool) -> None:
        model = self.model = workload.model
        if topology.tp > 1 and not sequence_parallel:
            raise Unsupported("Megatron-Core's MoE layers under tensor parallelism take tokens cut along the sequence")
        if sequence_parallel:
            with_sequence_parallelism.check(workload, topology)
        on_this_device()
        self.layers, self.sequence_parallel = model.num_hidden_layers // topology.pp, sequence_parallel
        # Under tensor parallelism alltoall all-gathers parts of unequal length, which gloo refuses.
        dispatcher = "allgather" if topology.tp > 1 and not torch.cuda.is_available() else "alltoall"
        self.experts = Experts(mesh(topology), topology)
        super().__init__(
            workload,
            topology,
            self._layers,
            shard_states=partition,
            sequence_parallel=sequence_parallel,
            deallocate_pipeline_outputs=True,
            num_moe_experts=model.num_experts,
            moe_ffn_hidden_size=model.moe_intermediate_size,
            moe_router_topk=model.num_experts_per_tok,
            moe_router_dtype="fp32",
            moe_router_load_balancing_type="none",
            moe_token_dispatcher_type=dispatcher,
            expert_model_parallel_size=topology.ep,
        )

    def _layers(self) -> ModuleSpec | TransformerBlockSubmodules:
        layer = get_gpt_layer_local_spec(num_experts=self.model.num_experts, qk_layernorm=True, normalization="RMSNorm")
        return with_sequence_parallelism.block(layer, self.layers) if self.sequence_parallel else layer

    def initial(self) -> Iterator[tuple[str, Tensor]]:
        """Of the experts this rank's, each by itself, since Megatron has them so."""
        for name, full in initial(self.workload):
            if is_expert(name):
                for index, weight in enumerate(self.experts.part(name, full)):
                    yield f"{name}.{index}.weight", weight
            else:
                yield name, full

    def cut(self, part: str) -> int | None:
        return int("down_proj" in part) if is_expert(part) else super().cut(part)

    def _collect(self, fused: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        mine: dict[str, Tensor] = {}
        each: dict[str, list[Tensor]] = {}
        for name, tensor in self._canonical(fused):
            if is_expert(name):
                each.setdefault(name.rpartition("_proj")[0] + "_proj", []).append(tensor)
            else:
                mine[name] = tensor
        mine |= {name: self.experts.whole(name, stack(parts)) for name, parts in each.items()}
        return gather(collect(mine, self.tp), self.pp)


class SavedModel(Saved, TensorParallel):
    pass


class SavedExperts(Saved, ExpertParallel):
    pass


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
    experts = isinstance(workload.model, MoeConfig)
    if resharding:
        if experts and min(mesh.ep for mesh in meshes(topology, resharding)) < topology.ep:
            raise Unsupported(
                "Megatron-Core has one optimizer more for experts that lie on several ranks, and names states by their "
                "optimizer's place: they cannot be read where experts lie on one"
            )

        def make(mesh: Topology) -> Trainer:
            if experts:
                return SavedExperts(workload, mesh, sequence_parallel=mesh.tp > 1, partition=False)
            return SavedModel(workload, mesh, deallocate_pipeline_outputs=True)

        moved = Moved(make, workload, topology, resharding)
        if partition:
            moved.fallback = (
                "the optimizer's states are whole: a reshardable checkpoint of the distributed optimizer holds no step "
                "count, which PyTorch's Adam, unlike Apex's and Transformer Engine's, asks for"
            )
        return moved
    if experts:
        return ExpertParallel(workload, topology, sequence_parallel, partition)
    if sequence_parallel:
        return with_sequence_parallelism.build(workload, topology, shard_states=partition)
    return TensorParallel(workload, topology, shard_states=partition, deallocate_pipeline_outputs=True)
