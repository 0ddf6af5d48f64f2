"""DeepSpeed's engine around our decoder with its MoE layers, beside data parallelism."""

from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import Tensor, nn, no_grad, stack

from harness.spec import MoeConfig, Topology, Unsupported, Workload
from impls.common.experts import Experts, Places
from impls.common.mesh import device
from impls.common.optimizer import optimizer
from impls.common.routers import without_router_losses
from impls.common.weights import TORCH_DTYPES, build_model
from impls.engines.deepspeed.engine import Engine, configuration


class Expert(nn.Module):
    def __init__(self, h: int, f: int) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(h, 2 * f, bias=False), nn.Linear(f, h, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Routed(nn.Module):
    """DeepSpeed's layer in the place of a dense one, with its weights."""

    def __init__(self, dense: Experts, places: Places, model: MoeConfig, dtype: torch.dtype, ep: int) -> None:
        super().__init__()
        self.moe = MoE(
            model.hidden_size,
            Expert(model.hidden_size, model.moe_intermediate_size),
            num_experts=model.num_experts,
            ep_size=ep,
            k=model.num_experts_per_tok,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,  # or it adds noise to the second choice
        ).to(device(), dtype)
        layer = self.moe.deepspeed_moe
        self.gate, self.each = layer.gate.wg.weight, layer.experts.deepspeed_experts
        with no_grad():
            self.gate.copy_(dense.gate.weight)
            for kind in ("gate_up", "down"):
                part = places.part(f".{kind}_proj", getattr(dense.experts, f"{kind}_proj"))
                for expert, weight in zip(self.each, part, strict=True):
                    getattr(expert, kind).weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x)[0]


class ExpertParallel(Engine):
    """``experts`` says which of them a rank holds."""

    def __init__(self, workload: Workload, topology: Topology, experts: Places) -> None:
        if not isinstance(workload.model, MoeConfig):
            raise Unsupported(f"ep {topology.ep} without experts: the model is dense")
        if topology.tp * topology.pp > 1 or workload.dtype != "fp32":
            raise Unsupported("DeepSpeed's MoE layers are set up here beside data parallelism alone, in float32")
        without_router_losses(
            workload.model,
            "DeepSpeed's gates have no z loss, and their balance loss, of two choices, counts the first alone",
        )
        self.workload, self.topology, self.rank = workload, topology, dist.get_rank()
        deepspeed.init_distributed(dist_init_required=False)
        self.experts, self.model = experts, build_model(workload)
        self.layers: list[Any] = list(self.model.model.layers)
        for layer in self.layers:
            layer.mlp = Routed(layer.mlp, experts, workload.model, TORCH_DTYPES[workload.dtype], topology.ep)
        groups = split_params_into_different_moe_groups_for_optimizer(
            {"params": list(self.model.parameters()), "name": "all"}
        )
        self.engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=optimizer(groups, workload),
            config=configuration(workload, topology, {"stage": 0}),
            dist_init_required=False,
        )

    def _whole(self, value: Callable[[Any], Tensor]) -> Mapping[str, Tensor]:
        found = {name: value(p) for name, p in self.model.named_parameters() if ".mlp." not in name}
        for index, layer in enumerate(self.layers):
            prefix = f"model.layers.{index}.mlp."
            found[f"{prefix}gate.weight"] = value(layer.mlp.gate)
            for kind in ("gate_up", "down"):
                name, mine = f"{prefix}experts.{kind}_proj", [getattr(each, kind).weight for each in layer.mlp.each]
                found[name] = self.experts.whole(name, stack([value(p) for p in mine]))
        return {name: tensor.detach().cpu() for name, tensor in found.items()}

    def gradients(self) -> Mapping[str, Tensor]:
        return self._whole(lambda p: p.grad)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._whole(lambda p: p)
