"""PEFT's ``init_lora_weights="pissa"`` and ``"olora"`` on one layer."""

from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn

from harness.spec import Function, Topology, Unsupported, Workload
from impls.finetuning.lora_init.problem import outputs


def build(workload: Workload, topology: Topology, rank: int, alpha: float, start: str) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("PEFT's PiSSA and OLoRA refuse a base in float64")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=start, target_modules=["0"])

    def divide(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        whole = inputs["W"]  # [d, k]
        layer = nn.Linear(whole.shape[1], whole.shape[0], bias=False, device=whole.device, dtype=whole.dtype)
        with torch.no_grad():
            layer.weight.copy_(whole)
        model = peft.get_peft_model(nn.Sequential(layer), config)
        adapted = model.base_model.model[0]
        a, b = adapted.lora_A["default"].weight.detach(), adapted.lora_B["default"].weight.detach()
        return outputs(a, b, adapted.scaling["default"], adapted.base_layer.weight.detach(), inputs["x"])

    return divide
