"""Megatron-Core's own GPTModel with its MoELayer (local specification: no Transformer Engine)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.moe import moe_utils, token_dispatcher
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor, stack

from harness.spec import MoeConfig, Topology, Unsupported, Workload
from impls.common.experts import Places, is_expert
from impls.common.mesh import gather
from impls.common.shards import collect
from impls.common.weights import initial
from impls.engines.megatron.gpt import Gpt
from impls.engines.megatron.sequence_parallel import block, check


def _to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Megatron's own function converts only tensors from a GPU to numpy, as all_to_all_single needs its splits."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def on_this_device() -> None:
    """Sets up a rank for its first MoELayer."""
    if not torch.cuda.is_available():
        moe_utils.maybe_move_tensor_to_cpu = token_dispatcher.maybe_move_tensor_to_cpu = _to_cpu
    if not moe_utils.HAVE_TE:
        moe_utils.te_general_gemm = None  # router_gating_linear requests it, but only Transformer Engine binds it


def router_losses(model: MoeConfig, per_token: bool) -> dict[str, Any]:
    """Megatron's settings for the routers' losses. They weigh tokens only if the whole loss does, ``per_token``."""
    balance = "seq_aux_loss" if model.seq_aux else "global_aux_loss" if model.global_aux else "aux_loss"
    return {
        "moe_router_load_balancing_type": balance if model.router_aux_loss_coef else "none",
        "moe_aux_loss_coeff": model.router_aux_loss_coef,
        "moe_z_loss_coeff": model.router_z_loss_coef or None,
        "calculate_per_token_loss": model.router_losses and per_token,
    }


class ExpertParallel(Gpt):
    """``experts`` says which of them a rank holds, and ``changes`` are further settings. Without ``per_token`` routers'
    losses are means of micro-batches' means, as Megatron-Core has them by default."""

    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        experts: Places,
        sequence_parallel: bool = False,
        partition: bool = False,
        per_token: bool = True,
        **changes: Any,
    ) -> None:
        model = workload.model
        if not isinstance(model, MoeConfig):
            raise Unsupported(f"ep {topology.ep} without experts: the model is dense")
        if not per_token and topology.dp * workload.micro_batches > 1 and (workload.min_length or workload.unlabelled):
            raise Unsupported("micro-batches with unequal numbers of labels: their means weigh tokens unlike")
        self.model = model
        if topology.tp > 1 and not sequence_parallel:
            raise Unsupported("Megatron-Core's MoE layers under tensor parallelism take tokens cut along the sequence")
        if sequence_parallel:
            check(workload, topology)
        on_this_device()
        self.layers, self.sequence_parallel = model.num_hidden_layers // topology.pp, sequence_parallel
        # Under tensor parallelism alltoall all-gathers parts of unequal length, which gloo refuses.
        dispatcher = "allgather" if topology.tp > 1 and not torch.cuda.is_available() else "alltoall"
        self.experts = experts
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
            **router_losses(model, per_token),
            moe_token_dispatcher_type=dispatcher,
            expert_model_parallel_size=topology.ep,
            **changes,
        )

    def _layers(self) -> ModuleSpec | TransformerBlockSubmodules:
        layer = get_gpt_layer_local_spec(num_experts=self.model.num_experts, qk_layernorm=True, normalization="RMSNorm")
        return block(layer, self.layers) if self.sequence_parallel else layer

    def initial(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's experts, each as separate weights, as in Megatron."""
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
