"""DeepSpeed's MoE layer: TopKGate, an all-to-all of every expert's whole capacity, and the user's own experts.

Its capacity holds for one call, so each group of tokens is a call, like a micro-batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call

from harness.spec import Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.common.routers import slope
from impls.common.weights import TORCH_DTYPES
from impls.engines.deepspeed.engine import deepspeed  # it sets the device first
from impls.engines.deepspeed.experts import Expert
from impls.parallelism.expert_parallel.dispatch import count
from impls.parallelism.expert_parallel.router import Rule
from impls.parallelism.expert_parallel.spread import Spread, summed, unstacked

from deepspeed.moe.layer import MoE  # isort: skip


class Layer:
    def __init__(self, workload: Workload, topology: Topology, **variant: object) -> None:
        self.rule = rule = Rule(**variant)
        if topology.tp > 1:
            raise Unsupported("deepspeed.moe.layer.MoE leaves tensor parallelism to the expert that it is given")
        if rule.bias:
            raise Unsupported("deepspeed.moe.layer.MoE's gates have no bias on the choice of experts")
        if rule.z:
            raise Unsupported("deepspeed.moe.layer.MoE has no z-loss, and does not return its logits")
        if rule.drop == "priority":
            raise Unsupported("DeepSpeed's top-1 gate drops by position or at random; by gate only for k > 2")
        if rule.k == 1 and not torch.cuda.is_available():
            raise Unsupported(
                "DeepSpeed's top-1 gate lets ties in torch.topk decide which token a full expert drops, and on a CPU"
                " those are in no order"
            )
        if workload.dtype == "fp64":
            raise Unsupported("DeepSpeed's gate computes in float32")
        deepspeed.init_distributed(dist_init_required=False)
        self.spread = Spread(topology, rule.experts)
        self.split, self.gather = self.spread.split, self.spread.gather
        self.mine, self.scale = rule.groups // topology.dp, rule.auxiliary * workload.tokens
        self.moe = MoE(
            workload.model.hidden_size,
            Expert(workload.model.hidden_size, workload.model.intermediate_size),
            num_experts=rule.experts,
            ep_size=topology.ep,
            k=rule.k,
            capacity_factor=rule.capacity,  # multiplied by k inside
            min_capacity=0,  # its default of 4 would give another capacity
            use_rts=False,  # otherwise it drops at random
            top2_2nd_expert_sampling=False,  # otherwise it adds noise to the second choice
        ).to(device(), TORCH_DTYPES[workload.dtype])
        self.moe.set_deepspeed_parallelism()
        self.kept: list[Tensor] = []
        self.moe.deepspeed_moe.gate.register_forward_hook(lambda module, arguments, out: self.kept.append(out[3]))

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {"deepspeed_moe.gate.wg.weight": summed(inputs["router"], self.spread.dp)}
        for name in ("gate_up", "down"):
            for index, part in enumerate(unstacked(inputs[name], self.spread.replicas)):
                weights[f"deepspeed_moe.experts.deepspeed_experts.{index}.{name}.weight"] = part
        self.kept.clear()
        calls = [functional_call(self.moe, weights, (part,)) for part in inputs["x"].chunk(self.mine)]
        chosen = torch.cat(self.kept, 1)  # [k, t], −1 for a dropped token
        loss = torch.stack([call[1] for call in calls]).sum() / self.rule.groups
        return {
            "output": torch.cat([call[0] for call in calls]),
            "tokens_per_expert": count(chosen.masked_fill(chosen < 0, self.rule.experts), self.rule.experts),
            "dropped": (chosen < 0).sum(),
            "auxiliary_loss": loss.detach(),
            "router_loss": slope(self.scale * loss),
        }


def build(workload: Workload, topology: Topology, **variant: object) -> Layer:
    return Layer(workload, topology, **variant)
