"""What a model's features change outside the decoder: counts, cuts, start, and who says that it lacks one."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from harness.meter.flops import step_flops
from harness.spec import ModelConfig, RopeScaling, Unsupported, Workload
from harness.spec.config import family
from harness.spec.named import NAMED, load
from impls.common.decoder import Decoder
from impls.common.features import FEATURES, qwen3_alone, without
from impls.common.shards import dim, join, shard
from impls.common.weights import initial
from impls.parallelism.tensor_parallel.laws import held
from tests.impls.common import peer

BIASED = peer.FEATURES["llama_biases"]
SCALED = RopeScaling("linear", 2.0)
HAS = {
    "no_qk_norm": {"qk_norm": False},
    "qkv_bias": {"qkv_bias": True},
    "o_bias": {"o_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "rope_scaling": {"rope_scaling": SCALED},
    "sliding_window": {"sliding_window": 31, "sliding_layers": (0,)},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_code_without_a_feature_names_it(feature: str) -> None:
    work = Workload(model=ModelConfig(**HAS[feature]))
    with pytest.raises(Unsupported, match=f"the engine does not support {FEATURES[feature][1]}, which this model has"):
        qwen3_alone(work, "the engine")
    with pytest.raises(Unsupported):
        without(work, "the engine", feature)
    qwen3_alone(work, "the engine", feature)
    without(work, "the engine", *(FEATURES.keys() - {feature}))


def test_every_built_in_workload_is_qwen3_alone() -> None:
    for work in NAMED.values():
        qwen3_alone(work, "the engine")


def test_a_window_that_hides_no_token_is_no_feature() -> None:
    model = ModelConfig(sliding_window=32, sliding_layers=(1,))
    qwen3_alone(Workload(model=model, sequence_length=32), "the engine")
    with pytest.raises(Unsupported, match="a sliding window"):
        qwen3_alone(Workload(model=model, sequence_length=33), "the engine")


@pytest.mark.parametrize("name", peer.FEATURES)
def test_parameters_are_counted(name: str) -> None:
    model = peer.FEATURES[name]
    assert model.parameters == sum(p.numel() for p in Decoder(model).parameters())


def test_vectors_are_in_no_product() -> None:
    plain, biased = Workload(model=peer.LLAMA), Workload(model=BIASED)
    assert biased.model.parameters > plain.model.parameters
    assert step_flops(biased) == step_flops(plain) == step_flops(Workload(model=replace(peer.LLAMA, qk_norm=True)))


@pytest.mark.parametrize("window", [1, 4, 16, 17])
def test_attention_in_a_window_is_counted_by_the_keys_that_a_query_meets(window: int) -> None:
    """As without one: as the area below the diagonal, here of a band."""
    s = 16
    full = Workload(model=replace(peer.LLAMA, num_hidden_layers=1), sequence_length=s)
    sliding = full.with_(model=replace(full.model, sliding_window=window, sliding_layers=(0,)))
    w = min(window, s)
    width = full.model.num_attention_heads * full.model.head_dim
    area = (s * s - (s - w) ** 2) / 2  # the triangle without the one that the window hides
    saved = 12 * width * (s * s / 2 - area) * full.batch_size
    assert step_flops(full) - step_flops(sliding) == pytest.approx(saved)


@pytest.mark.parametrize("t", [1, 2])
def test_a_bias_is_cut_as_the_rows_of_its_matrix(t: int) -> None:
    assert dim("model.layers.0.self_attn.q_proj.bias") == dim("model.layers.0.mlp.up_proj.bias") == 0
    assert dim("model.layers.0.self_attn.o_proj.bias") is dim("model.layers.0.mlp.down_proj.bias") is None
    whole = peer.weights(BIASED)
    parts = [{name: shard(name, full, rank, t) for name, full in whole.items()} for rank in range(t)]
    assert all(torch.equal(join(name, [part[name] for part in parts]), full) for name, full in whole.items())
    assert held(Workload(model=BIASED), t) == sum(p.numel() for p in parts[0].values())


def test_biases_start_small_and_are_not_0() -> None:
    drawn = {name: tensor for name, tensor in initial(Workload(model=BIASED)) if name.endswith(".bias")}
    assert len(drawn) == 7 * BIASED.num_hidden_layers
    assert all(0 < tensor.abs().mean() < 0.5 and torch.equal(tensor, tensor.bfloat16()) for tensor in drawn.values())
    assert prod(next(iter(drawn.values())).shape) == BIASED.num_attention_heads * BIASED.head_dim


TABLE = """
[model]
num_hidden_layers = 3
qk_norm = false
qkv_bias = true
sliding_window = 8
sliding_layers = [1, 2]
[model.rope_scaling]
rope_type = "yarn"
factor = 4
original_max_position_embeddings = 16
truncate = false
"""


def test_a_toml_file_may_have_all_features(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(TABLE)
    model = load(str(file)).model
    assert model == ModelConfig(
        num_hidden_layers=3,
        qk_norm=False,
        qkv_bias=True,
        sliding_window=8,
        sliding_layers=(1, 2),
        rope_scaling=RopeScaling("yarn", 4.0, 16, truncate=False),
    )
    assert family(model) == "qwen2"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1, 2]", "1", "model.sliding_layers must be a list of integers, not 1"),
        ("[1, 2]", "[1, 3]", r"model.sliding_layers \[1, 3\] must be among the 3 layers"),
        ("[1, 2]", "[1.5]", "model.sliding_layers must be an integer, not 1.5"),
        ("sliding_window = 8", "", r"model.sliding_window 0 must be positive with model.sliding_layers \[1, 2\]"),
        ("sliding_window = 8", "sliding_window = -8", "model.sliding_window -8 must be positive"),
        ('"yarn"', '"su"', "RoPE scaling 'su' is not supported; known: linear, llama3, yarn"),
        ('rope_type = "yarn"', "", "model.rope_scaling.rope_type is missing"),
        ("factor = 4", 'factor = "4"', "model.rope_scaling.factor must be a number, not '4'"),
        ("original_max_position_embeddings = 16", "", "original_max_position_embeddings must be positive and finite"),
        ("truncate", "truncated", "unknown field 'model.rope_scaling.truncated'; did you mean truncate?"),
        ("qkv_bias = true", "qkv_bias = true\nnum_experts = 4\nmlp_bias = true", "model.mlp_bias: experts have no"),
    ],
)
def test_a_features_wrong_value_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=message) as refusal:
        load(str(file))
    assert "\n" not in str(refusal.value)
