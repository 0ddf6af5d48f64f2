"""Our decoder in PEFT's LoraConfig, for the adapters of this topic.

PEFT keeps adapters in float32 above a base in bfloat16 (``autocast_adapter_dtype``, its default)."""

import peft
import torch
from torch import nn

from harness.spec import Workload
from impls.common.experts import without_experts
from impls.common.weights import build_model
from impls.finetuning.lora.plain import initial
from impls.finetuning.lora.shapes import TARGETS

PREFIX = "base_model.model."


def settings(
    rank: int, alpha: float, rslora: bool = False, dora: bool = False, ratio: float = 1.0
) -> dict[str, object]:
    """The arguments of LoraConfig; ``ratio`` is the optimizer's affair."""
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "use_dora": dora,
        "target_modules": list(TARGETS),
        "lora_dropout": 0.0,
    }


def adapted(workload: Workload, rank: int, dora: bool = False, **variant: float) -> peft.PeftModel:
    """The decoder with PEFT's adapters, which have the common start."""
    without_experts(workload, "adapters are set up here with")
    config = peft.LoraConfig(**settings(rank=rank, dora=dora, **variant))
    model = peft.get_peft_model(build_model(workload), config)
    weights = trained(model)
    with torch.no_grad():
        for name, tensor in initial(workload, rank, dora):
            weights.pop(name).copy_(tensor)
    if weights:
        raise ValueError(f"PEFT trains {', '.join(weights)} too")
    return model


def canonical(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".default.", ".").replace(".base_layer.", ".")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}


def base(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapted matrices."""
    return {canonical(name): p for name, p in model.named_parameters() if ".base_layer." in name}
