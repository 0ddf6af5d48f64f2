"""Transformers' Mixtral block, not distributed: its experts run one after another, or by PyTorch's grouped matrix
product."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor
from torch.func import functional_call
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

from harness.spec import Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.common.routers import slope
from impls.common.weights import TORCH_DTYPES
from impls.parallelism.expert_parallel.router import Rule
from impls.parallelism.expert_parallel.spread import reported


class Layer:
    def __init__(self, implementation: str, workload: Workload, topology: Topology, **variant: object) -> None:
        self.rule = rule = Rule(**variant)
        if topology.world_size > 1:
            raise Unsupported("Transformers' MixtralSparseMoeBlock runs in one process")
        if rule.capacity:
            raise Unsupported("Transformers' MixtralSparseMoeBlock has no capacity: it drops no token")
        if rule.bias:
            raise Unsupported("Transformers' DeepseekV3TopkRouter holds its bias in a buffer that is never updated")
        if workload.dtype == "fp64":
            raise Unsupported("Transformers' MixtralTopKRouter computes its softmax in float32")
        config = MixtralConfig(
            hidden_size=workload.model.hidden_size,
            intermediate_size=workload.model.intermediate_size,
            num_local_experts=rule.experts,
            num_experts_per_tok=rule.k,
            experts_implementation=implementation,
        )
        self.block = MixtralSparseMoeBlock(config).to(device(), TORCH_DTYPES[workload.dtype])
        self.routed: tuple[Tensor, ...] = ()
        self.block.gate.register_forward_hook(lambda module, arguments, out: setattr(self, "routed", out))

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rule = self.rule
        weights = {
            "gate.weight": inputs["router"],
            "experts.gate_up_proj": inputs["gate_up"],
            "experts.down_proj": inputs["down"],
        }
        output = functional_call(self.block, weights, (inputs["x"],))
        logits, _, chosen = self.routed
        auxiliary = load_balancing_loss_func((logits,), rule.experts, rule.k) / rule.k  # whose shares sum to k
        z = router_z_loss_func(logits[None])
        return {
            "output": output,
            "tokens_per_expert": chosen.flatten().bincount(minlength=rule.experts),
            "auxiliary_loss": reported(auxiliary),
            "z_loss": reported(z),
            "router_loss": slope(len(logits) * (rule.auxiliary * auxiliary + rule.z * z)),
        }


build = partial(Layer, "eager")
build_grouped = partial(Layer, "grouped_mm")
