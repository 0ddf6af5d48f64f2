"""The weight files of a Hugging Face folder: lists them, and checks by their headers that they belong to the model."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from safetensors import SafetensorError, safe_open

from harness.spec.files import InputError, one_line, readable
from harness.spec.model import ModelConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
STORED = ("F64", "F32", "F16", "BF16")  # narrower types have scales, which define their meaning


def tensor_files(folder: str | Path, config: ModelConfig) -> Mapping[str, Path]:
    """Tensor name → its file, for all tensors in the folder. No tensor is read, but every name, shape and type is
    checked; the InputError names the tensor, the type or shape found, and the expected one. A tied model's files may
    include the head."""
    found: dict[str, tuple[Path, list[int], str]] = {}
    for file in _shards(Path(folder)):
        found |= _header(file)
    for name, shape in config.shapes():
        if name not in found:
            close = get_close_matches(name, list(found), n=1)
            raise InputError(f"{folder} has no tensor {name}" + (f"; the nearest is {close[0]}" if close else ""))
        _, stored, dtype = found[name]
        if stored != list(shape):
            raise InputError(f"{folder}: {name} has shape {stored}, expected {list(shape)}")
        if dtype not in STORED:
            raise InputError(f"{folder}: {name} is stored as {dtype}; only {', '.join(STORED)} are read")
    spare = found.keys() - dict(config.shapes()).keys() - ({HEAD} if config.tie_word_embeddings else set())
    if spare:
        raise InputError(f"{folder} has tensors that this model does not have: {', '.join(sorted(spare)[:3])}")
    return {name: file for name, (file, _, _) in found.items()}


def _shards(folder: Path) -> list[Path]:
    """The weight files, in Transformers' own precedence: the single file first."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        others = [file.name for suffix in ("safetensors", "bin") for file in sorted(folder.glob(f"*.{suffix}"))]
        beside = f" but {others[0]}" if others else ""
        pickled = beside.endswith(".bin")
        remedy = "load it with Transformers and save it with save_pretrained()" if pickled else "download all of it"
        raise InputError(f"{folder} has neither {SINGLE} nor {INDEX}{beside}: {remedy}")
    readable(folder / INDEX)
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / INDEX} is not an index of shards: {error!r}") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(f"{folder} lacks {', '.join(missing)}, named in {INDEX}: download all of it")
    return [folder / name for name in names]


def _header(path: Path) -> dict[str, tuple[Path, list[int], str]]:
    """Tensor name → file, shape and type."""
    try:
        with safe_open(readable(path), framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (path, each.get_shape(), each.get_dtype()) for name, each in slices.items()}
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or was cut short: {one_line(error)}") from error
