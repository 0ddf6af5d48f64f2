"""Adapters in Diffusers' format: a folder with pytorch_lora_weights.safetensors, whose metadata hold PEFT's config.

``pipeline.load_lora_weights`` and ``unet.load_lora_adapter(folder, prefix="unet")`` load it. Without metadata they take
α to be r, whatever it was in training.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.spec.files import InputError
from impls.finetuning.diffusion_lora.blocks import Sizes
from impls.finetuning.diffusion_lora.shapes import TARGETS, adapters
from impls.finetuning.lora.shapes import A, B

NAME, METADATA, PREFIX = "pytorch_lora_weights.safetensors", "lora_adapter_metadata", "unet."
OLDER = {".lora.down.weight": f".{A}", ".lora.up.weight": f".{B}"}  # as save_lora_weights calls them
NEUTRAL = {"use_rslora": False, "use_dora": False, "alpha_pattern": {}, "rank_pattern": {}, "bias": "none"}


def write_adapter(folder: str | Path, tensors: Mapping[str, Tensor], rank: int, alpha: float) -> None:
    """``tensors``: A and B of a trainer, or their averages, by canonical name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(TARGETS), **NEUTRAL}
    metadata = {"format": "pt", METADATA: json.dumps({PREFIX + field: value for field, value in config.items()})}
    save_file({PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}, folder / NAME, metadata)


def read_adapter(
    folder: str | Path, sizes: Sizes, alpha: float | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The variant's ``rank`` and ``alpha``, and A and B by canonical name in float32. ``alpha`` must be given for a
    file that does not say it. An InputError names the file, and the field or tensor that does not fit this UNet."""
    path = Path(folder) / NAME
    try:
        with safe_open(path, "pt") as file:
            stored = {_canonical(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    config = {field.removeprefix(PREFIX): value for field, value in told.items()}
    for field, neutral in NEUTRAL.items():
        if (config.get(field) or neutral) != neutral:
            raise InputError(f"{path}: {field} {config[field]!r} is not supported; it must be {neutral!r}")
    alpha = config.get("lora_alpha", alpha)
    if alpha is None:
        raise InputError(f"{path}: lora_alpha is missing; say which alpha it was trained with")
    ranks = {tensor.shape[0] for name, tensor in stored.items() if name.endswith(A)}
    if len(ranks) != 1 or 0 in ranks:
        raise InputError(f"{path}: the matrices A must have one rank of 1 or more, not {sorted(ranks)}")
    (rank,) = ranks
    if config.get("r", rank) != rank:
        raise InputError(f"{path}: r is {config['r']}, the matrices have rank {rank}")
    found = {}
    for name, shape in adapters(sizes, rank):
        tensor = stored.pop(name, None)
        if tensor is None:
            raise InputError(f"{path}: {name} is missing; was it trained on another model?")
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {name} has shape {list(tensor.shape)}, this model's is {list(shape)}")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or an infinity")
        found[name] = tensor.float()
    if stored:
        raise InputError(f"{path}: {next(iter(stored))} is not one of this model's adapters")
    return {"rank": rank, "alpha": alpha}, found


def _canonical(name: str) -> str:
    name = name.removeprefix(PREFIX)
    for theirs, ours in OLDER.items():
        name = name.replace(theirs, ours)
    return name
