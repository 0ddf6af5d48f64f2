"""Qwen3's ``config.json``, as Hugging Face's folders hold it, to and from :class:`ModelConfig`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from harness.spec.workload import ModelConfig, MoeConfig

KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def typed(name: str, value: Any, kind: Any) -> Any:
    """``value`` as ``kind`` (a key of KINDS); an integer is a number too. Else a ValueError that bears ``name``."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {KINDS[kind]}, not {value!r}")
    return value


def read_config(folder: str | Path) -> ModelConfig:
    """The model in a Hugging Face folder. ValueError if it is not a Qwen3 decoder, or has parts that ours has not.

    RoPE's base is ``rope_theta`` up to Transformers 4 and inside ``rope_parameters`` from 5 on; both are read.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"there is no {path}: weights must name a Hugging Face folder with config.json and safetensors"
        )
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if model_type != "qwen3":
        raise ValueError(f"{path}: model_type {model_type!r} is not supported; only the dense 'qwen3' is")
    if found := next(_unsupported(raw), ""):
        raise ValueError(f"{path}: {found} is not supported")
    given = {"tie_word_embeddings": False, **raw, **_rope(raw)}
    try:
        if missing := [field.name for field in fields(ModelConfig) if field.name not in given]:
            raise ValueError(f"{', '.join(missing)} missing")
        return ModelConfig(
            **{field.name: typed(field.name, given[field.name], field.type) for field in fields(ModelConfig)}
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config_json(config: ModelConfig, dtype: str) -> str:
    """``config.json`` for Transformers 4 and 5; ``dtype`` is torch's name of the stored type, such as "bfloat16".
    ValueError of a model with experts: their folders are neither written nor read."""
    if isinstance(config, MoeConfig):
        raise ValueError("a model with experts is not written as a Hugging Face folder; only a dense one is")
    fixed = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "max_position_embeddings": 40960,  # Qwen3's; it bounds generation and shapes no weight
        "torch_dtype": dtype,
    }
    return json.dumps({**fixed, **asdict(config)}, indent=2) + "\n"


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _unsupported(raw: Mapping[str, Any]) -> Iterator[str]:
    """What in this config changes the computation and is not in our decoder."""
    for name, ours in (("hidden_act", "silu"), ("attention_bias", False), ("attention_dropout", 0.0)):
        if raw.get(name, ours) != ours:
            yield f"{name} {raw[name]!r}"
    if raw.get("quantization_config"):
        yield "quantization_config"
    kind = _rope(raw).get("rope_type", _rope(raw).get("type", "default"))
    if kind != "default":
        yield f"RoPE scaling {kind!r}"
    if layers := raw.get("layer_types"):
        if others := sorted(set(layers) - {"full_attention"}):
            yield f"layer_types {others[0]!r}"
    elif raw.get("use_sliding_window") and raw.get("sliding_window"):
        yield f"sliding_window {raw['sliding_window']!r}"
