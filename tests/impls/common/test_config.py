"""Every form of config.json: our decoder computes the same as Transformers, or the unsupported field is named."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.spec.files import InputError
from harness.spec.named import NAMED
from impls.common.decoder import Decoder
from impls.common.hf import read_config, read_weights
from tests.impls.common.peer import exact

SMALL = {  # the format of Transformers 4
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 96,
}
PUBLISHED = SMALL | {
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
}
DEFAULT = {"rope_type": "default"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": ..., "attention_bias": ...}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": ...,
    "max_window_layers": ...,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "use_sliding_window": ...,
}


def five(**rope: Any) -> dict[str, Any]:
    """The differences of Transformers 5's format."""
    return {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": rope}


def write(folder: Path, config: dict[str, Any], encoding: str = "utf-8") -> Path:
    """``...`` removes a field."""
    kept = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept), encoding=encoding)
    return folder


MIXED = ["sliding_attention", "full_attention"]
SAME: dict[str, dict[str, Any]] = {
    "transformers_4": {},
    "transformers_5": five(**DEFAULT, rope_theta=1e5),
    "null_theta_beside": five(**DEFAULT, rope_theta=1e5) | {"rope_theta": None},
    "other_theta_beside": five(**DEFAULT, rope_theta=1e5) | {"rope_theta": 1e3},
    "theta_outside_alone": five(**DEFAULT) | {"rope_theta": 1e3},
    "scaling_takes_the_place": five(**DEFAULT, rope_theta=1e6) | {"rope_scaling": DEFAULT | {"rope_theta": 1e2}},
    "scaling_takes_the_theta_outside": five(**YARN, rope_theta=1e6) | {"rope_scaling": DEFAULT, "rope_theta": 1e2},
    "old_key": {"rope_scaling": {"type": "default"}},
    "empty_scaling": five(**DEFAULT, rope_theta=1e2) | {"rope_scaling": {}},
    "untied": {"tie_word_embeddings": False},
    "tie_left_out": {"tie_word_embeddings": ...},
    "architectures_left_out": {"architectures": ...},
    "causal": {"is_causal": True},
    "window_without_the_flag": {"sliding_window": 4},
    "window_below_no_layer": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2},
    "window_by_default_from_layer_28": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": ...},
    "flag_without_a_window": {"use_sliding_window": True, "max_window_layers": 0},
    "window": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "window_of_some_layers": {"sliding_window": 5, "use_sliding_window": True, "layer_types": MIXED},
    "attention_bias": {"attention_bias": True},
    "yarn": {"rope_scaling": YARN},
    "yarn_in_transformers_5": five(**YARN, rope_theta=1e5),
    "yarn_by_its_old_key": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}},
    "yarn_with_all_parameters": {
        "rope_scaling": YARN | {"beta_fast": 8, "beta_slow": 2.0, "attention_factor": 1.5, "truncate": False}
    },
    "yarn_with_nulls": {"rope_scaling": YARN | {"beta_fast": None, "attention_factor": None}},
    "yarn_of_the_models_length": {"rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": 24},
    "yarn_of_a_length_beside": {"rope_scaling": YARN, "original_max_position_embeddings": 24},
    "yarn_takes_the_place": five(**DEFAULT, rope_theta=1e6) | {"rope_scaling": YARN | {"rope_theta": 1e2}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "linear_of_factor_1": {"rope_scaling": {"type": "linear", "factor": 1.0}},
    "qwen2": QWEN2,
    "qwen2_with_a_head_dim": QWEN2 | {"head_dim": 16},
    "qwen2_window": QWEN2 | {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "qwen2_window_declared": QWEN2 | {"sliding_window": 4, "max_window_layers": 0},
    "qwen2_yarn": QWEN2 | {"rope_scaling": YARN},
    "qwen2_without_a_base": QWEN2 | {"rope_theta": ...},
    "llama": LLAMA,
    "llama_untied": LLAMA | {"tie_word_embeddings": False},
    "llama_head_dim_null": LLAMA | {"head_dim": None},
    "llama_with_a_head_dim": LLAMA | {"head_dim": 16},
    "llama_2": LLAMA | {"rope_theta": ..., "num_key_value_heads": ..., "mlp_bias": ..., "attention_bias": ...},
    "llama_biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama_3": LLAMA | {"rope_scaling": LLAMA3},
    "llama_3_in_transformers_5": LLAMA | five(**LLAMA3, rope_theta=5e5),
    "layers_all_full": {"layer_types": ["full_attention"] * 2, "sliding_window": 4, "use_sliding_window": True},
}


@pytest.mark.parametrize("shape", SAME)
def test_our_decoder_is_transformers_model_of_the_same_folder(shape: str, tmp_path: Path) -> None:
    """Its weights, drawn once more so that no bias is 0, in one file or in shards."""
    from transformers import AutoConfig, AutoModelForCausalLM

    write(tmp_path, SMALL | SAME[shape])
    given = AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(given, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter += torch.randn(parameter.shape) / 10
    peer.save_pretrained(tmp_path / "saved", max_shard_size=40_000 if "llama" in shape else 10**9)
    config = read_config(tmp_path)
    assert read_config(tmp_path / "saved") == config
    ours = Decoder(config)
    ours.load_state_dict(dict(read_weights(tmp_path / "saved", config)), strict=not config.tie_word_embeddings)
    tokens = torch.randint(96, (2, 64))
    with torch.no_grad():
        rounded = peer(tokens).logits.double()
        mine = ours.double()(tokens)
        true = exact(peer.double())(tokens).logits
    halves = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    assert (mine - true).norm() < 3 * halves * (rounded - true).norm()


def test_features_change_what_is_computed(tmp_path: Path) -> None:
    """Each of the configs above that differ in a feature gives another model."""
    shapes = ("transformers_4", "window", "window_of_some_layers", "yarn", "yarn_with_all_parameters", "linear")
    models = [read_config(write(tmp_path, SMALL | SAME[shape])) for shape in shapes]
    torch.manual_seed(0)
    weights, tokens = Decoder(models[0]).state_dict(), torch.randint(96, (1, 24))
    logits = []
    for model in models:
        decoder = Decoder(model)
        decoder.load_state_dict(weights)
        logits.append(decoder(tokens))
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(logits, 2))


def test_a_published_config_is_the_named_model(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, PUBLISHED)) == NAMED["qwen3-0.6b"].model
    assert NAMED["qwen3-0.6b"].model.parameters == 596_049_920  # the model card's 0.6B


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_fault(encoding: str, tmp_path: Path) -> None:
    assert read_config(write(tmp_path, PUBLISHED, encoding)) == NAMED["qwen3-0.6b"].model


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mistral"}, "model_type 'mistral' is not supported; only dense qwen3, qwen2, llama are"),
    ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
    ({"model_type": "llama"}, "architectures ['Qwen3ForCausalLM'] is not supported"),
    ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe' is not supported"),
    ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures ['Qwen3ForSequenceClassification'] is not"),
    ({"architectures": ["Qwen3Model"]}, "architectures ['Qwen3Model'] is not supported"),
    ({"auto_map": {"AutoModel": "modeling.Mine"}}, "auto_map is not supported"),
    ({"is_causal": False}, "is_causal False is not supported"),
    ({"is_causal": None}, "is_causal None is not supported"),
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
    ({"attention_bias": "no"}, "attention_bias must be true or false, not 'no'"),
    ({"attention_dropout": 0.1}, "attention_dropout 0.1 is not supported"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    (five(**DEFAULT, rope_theta=1e6, partial_rotary_factor=0.5), "partial_rotary_factor 0.5 is not supported"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is not supported"),
    ({"compression_config": {"format": "int"}}, "compression_config is not supported"),
    ({"use_sliding_window": True, "sliding_window": 0}, "model.sliding_window 0 must be positive"),
    ({"use_sliding_window": True, "sliding_window": 8.5}, "sliding_window must be an integer, not 8.5"),
    ({"layer_types": MIXED, "sliding_window": 4}, "layer_types 'sliding_attention' without use_sliding_window"),
    ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types 'chunked_attention' is not supported"),
    ({"layer_types": ["full_attention"]}, "layer_types must name each of the 2 layers"),
    ({"layer_types": "full_attention"}, "layer_types must name each of the 2 layers, not 'full_attention'"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling of type 'yarn' has no original_max_position_e"),
    ({"rope_scaling": YARN | {"factor": None}}, "rope_scaling of type 'yarn' has no factor"),
    ({"rope_scaling": YARN | {"factor": "4"}}, "rope_scaling.factor must be a number, not '4'"),
    ({"rope_scaling": YARN | {"factor": 0}}, "RoPE scaling's factor must be positive and finite, not 0.0"),
    ({"rope_scaling": YARN | {"attn_factor": 0.9}}, "the field 'attn_factor' of rope_scaling is not supported"),
    ({"rope_scaling": YARN | {"mscale": 1.0}}, "the field 'mscale' of rope_scaling is not supported"),
    ({"rope_scaling": YARN | {"beta_slow": -1.0}}, "RoPE scaling's beta_slow must be positive and finite, not -1.0"),
    ({"rope_scaling": YARN | {"attention_factor": -1.0}}, "RoPE scaling's attention_factor must be 0 or more"),
    ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, "low_freq_factor 4.0 must be below its high_freq_factor 4.0"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE scaling 'dynamic' is not supported"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "RoPE scaling 'longrope' is not supported"),
    ({"rope_scaling": {"rope_type": ["yarn"]}}, "RoPE scaling ['yarn'] is not supported"),
    (five(rope_type="linear", rope_theta=1e6), "rope_parameters of type 'linear' has no factor"),
    (five(**DEFAULT, rope_theta=1e6) | {"rope_scaling": YARN}, "rope_theta missing"),
    (LLAMA | five(**DEFAULT, rope_theta=1e6) | {"rope_scaling": YARN}, "rope_theta missing"),
    (LLAMA | {"pretraining_tp": 2}, "pretraining_tp 2 is not supported"),
    (LLAMA | {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    (LLAMA | {"sliding_window": 8}, "sliding_window 8 is not supported"),
    (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types 'sliding_attention' is not supp"),
    (LLAMA | {"mlp_bias": None}, "mlp_bias must be true or false, not None"),
    (LLAMA | {"num_attention_heads": 0}, "model.num_attention_heads must be positive and finite, not 0"),
    (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "quantization_config is not supported"),
    (QWEN2 | {"hidden_size": "wide"}, "hidden_size must be an integer, not 'wide'"),
    (LLAMA | {"hidden_size": ...}, "hidden_size, head_dim missing"),
    (LLAMA | {"num_attention_heads": None}, "num_attention_heads must be an integer, not None"),
    (five(**DEFAULT, rope_theta=1e6) | {"rope_scaling": DEFAULT}, "rope_theta missing"),
    (five(full_attention=DEFAULT), "the field 'full_attention' of rope_parameters is not supported"),
    ({"rope_scaling": {"factor": 4.0}}, "the field 'factor' of rope_scaling is not supported"),
    ({"rope_scaling": [1, 2]}, "rope_scaling must be a table, not [1, 2]"),
    (five(**DEFAULT) | {"rope_parameters": "default"}, "rope_parameters must be a table, not 'default'"),
    ({"rope_theta": ...}, "rope_theta missing"),
    ({"rope_theta": None}, "rope_theta must be a number, not None"),
    ({"rope_theta": float("inf")}, "model.rope_theta must be positive and finite, not inf"),
    ({"head_dim": ..., "vocab_size": ...}, "vocab_size, head_dim missing"),
    ({"head_dim": None}, "head_dim must be an integer, not None"),
    ({"hidden_size": "wide"}, "hidden_size must be an integer, not 'wide'"),
    ({"hidden_size": 48.0}, "hidden_size must be an integer, not 48.0"),
    ({"num_hidden_layers": 2.0}, "num_hidden_layers must be an integer, not 2.0"),
    ({"max_window_layers": None, "use_sliding_window": True, "sliding_window": 8}, "max_window_layers must be an int"),
    ({"num_key_value_heads": 5}, "num_attention_heads 6 is not a multiple of"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_another_architecture_is_refused_by_the_fields_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, SMALL | {"max_window_layers": 0} | change)
    with pytest.raises(InputError) as refusal:
        read_config(tmp_path)
    assert str(refusal.value).startswith(str(tmp_path / "config.json"))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.json", "{}", "config.json: weights must name a Hugging Face folder"),
        ("adapter_config.json", "{}", "holds only an adapter: merge it into its base model, and name that folder"),
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", '{\n// tweaked\n"model_type": "qwen3",\n}', "config.json is not JSON"),
        ("config.json", "[]", "model_type None is not supported"),
        ("config.json", "version https://git-lfs.github.com/spec/v1\n", "config.json is a Git LFS pointer"),
    ],
)
def test_no_config_or_a_broken_one_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as refusal:
        read_config(tmp_path)
    assert message in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
