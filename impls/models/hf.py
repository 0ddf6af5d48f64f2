"""Hugging Face folders: config.json and safetensors, read and written without Transformers."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.spec import ModelConfig
from harness.spec.qwen3 import config_json, read_config

__all__ = ["read_config", "read_weights", "write_folder"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def read_weights(folder: str | Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and float32 CPU tensor of each parameter, in the order of ``config.shapes()``, one at a time.

    Names and shapes are checked before the first tensor is read; a ValueError names the tensor, what was found and
    what was expected. Some published tied models store the head all the same: it must then equal the embedding.
    """
    with ExitStack() as stack:
        files = {name: stack.enter_context(_open(Path(folder) / name)) for name in _shards(Path(folder))}
        home = {name: file for file in files.values() for name in file.keys()}  # noqa: SIM118
        expected = dict(config.shapes())
        for name, shape in expected.items():
            if name not in home:
                close = get_close_matches(name, list(home), n=1)
                raise ValueError(f"{folder} has no tensor {name}" + (f"; the nearest is {close[0]}" if close else ""))
            found = tuple(home[name].get_slice(name).get_shape())
            if found != shape:
                raise ValueError(f"{folder}: {name} has shape {list(found)}, expected {list(shape)}")
        spare = home.keys() - expected.keys()
        if config.tie_word_embeddings and HEAD in spare:
            if not torch.equal(home[HEAD].get_tensor(HEAD), home[EMBEDDING].get_tensor(EMBEDDING)):
                raise ValueError(f"{folder}: tie_word_embeddings is true, yet {HEAD} differs from {EMBEDDING}")
            spare -= {HEAD}
        if spare:
            raise ValueError(f"{folder} has tensors that this model has not: {', '.join(sorted(spare)[:3])}")
        for name in expected:
            yield name, home[name].get_tensor(name).float()


def write_folder(
    folder: str | Path,
    config: ModelConfig,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that ``Qwen3ForCausalLM.from_pretrained`` loads, the weights rounded to ``dtype``.

    In the order of ``config.shapes()`` no more than one shard is held in memory. ValueError if the folder holds
    weights already, or a tensor is unknown, missing, repeated or of another shape.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if old := sorted(folder.glob("*.safetensors*")):
        raise ValueError(f"{folder} holds weights already ({old[0].name}); choose an empty folder")
    shards = _plan(config, dtype.itemsize, max_shard_bytes)
    expected, home = dict(config.shapes()), {name: file for file, names in shards.items() for name in names}
    waiting: dict[str, dict[str, Tensor]] = {file: {} for file in shards}
    seen: set[str] = set()
    for name, tensor in weights:
        if name not in expected or name in seen:
            raise ValueError(f"tensor {name} is {'given twice' if name in seen else 'not one of this model'}")
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}")
        seen.add(name)
        shard = waiting[home[name]]
        # A copy: the caller may gather every tensor into the same buffer.
        shard[name] = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        if len(shard) == len(shards[home[name]]):
            save_file(waiting.pop(home[name]), folder / home[name], metadata={"format": "pt"})
    if missing := [name for name in expected if name not in seen]:
        raise ValueError(f"no tensor given for {', '.join(missing[:3])}")
    if len(shards) > 1:
        total = sum(prod(shape) for shape in expected.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": home}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(config_json(config, str(dtype).removeprefix("torch.")), encoding="utf-8")


def _shards(folder: Path) -> list[str]:
    """The names of the weight files, by Transformers' own precedence: the single file first."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if not (folder / INDEX).is_file():
        pickled = any(folder.glob("*.bin"))
        remedy = "load it with Transformers and save_pretrained() it" if pickled else "download it whole"
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}{' but .bin files' if pickled else ''}: {remedy}")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is not an index of shards: {error!r}") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(missing)}, named in {INDEX}: download it whole")
    return names


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or was cut short: {error}") from error


def _plan(config: ModelConfig, element_size: int, max_shard_bytes: int) -> dict[str, list[str]]:
    """File → names of its tensors: filled in order, a larger tensor alone."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in config.shapes():
        size = prod(shape) * element_size
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}
