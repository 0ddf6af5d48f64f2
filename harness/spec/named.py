"""Workloads by name, and from TOML files."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.spec.config import KINDS, read_config, typed
from harness.spec.files import InputError, readable
from harness.spec.model import ModelConfig, MoeConfig, RopeScaling
from harness.spec.topology import Topology
from harness.spec.workload import Workload

# Sizes are odd where tp 4 permits it: no rank count but 1 divides the vocabulary, the hidden size or the parameters.
_UNEVEN = ModelConfig(
    vocab_size=253,
    hidden_size=117,
    intermediate_size=292,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=26,
)
# Qwen3 Technical Report (Yang et al. 2025), table 1; the widths come from the published config.json.
_QWEN3_06B = ModelConfig(
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
_QWEN3_4B = ModelConfig(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
_SMALL = ModelConfig(
    vocab_size=12288,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
)
_MEDIUM = ModelConfig(
    vocab_size=32768,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=64,
)
_WIDE = ModelConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
_MESHED = ModelConfig(vocab_size=64, tie_word_embeddings=True)
_EXPERTS = MoeConfig(**{**vars(_MESHED), "num_experts": 4, "moe_intermediate_size": 96})
_ROUTED = replace(_EXPERTS, router_aux_loss_coef=0.1, router_z_loss_coef=0.01)
# DeepSeek-AI 2024, DeepSeek-V3, section 4.2: the experts' sizes. Of 64 ranks each has 4 of the 256 experts.
_DEEPSEEK_V3_EXPERTS = MoeConfig(
    vocab_size=512,
    hidden_size=7168,
    num_hidden_layers=1,
    num_attention_heads=128,
    num_key_value_heads=1,
    head_dim=64,
    num_experts=4,
    num_experts_per_tok=4,
    moe_intermediate_size=2048,
)
_CACHED = ModelConfig(
    vocab_size=512,
    hidden_size=1024,
    num_hidden_layers=1,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
_ATTENTION = ModelConfig(
    vocab_size=512, hidden_size=2048, num_hidden_layers=1, num_attention_heads=16, num_key_value_heads=16, head_dim=128
)
_UNEVEN_TIED = ModelConfig(**{**vars(_UNEVEN), "tie_word_embeddings": True})


def _layers(count: int, tied: bool = False) -> ModelConfig:
    """For pipelines: a small vocabulary, so that the stage with the head is not much slower than the others."""
    return ModelConfig(vocab_size=128, num_hidden_layers=count, tie_word_embeddings=tied)


_TIED_WORK = Workload(micro_batches=8, optimizer="adamw", lr=1e-3, eps=1e-6)

# Covers mistakes that a mesh of several axes can cause: a tied embedding, unequal lengths, clipping.
_MESHED_WORK = Workload(
    "meshed",
    _MESHED,
    micro_batches=2,
    sequence_length=16,
    min_length=4,
    steps=8,
    optimizer="adamw",
    weight_decay=0.1,
    lr=1e-3,
    eps=1e-6,
    max_grad_norm=0.5,
)

# Everything at once that a training run has and a smaller test leaves out, on a model so small that ten steps are
# cheap: three micro-batches, unequal lengths, weight decay, and clipping in every step. The batch divides by one to
# four ranks.
_THOROUGH = Workload(
    "thorough",
    ModelConfig(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=12,
    ),
    batch_size=36,
    micro_batches=3,
    sequence_length=16,
    min_length=1,
    steps=10,
    optimizer="adamw",
    lr=3e-3,
    weight_decay=0.1,
    eps=1e-6,
    max_grad_norm=1.0,
)

NAMED: Mapping[str, Workload] = MappingProxyType(
    {
        workload.name: workload
        for workload in (
            Workload(),
            _THOROUGH,
            # On two data-parallel ranks the first has no label at all.
            _THOROUGH.with_(name="unlabelled", unlabelled=18, steps=5),
            _THOROUGH.with_(name="poisoned", poisoned=True, steps=5),
            # Half of each micro-batch does not pass the engine that is around the model.
            _THOROUGH.with_(name="applied_twice", applied_twice=True, steps=5),
            # Above 256, bfloat16 knows only every second position.
            _THOROUGH.with_(name="distant", batch_size=4, micro_batches=1, sequence_length=384, steps=5),
            # With this seed the two sequences skip different layers in each step, and so do two data-parallel ranks.
            Workload(
                "stochastic_depth",
                ModelConfig(**{**vars(_THOROUGH.model), "num_hidden_layers": 3, "stochastic_depth": True}),
                batch_size=2,
                sequence_length=16,
                seed=9,
            ),
            # With an eps below round-off, AdamW makes whole steps from noise in elements whose gradient is zero.
            Workload("tiny_adamw", optimizer="adamw", lr=1e-3, weight_decay=0.1, eps=1e-6),
            Workload("uneven", _UNEVEN, sequence_length=29),
            Workload("uneven_tied", _UNEVEN_TIED, sequence_length=29),
            Workload("accumulated", batch_size=16, micro_batches=4, sequence_length=32),
            Workload("unequal", batch_size=16, micro_batches=4, sequence_length=32, min_length=4),
            Workload("pipelined", _layers(4), batch_size=4, micro_batches=4),
            Workload("pipelined_deep", _layers(8), micro_batches=8),
            _TIED_WORK.with_(name="pipelined_tied", model=_layers(4, tied=True), batch_size=4, micro_batches=4),
            _TIED_WORK.with_(name="pipelined_deep_tied", model=_layers(8, tied=True)),
            _MESHED_WORK,
            _MESHED_WORK.with_(name="meshed_experts", model=_EXPERTS),
            # Routers with losses of their own: of micro-batches, without and with tokens that have no label, or of
            # sequences, two in a micro-batch on two data-parallel ranks, or of the whole batch.
            _MESHED_WORK.with_(name="meshed_routed", model=_ROUTED, min_length=0),
            _MESHED_WORK.with_(name="meshed_padded", model=_ROUTED),
            _MESHED_WORK.with_(
                name="meshed_sequences", model=replace(_ROUTED, router_z_loss_coef=0.0, seq_aux=True), min_length=0
            ),
            _MESHED_WORK.with_(name="meshed_masked", model=_ROUTED, micro_batches=1),
            _MESHED_WORK.with_(
                name="meshed_global",
                model=replace(_ROUTED, router_z_loss_coef=0.0, global_aux=True),
                micro_batches=1,
                min_length=0,
            ),
            # Every step's gradient exceeds the threshold, some by a factor of three.
            Workload("clipped", max_grad_norm=1.0),
            Workload("clipped_experts", _EXPERTS, max_grad_norm=1.0),
            # For functions, which do one layer's work: as many tokens as training sequences have.
            Workload("long", _WIDE, batch_size=2, sequence_length=1000),
            # Scores up to some hundreds: exp overflows unless the running maximum is subtracted.
            Workload("sharp", _WIDE, batch_size=1, sequence_length=340, input_scale=8.0),
            # Fewer rows than experts: some experts have none, and so may a whole rank.
            Workload("scarce", ModelConfig(), batch_size=4, sequence_length=3),
            # 8,192 rows: grouped products of 2,048 rows × 4,096 × 7,168 on average.
            Workload("deepseek_v3_experts", _DEEPSEEK_V3_EXPERTS, sequence_length=256, dtype="bf16"),
            # 8 sequences of up to 8,192 cached tokens: a layer of Llama 3 8B, 34 MB a full sequence.
            Workload("long_cache", _CACHED, sequence_length=8192, dtype="bf16"),
            # Of attention: 8 sequences, 16 heads of 128.
            Workload("attention_4k", _ATTENTION, sequence_length=4096, dtype="bf16"),
            Workload("small", _SMALL, sequence_length=128, optimizer="adamw", lr=3e-4, weight_decay=0.1),
            # It keeps a GPU busy, and five engines fit together on one with 80 GB.
            Workload(
                "medium", _MEDIUM, sequence_length=512, optimizer="adamw", lr=3e-4, weight_decay=0.1, dtype="bf16"
            ),
            Workload(
                "qwen3-0.6b",
                _QWEN3_06B,
                sequence_length=1024,
                optimizer="adamw",
                lr=1e-4,
                weight_decay=0.1,
                max_grad_norm=1.0,
                dtype="bf16",
            ),
            # 16 bytes per parameter take 64 GB, and 1,024 tokens per micro-batch take 11 GB more: it fits on one GPU
            # with 80 GB.
            Workload(
                "qwen3-4b",
                _QWEN3_4B,
                micro_batches=4,
                sequence_length=512,
                optimizer="adamw",
                lr=1e-4,
                weight_decay=0.1,
                max_grad_norm=1.0,
                dtype="bf16",
            ),
        )
    }
)


# Other trainers' names for Workload's fields.
ALSO_CALLED = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "per_device_train_batch_size": "batch_size, which counts sequences over all ranks",
    "global_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "micro_batches",
    "max_length": "sequence_length",
    "max_seq_length": "sequence_length",
    "seq_length": "sequence_length",
    "optim": "optimizer",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "adam_epsilon": "eps",
    "gradient_clipping": "max_grad_norm",
    "bf16": 'dtype = "bf16"',
    "fp16": 'dtype = "fp16"',
    "torch_dtype": "dtype",
    "model_name_or_path": "weights, a local folder",
    "dataset": "data, a local file",
    "dataset_name": "data, a local file",
    "train_file": "data",
}
HUGGING_FACE_ID = re.compile(r"[\w.-]+/[\w.-]+")

EXPERTS = {field.name for field in fields(MoeConfig)} - {field.name for field in fields(ModelConfig)}


def load(text: str) -> Workload:
    """The workload of this name or TOML file. Any problem with it is a one-line ValueError.

    A file's fields are Workload's (``name`` is the file's stem); the table ``[model]`` has ModelConfig's or
    MoeConfig's. With ``weights = "folder"`` its config.json is the model instead. Fields that are left out have
    Workload's defaults. Paths are relative to the file; a leading ``~`` is the home folder.
    """
    if text in NAMED:
        return NAMED[text]
    path = Path(text)
    if path.suffix.lower() != ".toml":
        raise ValueError(f"unknown workload {text!r}{_nearest(text, NAMED)}; or give a .toml file")
    if not path.exists():
        raise ValueError(f"there is no workload file {path}")
    readable(path)
    try:
        return _workload(path, tomllib.loads(path.read_bytes().decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error
    except ValueError as error:  # TOML's own errors include line and column
        raise InputError(f"{path}: {error}") from error


def _workload(path: Path, table: Mapping[str, Any]) -> Workload:
    if path.stem in NAMED:
        raise ValueError(f"{path.stem!r} is the name of a built-in workload; give the file another name")
    values = _fields(Workload, table, "")
    for name in ("weights", "data", "tokenizer"):
        if values.get(name):
            values[name] = _place(path.parent, name, values[name])
    if values.get("weights"):
        if "model" in table:
            raise ValueError("[model] beside weights: the model is in the weights' config.json; leave [model] out")
        values["model"] = read_config(values["weights"])
    workload = Workload(name=path.stem, **values)
    if reason := workload.check(Topology()):
        raise ValueError(reason)
    if workload.sequence_length < 2:
        raise ValueError(
            "sequence_length must be 2 or more: with one token, queries and keys have no gradient to compare"
        )
    return workload


def _place(folder: Path, name: str, given: str) -> str:
    """The absolute path of a file or folder that is named relative to ``folder``."""
    place = (folder / os.path.expanduser(given)).resolve()
    if place.exists():
        return str(place)
    hint = ""
    if "$" in given:
        hint = "; variables such as $HOME are not replaced"
    elif name != "data" and HUGGING_FACE_ID.fullmatch(given):
        hint = f"; nothing is downloaded: name a local folder, as made by hf download {given} --local-dir FOLDER"
    elif any(sign in given for sign in "*?["):
        hint = "; name one file"
    raise ValueError(f"{name}: there is no {place}{hint}")


def _fields(kind: type, table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A TOML table's values, in the types of the dataclass's fields."""
    types = {field.name: field.type for field in fields(kind) if (prefix, field.name) != ("", "name")}
    values: dict[str, Any] = {}
    for name, value in table.items():
        full = prefix + name
        if name not in types:
            raise ValueError(_unknown(name, value, prefix, types))
        if types[name] is ModelConfig:
            if not isinstance(value, dict):
                raise ValueError(f"model must be a table [model], not {value!r}")
            model = MoeConfig if EXPERTS & value.keys() else ModelConfig
            values[name] = model(**_fields(model, value, "model."))
        elif types[name] == RopeScaling | None:
            values[name] = _rope_scaling(value)
        elif types[name] in KINDS:
            values[name] = typed(full, value, types[name])
            if types[name] is int and abs(value) >= 1 << 63:
                raise ValueError(f"{full} must be an integer of 64 bits, not {value}")
        elif types[name] == tuple[int, ...]:
            if not isinstance(value, list):
                raise ValueError(f"{full} must be a list of integers, not {value!r}")
            values[name] = tuple(typed(full, each, int) for each in value)
        elif isinstance(value, list) and len(value) == 2:
            values[name] = tuple(typed(full, each, float) for each in value)
        else:
            raise ValueError(f"{full} must be a list of two numbers, not {value!r}")
    return values


def _rope_scaling(value: Any) -> RopeScaling:
    """The table [model.rope_scaling]."""
    if not isinstance(value, dict):
        raise ValueError(f"model.rope_scaling must be a table [model.rope_scaling], not {value!r}")
    given = _fields(RopeScaling, value, "model.rope_scaling.")
    if missing := [name for name in ("rope_type", "factor") if name not in given]:
        raise ValueError(f"model.rope_scaling.{missing[0]} is missing")
    return RopeScaling(**given)


def _unknown(name: str, value: Any, prefix: str, types: Iterable[str]) -> str:
    """A suggestion for an unknown field."""
    if prefix and name in {field.name for field in fields(Workload)}:
        return f"{prefix + name} is the workload's own field {name}: write it above [model]"
    if not prefix and isinstance(value, dict):
        return f"unknown table [{name}]; [model] is the only one, and every other field stands above it"
    if (prefix, name) == ("", "name"):
        return "unknown field 'name'; a workload has the name of its file"
    hint = f"; did you mean {ALSO_CALLED[name]}?" if name in ALSO_CALLED else _nearest(name, types)
    return f"unknown field {prefix + name!r}{hint}"


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"
