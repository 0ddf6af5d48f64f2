"""Adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.spec import ModelConfig
from harness.spec.files import InputError
from impls.finetuning.lora.shapes import MAGNITUDE, TARGETS, adapters

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OURS = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rslora", "use_dora": "dora"}  # PEFT's names → a variant's
ABSENT: Mapping[str, Any] = {  # fields with a meaning that these adapters do not have → their neutral values
    "bias": "none",
    "fan_in_fan_out": False,
    "layers_to_transform": None,
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "exclude_modules": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
WHOLE = (True, False, None, "gaussian", "orthogonal")  # starts that leave the base as it is


def write_adapter(
    folder: str | Path, tensors: Mapping[str, Tensor], rank: int, alpha: float, rslora: bool = False, dora: bool = False
) -> None:
    """``tensors``: a trainer's ``parameters()``, in float32. PEFT's ``PeftModel.from_pretrained`` loads the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"rank": rank, "alpha": alpha, "rslora": rslora, "dora": dora}
    config = {"peft_type": "LORA", "target_modules": list(TARGETS), "lora_dropout": 0.0, "bias": "none"}
    config |= {theirs: fields[ours] for theirs, ours in OURS.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    save_file({_stored(name): tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)


def read_adapter(folder: str | Path, model: ModelConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A variant's arguments, and the adapters by canonical name in float32. An InputError names the file, and the field
    or tensor that does not fit this model."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type must be LORA")
    for field, neutral in ABSENT.items():
        if config.get(field, neutral) not in (neutral, None):
            raise InputError(f"{path}: {field} {config[field]!r} is not supported; it must be {neutral!r}")
    start = config.get("init_lora_weights")
    if start not in WHOLE:
        raise InputError(
            f"{path}: init_lora_weights {start!r} is not supported: that base has given up a part of itself, and with "
            "the whole one the adapter is wrong; save it with path_initial_model_for_weight_conversion"
        )
    targets = config.get("target_modules") or []
    if not isinstance(targets, list) or set(targets) != set(TARGETS):
        raise InputError(f"{path}: target_modules must be {', '.join(TARGETS)}, not {targets!r}")
    variant = {ours: config[theirs] for theirs, ours in OURS.items() if theirs in config}
    rank = variant.get("rank")
    smallest = min(min(shape) for _, shape in model.layer_shapes() if len(shape) == 2)
    alpha = variant.get("alpha")
    if not isinstance(alpha, int | float) or not 0 < alpha < inf:
        raise InputError(f"{path}: lora_alpha must be a positive number, not {alpha!r}")
    if not isinstance(rank, int) or not 0 < rank <= smallest:
        raise InputError(f"{path}: r must be from 1 to {smallest}, the smallest side of an adapted matrix, not {rank}")
    return variant, _tensors(Path(folder) / TENSORS, model, rank, bool(variant.get("dora")))


def _tensors(path: Path, model: ModelConfig, rank: int, dora: bool) -> dict[str, Tensor]:
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    found = {}
    for name, shape in adapters(model, rank, dora):
        tensor = stored.pop(_stored(name), None)
        if tensor is None:
            raise InputError(f"{path}: {_stored(name)} is missing; was it trained on another model?")
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {_stored(name)} has shape {list(tensor.shape)}, this model's is {list(shape)}")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {_stored(name)} holds NaN or an infinity")
        found[name] = tensor.float()
    if stored:
        raise InputError(f"{path}: {next(iter(stored))} is not one of this model's adapters")
    return found


def _stored(name: str) -> str:
    """PEFT stores DoRA's vector without ``.weight``."""
    return PREFIX + (name.removesuffix(".weight") if name.endswith(MAGNITUDE) else name)
