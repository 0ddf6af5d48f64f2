"""PEFT's LoRA on a module that Transformers' tensor parallelism has cut, of DTensors: as PEFT finds a model that was
loaded with a ``tp_plan``, it puts the adapters' cut factors on the same mesh.

PEFT 0.21 gives the adapter of a row-parallel layer this rank's part of the width as in_features. Transformers 5.24
expects the whole width there, and fails on the shapes; so it is corrected here."""

from collections.abc import Mapping
from types import SimpleNamespace

import peft
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from harness.spec import Function, Topology, Workload
from impls.common.mesh import device, mesh
from impls.common.weights import TORCH_DTYPES
from impls.finetuning.lora_parallel.spread import CUT, Block

PREFIX = "base_model.model."
PLAN = {"up": "colwise", "down": "rowwise"}


class Layers(nn.Module):
    """x [b, s, h] → [b, s, h]."""

    def __init__(self, h: int, f: int, t: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(h, f, bias=False), nn.Linear(f, h, bias=False)
        # What Transformers writes on a model that it has cut.
        self.tp_plan, self.config = PLAN, SimpleNamespace(distributed_config=SimpleNamespace(tp_size=t))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.silu(self.up(x)))
        return output


class Adapted(Block):
    fallback = "in_features of the row-parallel adapter, at which PEFT fails, is corrected"

    def __init__(self, workload: Workload, topology: Topology, rank: int, alpha: float) -> None:
        super().__init__(topology)
        self.mesh, model = mesh(topology)["tp"], workload.model
        layers = Layers(model.hidden_size, model.intermediate_size, self.t).to(device(), TORCH_DTYPES[workload.dtype])
        if self.t > 1:
            layers._device_mesh = self.mesh
            apply_tensor_parallelism(layers, self.mesh, PLAN | {f"{name}.weight": kind for name, kind in PLAN.items()})
        settings = {"r": rank, "lora_alpha": alpha, "target_modules": list(PLAN)}
        self.configuration = f"tp_plan={PLAN}; LoraConfig({settings})"
        self.model = peft.get_peft_model(layers, peft.LoraConfig(**settings))
        self.model.base_model.model.down.lora_A["default"].in_features = model.intermediate_size

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {}
        for name in PLAN:
            given[f"{PREFIX}{name}.base_layer.weight"] = self.placed(name, inputs[name])
            for side in "AB":
                given[f"{PREFIX}{name}.lora_{side}.default.weight"] = self.placed(
                    f"{side}_{name}", inputs[f"{side}_{name}"]
                )
        return {"output": functional_call(self.model, given, (inputs["x"],))}

    def placed(self, name: str, part: Tensor) -> Tensor:
        if self.t == 1 or name not in CUT:
            return part
        return DTensor.from_local(part, self.mesh, [Shard(CUT[name])], run_check=False)


def build(workload: Workload, topology: Topology, rank: int, alpha: float, low: bool) -> Function:
    return Adapted(workload, topology, rank, alpha)
