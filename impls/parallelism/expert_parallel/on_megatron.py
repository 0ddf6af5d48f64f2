"""Megatron-Core's MoELayer (local specification: no Transformer Engine), with either of its token dispatchers.

Its auxiliary losses are never returned: they enter the backward pass automatically, times one scale for all of them
(MoEAuxLossAutoScaler), and are logged. So the scale is set to the cotangent of ``router_loss``, and the values come
from the log. Its capacity holds for one call, so each group of tokens is a call, like a micro-batch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor
from torch.autograd import Function
from torch.func import functional_call

from harness.spec import Topology, Unsupported, Workload
from impls.common.weights import TORCH_DTYPES
from impls.engines.megatron.experts import on_this_device
from impls.engines.megatron.start import start
from impls.parallelism.expert_parallel.router import SPEED, Rule
from impls.parallelism.expert_parallel.spread import Spread, summed, unstacked


class _Scale(Function):
    """Represents the losses that Megatron adds automatically. This node is created last, so its backward runs first."""

    @staticmethod
    def forward(ctx: Any, after: Tensor) -> Tensor:
        return after.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        moe_utils.MoEAuxLossAutoScaler.set_loss_scale(gradient.clone())


def configuration(workload: Workload, topology: Topology, rule: Rule, dispatcher: str, calls: int) -> TransformerConfig:
    """``calls``: the number of calls on all ranks; Megatron averages per-call values over them."""
    model, tokens = workload.model, workload.tokens
    balancing = "none" if not rule.auxiliary else "aux_loss" if rule.capacity else "global_aux_loss"
    return TransformerConfig(
        num_layers=1,
        hidden_size=model.hidden_size,
        num_attention_heads=topology.tp,  # it has no tensor parallelism; tp must divide the heads
        ffn_hidden_size=model.intermediate_size,
        moe_ffn_hidden_size=model.intermediate_size,
        num_moe_experts=rule.experts,
        expert_model_parallel_size=topology.ep,
        tensor_model_parallel_size=topology.tp,
        sequence_parallel=topology.tp > 1,
        moe_token_dispatcher_type=dispatcher,
        moe_router_topk=rule.k,
        moe_router_pre_softmax=rule.k == 1,  # for several choices, its softmax over k logits is their share
        moe_router_score_function="sigmoid" if rule.bias else "softmax",
        moe_router_enable_expert_bias=rule.bias,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type=balancing,
        moe_aux_loss_coeff=rule.auxiliary * tokens / (calls if rule.capacity else 1),  # a global loss already is one
        moe_z_loss_coeff=rule.z * tokens / calls * topology.tp or None,  # it divides by tp itself
        moe_expert_capacity_factor=rule.capacity or None,
        moe_token_drop_policy={"priority": "probs", "position": "position"}[rule.drop],
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        params_dtype=TORCH_DTYPES[workload.dtype],
        bf16=workload.dtype == "bf16",
        fp16=workload.dtype == "fp16",
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,  # an Apex kernel
        bias_activation_fusion=False,  # rounds differently
    )


class Layer:
    def __init__(self, dispatcher: str, workload: Workload, topology: Topology, **variant: object) -> None:
        self.rule = rule = Rule(**variant)
        if topology.tp > 1 and rule.capacity:
            raise Unsupported(
                "Megatron-Core's MoELayer with tensor and expert parallelism needs tokens that are cut along the"
                " sequence, and its capacity counts only a rank's tokens: no group would be whole"
            )
        if topology.tp > 1 and dispatcher == "alltoall" and not torch.cuda.is_available():
            raise Unsupported(
                "Megatron-Core's dispatcher 'alltoall' with tensor parallelism all-gathers parts of unequal length,"
                " which gloo refuses"
            )
        if workload.dtype == "fp64":
            raise Unsupported("Megatron-Core's router computes its softmax and sigmoid in float32")
        if rule.capacity and rule.k > 1:
            raise Unsupported(
                "Megatron-Core's auxiliary loss counts all k choices and its capacity gives first choices no precedence"
                " over second ones, where GShard's count and prefer the first"
            )
        if rule.capacity and rule.drop == "position" and not torch.cuda.is_available():
            raise Unsupported(
                "Megatron-Core's drop policy 'position' lets ties in torch.topk decide which token a full expert drops,"
                " and on a CPU those are in no order"
            )
        start(topology)
        on_this_device()
        self.spread = Spread(topology, rule.experts, cut_tokens=True)
        self.split, self.gather = self.spread.split, self.spread.gather
        self.mine = rule.groups // topology.dp if rule.capacity else 1
        self.calls = self.mine * topology.dp * topology.tp
        config = configuration(workload, topology, rule, dispatcher, self.calls)
        specification = get_moe_module_spec(use_te=False, num_experts=rule.experts)
        self.layer = MoELayer(config, specification.submodules)
        self.layer.set_layer_number(1)
        self.maps: list[Tensor] = []
        self.layer.router.register_forward_hook(lambda module, arguments, out: self.maps.append(out[1]))

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        router = self.layer.router
        weights = {"router.weight": summed(inputs["router"], self.spread.dp)}
        for name, tensor in (("linear_fc1", inputs["gate_up"]), ("linear_fc2", inputs["down"])):
            for index, part in enumerate(unstacked(tensor, self.spread.replicas)):
                weights[f"experts.local_experts.{index}.{name}.weight"] = part
        if self.rule.bias:
            weights["router.expert_bias"] = inputs["bias"].float()
            router.local_tokens_per_expert.zero_()
        router.reset_global_aux_loss_tracker()
        moe_utils.clear_aux_losses_tracker()
        self.maps.clear()
        groups = inputs["x"].flatten(0, 1).unsqueeze(1).chunk(self.mine)  # each [S, 1, h]
        output = torch.cat([functional_call(self.layer, weights, (part,))[0] for part in groups])
        kept = torch.cat(self.maps)
        found = {"output": output.view_as(inputs["x"]), "tokens_per_expert": kept.sum(0)}
        if self.rule.capacity:
            found["dropped"] = self.rule.k * len(kept) - kept.sum()
        if self.rule.bias:
            counts = router.local_tokens_per_expert.clone()
            found["expert_bias"] = moe_utils.get_updated_expert_bias(counts, weights["router.expert_bias"], SPEED)
        return found | self._losses(output)

    def _losses(self, output: Tensor) -> dict[str, Tensor]:
        """This rank's part, from the log, which adds calls."""
        log = {name: entry["values"].sum() for name, entry in moe_utils.get_moe_layer_wise_logging_tracker().items()}
        found = {}
        if self.rule.capacity:
            found["auxiliary_loss"] = log["load_balancing_loss"] / self.calls
        elif self.rule.auxiliary:
            found["auxiliary_loss"] = log["global_load_balancing_loss"]
        if self.rule.z:
            found["z_loss"] = log["z_loss"] / self.calls
        return found | {"router_loss": _Scale.apply(output)} if found else {}


build_alltoall = partial(Layer, "alltoall")
build_allgather = partial(Layer, "allgather")
