"""Converts Qwen3's ``config.json``, from Hugging Face's folders, to and from :class:`ModelConfig`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.spec.files import InputError, readable
from harness.spec.workload import ModelConfig, MoeConfig

KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
ARCHITECTURE = "Qwen3ForCausalLM"
# Fields that change the computation and that our decoder does not have, each with the only accepted value.
FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "auto_map": None,
    "quantization_config": None,
    "compression_config": None,
}
ROPE = {"rope_theta", "rope_type", "type"}  # accepted RoPE parameters, without scaling
WINDOW, WINDOW_FROM = 4096, 28  # Transformers' defaults of sliding_window and max_window_layers

# The fields of Hugging Face's config.
OWN = tuple(field for field in fields(ModelConfig) if field.name not in ("dropout", "stochastic_depth"))


def typed(name: str, value: Any, kind: Any) -> Any:
    """Returns ``value`` as ``kind`` (a key of KINDS); an integer is also a number. Otherwise raises a ValueError that
    includes ``name``."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {KINDS[kind]}, not {value!r}")
    return value


def read_config(folder: str | Path) -> ModelConfig:
    """The model in a Hugging Face folder. Raises InputError if it is not a Qwen3 decoder, or has parts that ours does
    not.

    RoPE's base is ``rope_theta`` up to Transformers 4 and inside ``rope_parameters`` from 5 on; both are read.
    """
    path = Path(folder) / "config.json"
    if Path(folder).is_file():
        raise InputError(f"{folder} is a file; weights must name the Hugging Face folder that holds it")
    if not path.exists():
        if (path.parent / "adapter_config.json").exists():
            raise InputError(f"{folder} holds only an adapter: merge it into its base model, and name that folder")
        raise InputError(
            f"there is no {path}: weights must name a Hugging Face folder with config.json and safetensors"
        )
    readable(path)
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    try:
        return _model(raw)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def config_json(config: ModelConfig, dtype: str) -> str:
    """``config.json`` for Transformers 4 and 5; ``dtype`` is torch's name of the stored type, such as "bfloat16".
    Raises a ValueError for a model with experts: such folders are neither written nor read."""
    if isinstance(config, MoeConfig):
        raise ValueError("a model with experts cannot be written as a Hugging Face folder; only a dense model can")
    fixed = {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "max_position_embeddings": 40960,  # Qwen3's value; it limits generation and shapes no weight
        "torch_dtype": dtype,
    }
    return json.dumps({**fixed, **{field.name: getattr(config, field.name) for field in OWN}}, indent=2) + "\n"


def _model(raw: Any) -> ModelConfig:
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if model_type != "qwen3":
        raise ValueError(f"model_type {model_type!r} is not supported; only the dense 'qwen3' is")
    if found := next(_unsupported(raw), ""):
        raise ValueError(f"{found} is not supported")
    given = {"tie_word_embeddings": False, **raw, **_rope(raw)[1]}
    if missing := [field.name for field in OWN if field.name not in given]:
        raise ValueError(f"{', '.join(missing)} missing")
    return ModelConfig(**{field.name: typed(field.name, given[field.name], field.type) for field in OWN})


def _rope(raw: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The field that counts, and its content: if both are given, Transformers 5 puts ``rope_scaling`` in the place of
    ``rope_parameters``."""
    for name in ("rope_scaling", "rope_parameters"):
        if value := raw.get(name):
            if not isinstance(value, dict):
                raise ValueError(f"{name} must be a table, not {value!r}")
            return name, value
    return "", {}


def _unsupported(raw: Mapping[str, Any]) -> Iterator[str]:
    """The first setting of this config that changes the computation and that our decoder does not have."""
    architectures = raw.get("architectures")
    if architectures and architectures != [ARCHITECTURE]:
        yield f"architectures {architectures!r}"
    name, rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        yield f"RoPE scaling {kind!r}"
    for key, only in FIXED.items():
        value = rope.get(key, raw.get(key, only))
        if value != only and not (only is None and not value):
            yield key if isinstance(value, dict) else f"{key} {value!r}"
    if spare := sorted(rope.keys() - ROPE - FIXED.keys()):
        yield f"the field {spare[0]!r} of {name}"
    layers = typed("num_hidden_layers", raw.get("num_hidden_layers", 0), int)
    if kinds := raw.get("layer_types"):
        if not isinstance(kinds, list) or (layers and len(kinds) != layers):
            raise ValueError(f"layer_types must name each of the {layers} layers, not {kinds!r}")
        if others := [each for each in kinds if each != "full_attention"]:
            yield f"layer_types {others[0]!r}"
    elif raw.get("use_sliding_window") and raw.get("sliding_window", WINDOW) is not None:
        full = typed("max_window_layers", raw.get("max_window_layers", WINDOW_FROM), int)
        if full < layers:
            yield f"sliding_window {raw.get('sliding_window', WINDOW)!r}"
