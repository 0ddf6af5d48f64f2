"""Converts ``config.json`` of Hugging Face's folders of Qwen3, Qwen2.5 and Llama to and from :class:`ModelConfig`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.spec.files import InputError, readable
from harness.spec.model import ModelConfig, MoeConfig, RopeScaling

KINDS = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Family:
    """One ``model_type``. ``always``: what every such model has; ``fixed``: the only accepted values of fields that
    matter here alone; ``windows``: whether layers may have a sliding window."""

    architecture: str
    always: Mapping[str, bool] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    windows: bool = True


FAMILIES: Mapping[str, Family] = {
    "qwen3": Family("Qwen3ForCausalLM"),
    "qwen2": Family("Qwen2ForCausalLM", {"qk_norm": False, "qkv_bias": True}),
    "llama": Family("LlamaForCausalLM", {"qk_norm": False}, {"pretraining_tp": 1, "sliding_window": None}, False),
}
# Fields that change the computation and that our decoder does not have, each with the only accepted value.
FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "auto_map": None,
    "quantization_config": None,
    "compression_config": None,
}
SCALED = {field.name for field in fields(RopeScaling)}
ROPE = {  # the parameters that each type of RoPE accepts, besides rope_theta and its own name
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": SCALED - {"rope_type", "low_freq_factor", "high_freq_factor"},
}
NAMES = {"rope_theta", "rope_type", "type"}
LENGTH = "original_max_position_embeddings"
REQUIRED = ("factor", LENGTH, "low_freq_factor", "high_freq_factor")  # of the types that accept them
# Transformers' defaults of sliding_window and max_window_layers, and of rope_theta, which older Llamas leave out.
WINDOW, WINDOW_FROM, THETA = 4096, 28, 10000.0
SLIDING, FULL = "sliding_attention", "full_attention"

# The fields that Hugging Face's config has under the same names.
OWN = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)
TYPES = {each.name: each.type for each in fields(ModelConfig)}


def typed(name: str, value: Any, kind: Any) -> Any:
    """Returns ``value`` as ``kind`` (a key of KINDS); an integer is also a number. Otherwise raises a ValueError that
    includes ``name``."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} must be {KINDS[kind]}, not {value!r}")
    return value


def read_config(folder: str | Path) -> ModelConfig:
    """The model in a Hugging Face folder. Raises InputError if it is none of the families, or has parts that our
    decoder does not.

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


def family(config: ModelConfig) -> str:
    """The ``model_type`` of a model; a ValueError if no family has its mix of features."""
    biases = config.qkv_bias, config.o_bias, config.mlp_bias
    attention = config.qkv_bias == config.o_bias
    if config.qk_norm and attention and not config.mlp_bias:
        return "qwen3"
    if not config.qk_norm and biases == (True, False, False):
        return "qwen2"
    if not config.qk_norm and attention and not config.sliding_layers:
        return "llama"
    raise ValueError("neither Qwen3, Qwen2 nor Llama has this mix of QK-norm, biases and sliding windows")


def described(config: ModelConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config that say what the model computes, in the spelling that Transformers 4 and 5
    read. Raises a ValueError for a model with experts: such folders are neither written nor read."""
    if isinstance(config, MoeConfig):
        raise ValueError("a model with experts cannot be written as a Hugging Face folder; only a dense model can")
    kind = family(config)
    found: dict[str, Any] = {"model_type": kind, "hidden_act": "silu", "attention_dropout": 0.0}
    if kind != "qwen2":
        found["attention_bias"] = config.qkv_bias
    if FAMILIES[kind].windows:
        found["use_sliding_window"] = bool(config.sliding_layers)
    else:
        found["mlp_bias"] = config.mlp_bias
    if config.sliding_layers:
        windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
        found |= {
            "sliding_window": config.sliding_window,
            "max_window_layers": min(config.sliding_layers),
            "layer_types": [SLIDING if window else FULL for window in windows],
        }
    if config.rope_scaling:
        accepted = ROPE[config.rope_scaling.rope_type] | {"rope_type"}
        given = {name: value for name, value in vars(config.rope_scaling).items() if name in accepted}
        if not config.rope_scaling.attention_factor:
            given.pop("attention_factor", None)  # it is computed
        found["rope_scaling"] = given
    return found | {name: getattr(config, name) for name in OWN}


def config_json(config: ModelConfig, dtype: str) -> str:
    """``config.json`` for Transformers 4 and 5; ``dtype`` is torch's name of the stored type, such as "bfloat16"."""
    found = described(config)
    fixed = {
        "architectures": [FAMILIES[found["model_type"]].architecture],
        "max_position_embeddings": 40960,  # Qwen3's value; it limits generation and shapes no weight
        "torch_dtype": dtype,
    }
    return json.dumps({**fixed, **found}, indent=2) + "\n"


def _model(raw: Any) -> ModelConfig:
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; only dense {', '.join(FAMILIES)} are")
    kind = FAMILIES[model_type]
    if found := next(_unsupported(raw, kind), ""):
        raise ValueError(f"{found} is not supported")
    given = {"tie_word_embeddings": False, **_left_out(raw, model_type), **_rope(raw)[1]}
    if missing := [name for name in OWN if name not in given]:
        raise ValueError(f"{', '.join(missing)} missing")
    sizes = {name: typed(name, given[name], TYPES[name]) for name in OWN}
    window, layers = _windows(raw, sizes["num_hidden_layers"]) if kind.windows else (0, ())
    return ModelConfig(
        **sizes, **_biases(raw, model_type), rope_scaling=_scaling(raw), sliding_window=window, sliding_layers=layers
    )


def _left_out(raw: Mapping[str, Any], model_type: str) -> Mapping[str, Any]:
    """The fields of ``raw``, with those that Qwen2.5's and Llama's folders leave out, or give as null."""
    if model_type == "qwen3":
        return raw
    given = {**({} if raw.get("rope_parameters") else {"rope_theta": THETA}), **raw}
    if {"num_attention_heads", "hidden_size"} <= given.keys():
        heads, width = (typed(name, given[name], int) for name in ("num_attention_heads", "hidden_size"))
        if given.get("head_dim") is None:
            given["head_dim"] = width // max(heads, 1)
        if model_type == "llama" and given.get("num_key_value_heads") is None:
            given["num_key_value_heads"] = heads
    return given


def _biases(raw: Mapping[str, Any], model_type: str) -> dict[str, bool]:
    """QK-norm and biases: those that every model of the family has, and those of its config."""
    found = dict(FAMILIES[model_type].always)
    if model_type != "qwen2":
        found["qkv_bias"] = found["o_bias"] = typed("attention_bias", raw.get("attention_bias", False), bool)
    if model_type == "llama":
        found["mlp_bias"] = typed("mlp_bias", raw.get("mlp_bias", False), bool)
    return found


def _rope(raw: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The field that counts, and its content: if both are given, Transformers 5 puts ``rope_scaling`` in the place of
    ``rope_parameters``."""
    for name in ("rope_scaling", "rope_parameters"):
        if value := raw.get(name):
            if not isinstance(value, dict):
                raise ValueError(f"{name} must be a table, not {value!r}")
            return name, value
    return "", {}


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _scaling(raw: Mapping[str, Any]) -> RopeScaling | None:
    """A null is as good as a field left out. The length that the model was trained with may be beside the table, or be
    its only one."""
    name, rope = _rope(raw)
    kind = _rope_type(rope)
    if kind == "default":
        return None
    given = {field: value for field, value in rope.items() if field in ROPE[kind] and value is not None}
    if LENGTH in ROPE[kind]:
        lengths = (raw.get(LENGTH), given.get(LENGTH), raw.get("max_position_embeddings"))
        given[LENGTH] = next((length for length in lengths if length is not None), None)
    if missing := [
        field for field in ("factor", *sorted(ROPE[kind])) if field in REQUIRED and given.get(field) is None
    ]:
        raise ValueError(f"{name} of type {kind!r} has no {missing[0]}")
    types = {each.name: each.type for each in fields(RopeScaling)}
    return RopeScaling(kind, **{field: typed(f"{name}.{field}", value, types[field]) for field, value in given.items()})


def _windows(raw: Mapping[str, Any], layers: int) -> tuple[int, tuple[int, ...]]:
    """The sliding window and its layers. ``layer_types`` counts; without it, ``max_window_layers`` is the first."""
    used = raw.get("use_sliding_window") and raw.get("sliding_window", WINDOW) is not None
    if kinds := raw.get("layer_types"):
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise ValueError(f"layer_types must name each of the {layers} layers, not {kinds!r}")
        if others := [each for each in kinds if each not in (FULL, SLIDING)]:
            raise ValueError(f"layer_types {others[0]!r} is not supported")
        sliding = tuple(layer for layer, each in enumerate(kinds) if each == SLIDING)
        if sliding and not used:
            raise ValueError(f"layer_types {SLIDING!r} without use_sliding_window and sliding_window is not supported")
    elif used:
        full = typed("max_window_layers", raw.get("max_window_layers", WINDOW_FROM), int)
        sliding = tuple(range(max(full, 0), layers))
    else:
        sliding = ()
    return (typed("sliding_window", raw.get("sliding_window", WINDOW), int), sliding) if sliding else (0, ())


def _unsupported(raw: Mapping[str, Any], kind: Family) -> Iterator[str]:
    """The first setting of this config that changes the computation and that our decoder does not have."""
    architectures = raw.get("architectures")
    if architectures and architectures != [kind.architecture]:
        yield f"architectures {architectures!r}"
    name, rope = _rope(raw)
    scaling = _rope_type(rope)
    if not isinstance(scaling, str) or scaling not in ROPE:
        yield f"RoPE scaling {scaling!r}"
    for key, only in {**FIXED, **kind.fixed}.items():
        value = rope.get(key, raw.get(key, only))
        if value != only and not (only is None and not value):
            yield key if isinstance(value, dict) else f"{key} {value!r}"
    if spare := sorted(rope.keys() - NAMES - ROPE[scaling] - FIXED.keys()):
        yield f"the field {spare[0]!r} of {name}"
    if not kind.windows and (others := [each for each in raw.get("layer_types") or [] if each != FULL]):
        yield f"layer_types {others[0]!r}"
