"""Hugging Face folders: config.json and safetensors, read and written without Transformers."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.spec import ModelConfig
from harness.spec.checkpoint import HEAD, INDEX, SINGLE, tensor_files
from harness.spec.config import config_json, read_config
from harness.spec.files import InputError

__all__ = ["read_config", "read_weights", "write_folder"]

EMBEDDING = "model.embed_tokens.weight"


def read_weights(folder: str | Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and float32 CPU tensor of each parameter, in the order of ``config.shapes()``, one at a time.

    Names and shapes are checked before the first tensor is read, and no weight may be NaN or infinite; an InputError
    names the tensor. Some published tied models also store the head: it must then equal the embedding.
    """
    home = tensor_files(folder, config)
    with ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in set(home.values())}
        if config.tie_word_embeddings and HEAD in home:
            head, embedding = (files[home[name]].get_tensor(name) for name in (HEAD, EMBEDDING))
            if not torch.equal(head, embedding):
                raise InputError(f"{folder}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}")
        for name, _ in config.shapes():
            tensor = files[home[name]].get_tensor(name).float()
            if not tensor.isfinite().all():
                raise InputError(f"{folder}: {name} holds NaN or an infinity")
            yield name, tensor


def write_folder(
    folder: str | Path,
    config: ModelConfig,
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that ``Qwen3ForCausalLM.from_pretrained`` loads, the weights rounded to ``dtype``.

    If tensors come in the order of ``config.shapes()``, at most one shard is held in memory. Raises ValueError if the
    folder already holds weights, or a tensor is unknown, missing, repeated or of another shape.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if old := sorted(folder.glob("*.safetensors*")):
        raise ValueError(f"{folder} already holds weights ({old[0].name}); choose an empty folder")
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


def _plan(config: ModelConfig, element_size: int, max_shard_bytes: int) -> dict[str, list[str]]:
    """File → names of its tensors: files are filled in order; a larger tensor has a file of its own."""
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
