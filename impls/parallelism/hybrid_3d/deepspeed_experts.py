"""DeepSpeed's engine around our decoder with its MoE layers: expert parallelism beside data parallelism, its gradient
clipping over both."""

from collections.abc import Callable, Mapping

import torch.distributed as dist
from torch import Tensor, nn, no_grad, stack

from harness.spec import Topology, Unsupported, Workload
from impls.models.deepspeed import Engine, configuration, deepspeed
from impls.models.experts import Experts as Dense
from impls.models.mesh import device, mesh
from impls.models.optimizer import optimizer
from impls.models.weights import TORCH_DTYPES, build_model
from impls.parallelism.expert_parallel.on_deepspeed import Expert
from impls.parallelism.hybrid_3d.experts import Experts

from deepspeed.moe.layer import MoE  # isort: skip
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer  # isort: skip


class Routed(nn.Module):
    """DeepSpeed's layer in the place of a dense one, with its weights."""

    def __init__(self, dense: Dense, experts: Experts, workload: Workload, ep: int) -> None:
        super().__init__()
        model = workload.model
        self.moe = MoE(
            model.hidden_size,
            Expert(model.hidden_size, model.moe_intermediate_size),
            num_experts=model.num_experts,
            ep_size=ep,
            k=model.num_experts_per_tok,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,  # or it adds noise to the second choice
        ).to(device(), TORCH_DTYPES[workload.dtype])
        layer = self.moe.deepspeed_moe
        self.gate, self.each = layer.gate.wg.weight, layer.experts.deepspeed_experts
        with no_grad():
            self.gate.copy_(dense.gate.weight)
            for kind in ("gate_up", "down"):
                part = experts.part(f".{kind}_proj", getattr(dense.experts, f"{kind}_proj"))
                for expert, weight in zip(self.each, part, strict=True):
                    getattr(expert, kind).weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x)[0]


class ExpertParallel(Engine):
    def __init__(self, workload: Workload, topology: Topology) -> None:
        if topology.tp * topology.pp > 1 or workload.dtype != "fp32":
            raise Unsupported("DeepSpeed's MoE layers are set up here beside data parallelism alone, in float32")
        self.workload, self.topology, self.rank = workload, topology, dist.get_rank()
        deepspeed.init_distributed(dist_init_required=False)
        self.experts = Experts(mesh(topology), topology)
        self.model = build_model(workload)
        for layer in self.model.model.layers:
            layer.mlp = Routed(layer.mlp, self.experts, workload, topology.ep)
        groups = split_params_into_different_moe_groups_for_optimizer(
            {"params": list(self.model.parameters()), "name": "all"}
        )
        self.engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=optimizer(groups, workload),
            config=configuration(workload, topology, {"stage": 0}),
            dist_init_required=False,
        )

    def _whole(self, value: Callable[[nn.Parameter], Tensor]) -> Mapping[str, Tensor]:
        found = {name: value(p) for name, p in self.model.named_parameters() if ".mlp." not in name}
        for index, layer in enumerate(self.model.model.layers):
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
