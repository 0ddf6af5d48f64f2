"""Megatron-Core's GPTModel with its MoELayer (local specification, dispatcher alltoall): expert parallelism with data
and pipeline parallelism, its optimizer's clipping over all of them."""

from collections.abc import Iterator, Mapping

from torch import Tensor, stack

from harness.spec import Topology, Unsupported, Workload
from impls.models.mesh import gather, mesh
from impls.models.weights import initial
from impls.parallelism.expert_parallel.on_megatron import on_this_device  # before what it sets is read
from impls.parallelism.hybrid_3d.experts import Experts, is_expert
from impls.parallelism.tensor_parallel.on_megatron import TensorParallel
from impls.parallelism.tensor_parallel.shards import collect

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # isort: skip
from megatron.core.transformer import ModuleSpec  # isort: skip


class ExpertParallel(TensorParallel):
    def __init__(self, workload: Workload, topology: Topology) -> None:
        model = self.model = workload.model
        if topology.tp > 1:
            raise Unsupported("Megatron-Core's MoE layers under tensor parallelism take tokens cut along the sequence")
        on_this_device()
        self.experts = Experts(mesh(topology), topology)
        super().__init__(
            workload,
            topology,
            self._layers,
            deallocate_pipeline_outputs=True,
            num_moe_experts=model.num_experts,
            moe_ffn_hidden_size=model.moe_intermediate_size,
            moe_router_topk=model.num_experts_per_tok,
            moe_router_dtype="fp32",
            moe_router_load_balancing_type="none",
            moe_token_dispatcher_type="alltoall",
            expert_model_parallel_size=topology.ep,
        )

    def _layers(self) -> ModuleSpec:
        return get_gpt_layer_local_spec(num_experts=self.model.num_experts, qk_layernorm=True, normalization="RMSNorm")

    def initial(self) -> Iterator[tuple[str, Tensor]]:
        """Of the experts this rank's, each by itself, since Megatron has them so."""
        for name, full in initial(self.workload):
            if is_expert(name):
                for index, weight in enumerate(self.experts.part(name, full)):
                    yield f"{name}.{index}.weight", weight
            else:
                yield name, full

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
