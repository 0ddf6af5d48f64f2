"""PEFT's ``init_lora_weights="loftq"`` on one layer. It rounds by bitsandbytes on the device "cuda", which it names;
without a GPU that is the CPU here, as bitsandbytes rounds there too."""

from collections.abc import Mapping
from typing import Any
from unittest import mock

import peft
import torch
from torch import Tensor, nn

from harness.spec import Function, Topology, Unsupported, Workload
from impls.finetuning.lora_init.problem import outputs

BITS = 4


def on_cpu(honest: Any) -> Any:
    """``Tensor.to`` with "cpu" for "cuda"."""

    def to(self: Tensor, *places: Any, **options: Any) -> Tensor:
        if str(options.get("device", "")).startswith("cuda"):
            options["device"] = "cpu"
        moved: Tensor = honest(
            self, *("cpu" if str(place).startswith("cuda") else place for place in places), **options
        )
        return moved

    return to


class Loftq:
    fallback = "" if torch.cuda.is_available() else 'its device "cuda" is the CPU'

    def __init__(self, rank: int, alpha: float, steps: int) -> None:
        self.rank, self.alpha, self.steps = rank, alpha, steps

    def start(self, whole: Tensor, steps: int) -> Any:
        """PEFT's layer after this number of steps."""
        quantised = peft.LoftQConfig(loftq_bits=BITS, loftq_iter=steps)
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, init_lora_weights="loftq", loftq_config=quantised, target_modules=["0"]
        )
        layer = nn.Linear(whole.shape[1], whole.shape[0], bias=False, device=whole.device, dtype=whole.dtype)
        with torch.no_grad():
            layer.weight.copy_(whole)
        if whole.is_cuda:
            return peft.get_peft_model(nn.Sequential(layer), config).base_model.model[0]
        with mock.patch.object(Tensor, "to", on_cpu(Tensor.to)):
            return peft.get_peft_model(nn.Sequential(layer), config).base_model.model[0]

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        whole, errors = inputs["W"], []  # [d, k]
        for steps in range(1, self.steps + 1):
            adapted = self.start(whole, steps)
            a, b = adapted.lora_A["default"].weight.detach(), adapted.lora_B["default"].weight.detach()
            stored, s = adapted.base_layer.weight.detach(), adapted.scaling["default"]
            errors.append((whole - stored - s * b @ a).norm())
            if steps == 1:
                errors.insert(0, (whole - stored).norm())
        return {"errors": torch.stack(errors)} if self.steps > 1 else outputs(a, b, s, stored, inputs["x"])


def build(workload: Workload, topology: Topology, rank: int, alpha: float, start: str, steps: int = 1) -> Function:
    if workload.dtype == "fp64":
        raise Unsupported("bitsandbytes stores float32, float16 and bfloat16")
    return Loftq(rank, alpha, steps)
