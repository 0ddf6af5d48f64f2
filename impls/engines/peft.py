"""PEFT's adapters on a model with canonical names.

PEFT keeps adapters in float32 above a base in bfloat16 (``autocast_adapter_dtype``, its default)."""

from collections.abc import Iterable, Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn

PREFIX = "base_model.model."


def lora(model: nn.Module, settings: Mapping[str, Any], start: Iterable[tuple[str, Tensor]]) -> peft.PeftModel:
    """The model with LoraConfig's adapters, which have the given start."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    weights = trained(wrapped)
    with torch.no_grad():
        for name, tensor in start:
            weights.pop(name).copy_(tensor)
    if weights:
        raise ValueError(f"PEFT trains {', '.join(weights)} too")
    return wrapped


def canonical(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".default.", ".").replace(".base_layer.", ".")


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}


def base(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapted matrices."""
    return {canonical(name): p for name, p in model.named_parameters() if ".base_layer." in name}
