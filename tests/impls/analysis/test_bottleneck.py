"""FLOPs of a training step: by products, in closed form, by PyTorch's counter, and as the report's MFU has them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from harness.meter.flops import step_flops
from harness.spec import ModelConfig, MoeConfig, Topology, Unsupported, Workload
from harness.spec.named import NAMED
from impls.analysis.bottleneck import CARD, calls, claims, on_torch, published, reference
from impls.analysis.bottleneck.problem import PARTS, draw, forward, plain
from impls.analysis.bottleneck.sizes import UNGATED, config, numbers

COUNTS = ("whole", "grouped", "causal", "flash", "selective", "recomputed", "six_n")
SMALL = ModelConfig(24, 16, 40, 3, 4, 2, 6)
EXPERTS = MoeConfig(**{**vars(SMALL), "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12})
TIED = ModelConfig(**{**vars(SMALL), "tie_word_embeddings": True})
WORKS = {
    name: Workload(name, model, batch_size=2, sequence_length=10)
    for name, model in (("dense", SMALL), ("experts", EXPERTS), ("tied", TIED))
}


def counted(work: Workload, count: str = "whole", parts: bool = True) -> dict[str, int]:
    return plain(draw(work, count, parts), count, parts)


def by(build: Any, work: Workload, count: str, parts: bool = True) -> dict[str, int]:
    return build(work, Topology(), count=count, parts=parts)(draw(work, count, parts))


@settings(derandomize=True, max_examples=80)
@given(
    st.lists(st.integers(1, 40), min_size=8, max_size=8),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([(), (1, 1, 3), (7, 3, 20), (4, 4, 8)]),
    st.sampled_from(COUNTS),
)
def test_closed_forms_are_the_sum_over_products_at_any_size(
    sizes: list[int], group: int, tied: bool, experts: tuple[int, ...], count: str
) -> None:
    v, h, f, layers, k, half, b, s = sizes
    model = ModelConfig(v, h, f, layers, k * group, k, 2 * half, tie_word_embeddings=tied)
    if experts:
        names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
        model = MoeConfig(**vars(model), **dict(zip(names, experts, strict=True)))
    work = Workload("drawn", model, batch_size=b, sequence_length=s)
    for parts in (False,) if count == "six_n" else (True, False):
        found = by(reference.build, work, count, parts)
        assert found == counted(work, count, parts)
        assert {type(flops) for flops in found.values()} == {int}
    assert config(numbers(work)) == model


@pytest.mark.parametrize("work", [*NAMED.values(), *published.PUBLISHED], ids=lambda work: work.name)
def test_the_mfu_of_the_report_counts_the_same_products(work: Workload) -> None:
    assert step_flops(work) == counted(work, "causal", parts=False)["total"]


@pytest.mark.parametrize("gpt", [published.GPT3_175B, published.MT_NLG_530B, published.MEGATRON_1T])
def test_the_formulas_of_papers_are_the_counts_of_their_models(gpt: published.Gpt) -> None:
    sizes, model = gpt.sizes(6), (6, gpt.length, gpt.layers, gpt.hidden, gpt.vocabulary)
    assert claims.total(sizes, "recomputed") == reference.narayanan(*model)
    assert claims.total(sizes, "whole") == reference.korthikanti(*model)
    each = reference.palm(claims.met(sizes), gpt.layers, gpt.heads, gpt.hidden // gpt.heads, gpt.length)
    assert claims.total(sizes, "whole") == 6 * gpt.length * each


def test_the_brackets_that_were_multiplied_out_are_those_of_the_papers() -> None:
    b, s, layers, h, v = 8, 96, 4, 48, 192
    assert reference.narayanan(b, s, layers, h, v) == pytest.approx(
        96 * b * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h)), rel=1e-15
    )
    assert reference.korthikanti(b, s, layers, h, v) == pytest.approx(
        72 * b * s * layers * h**2 * (1 + s / (6 * h) + v / (12 * h * layers)), rel=1e-15
    )


def test_products_of_one_token_and_layer_by_hand() -> None:
    model = ModelConfig(5, 3, 7, 1, 2, 1, 4)
    found = counted(Workload("hand", model, batch_size=1, sequence_length=1))
    projections = 2 * (3 * 8 + 2 * 3 * 4 + 8 * 3)
    assert found == {
        "projections": 3 * projections,
        "scores": 3 * 2 * (2 * 4 + 2 * 4),  # two heads of queries
        "mlp": 3 * 2 * 3 * 3 * 7,
        "router": 0,
        "head": 3 * 2 * 5 * 3,
        "total": 3 * (projections + 32 + 126 + 30),
    }


@pytest.mark.parametrize("name", WORKS)
def test_conventions_differ_by_what_they_say(name: str) -> None:
    found = {count: counted(WORKS[name], count) for count in COUNTS if count != "six_n"}
    whole = found["whole"]
    times: dict[str, dict[str, float]] = {
        "grouped": {},
        "causal": {"scores": 0.5},
        "flash": {"scores": 7 / 6},
        "selective": {"scores": 4 / 3},
        "recomputed": dict.fromkeys(PARTS[:-1], 4 / 3),
    }
    for count, of in times.items():
        assert {part: found[count][part] for part in PARTS} == {
            part: pytest.approx(whole[part] * of.get(part, 1.0), rel=1e-15) for part in PARTS
        }


def test_six_a_parameter_is_every_product_but_attentions_and_norms() -> None:
    for name, work in WORKS.items():
        whole, rule = counted(work), counted(work, "six_n", parts=False)["total"]
        norms = 6 * work.tokens * reference.weights(numbers(work)).norms
        assert rule == whole["total"] - whole["scores"] + norms, name


@pytest.mark.parametrize("count", ["whole", "selective", "recomputed"])
@pytest.mark.parametrize("name", WORKS)
def test_pytorchs_counter_sees_every_product_of_the_decoder(name: str, count: str) -> None:
    assert by(on_torch.build, WORKS[name], count) == counted(WORKS[name], count)


def test_published_sizes_are_counted_without_memory() -> None:
    work = published.LLAMA3_8B
    assert by(on_torch.build, work, "whole") == counted(work)


def test_a_large_mixture_of_experts_is_refused_with_the_reason() -> None:
    with pytest.raises(Unsupported, match=r"real tensors; 30,532,122,624 parameters are made as shapes only"):
        calls.made(published.QWEN3_30B_A3B.model, real=False)


def test_pytorchs_early_stop_leaves_out_the_last_product_of_what_is_computed_again() -> None:
    """The output of a layer's last product is not kept, so a checkpoint stops before it."""
    mlp, x = calls.made(SMALL, real=False).model.layers[0].mlp, torch.ones(2, 10, 16, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        checkpoint(mlp, x, use_reentrant=False).sum().backward()
    down = 2 * 20 * SMALL.intermediate_size * SMALL.hidden_size
    assert on_torch.count_flops(SDPBackend.MATH, on_torch.Recomputed(mlp), x) == 12 * down
    assert counter.get_total_flops() == 11 * down


def test_grouped_queries_share_keys_but_no_product() -> None:
    grouped, all_heads = (ModelConfig(**{**vars(SMALL), "num_key_value_heads": k}) for k in (2, 4))
    few, many = (counted(Workload(model=model)) for model in (grouped, all_heads))
    assert few["scores"] == many["scores"]
    assert many["projections"] / few["projections"] == pytest.approx(16 / 12)
    assert by(on_torch.build, Workload(model=grouped), "whole") == few


def test_an_mlp_without_a_gate_has_two_matrices() -> None:
    sizes = {**numbers(WORKS["dense"]), "mlp_matrices": UNGATED}
    assert [product.name for product in forward(sizes) if product.part == "mlp"] == ["up", "down"]


@pytest.mark.parametrize(
    ("work", "billions"),
    [
        (published.PALM_540B, 540.36),  # 540.35 with PaLM's own norms, of which a layer has one
        (published.LLAMA3_8B, 8.03),
        (published.LLAMA3_70B, 70.55),
        (published.QWEN3_30B_A3B, 30.53),
    ],
)
def test_published_models_have_as_many_parameters_as_published(work: Workload, billions: float) -> None:
    assert round(work.model.parameters / 1e9, 2) == billions


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("palm_mfu", "reproduced"),
        ("palm_hfu", "formula only"),
        ("mt_nlg_mfu", "reproduced"),
        ("megatron_table", "reproduced"),
        ("selective_mfu", "reproduced"),
        ("selective_hfu", "contradicted"),
        ("gpt3_total", "reproduced"),
        ("llama3_total", "reproduced"),
        ("deepseek_active", "reproduced"),
        ("six_per_parameter", "contradicted"),
        ("megatron_causal", "contradicted"),
    ],
)
def test_published_figures_by_arithmetic(name: str, status: str) -> None:
    found = getattr(claims, name)([])
    assert (found.quantity, found.detail["status"]) == (name, status)
    assert name in {claim.name for claim in CARD.claims}


def test_the_published_hfu_follows_if_attention_is_recomputed_three_times() -> None:
    assert "43.8, 52.8, 57.0, 57.0 %" in claims.selective_hfu([]).detail["arithmetic"]


def test_megatrons_formula_is_the_causal_count_but_for_routers() -> None:
    for work in (WORKS["dense"], WORKS["tied"], *published.PUBLISHED[:3]):
        sizes = numbers(work)
        assert claims.megatron_formula(sizes) == pytest.approx(claims.total(sizes, "causal"), rel=1e-12)
    sizes = numbers(WORKS["experts"])
    found = counted(WORKS["experts"], "causal")
    assert claims.megatron_formula(sizes) == pytest.approx(found["total"] - found["router"], rel=1e-12)
