"""Methods that adapt a frozen model: the dense model is the definition, written out once more here; the reference keeps
to it on two ranks; the laws are the papers' arithmetic."""

from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.common.data import batch
from impls.common.weights import build_model
from impls.finetuning.prompt_methods import CARD, claims, laws, shapes
from impls.finetuning.prompt_methods.plain import Plain, initial

ODD = ModelConfig(97, 24, 40, 2, 4, 2, 6)
WORK = Workload(
    "odd_prompts",
    ODD,
    batch_size=6,
    micro_batches=3,
    sequence_length=11,
    min_length=1,
    max_grad_norm=0.3,
    dtype="fp64",
)
VARIANTS = {name: options for name, options in CARD.variants.items() if not options.get("unmasked")}


def dense(work: Workload, **options: Any) -> Plain:
    return Plain(work, False, False, **options)


def start(options: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in initial(WORK, **options)}


RUNS = [(engine, variant) for engine in CARD.engines for variant in CARD.engines[engine].variants or CARD.variants]


@pytest.mark.parametrize(("engine", "variant"), [run for run in RUNS if run[1] in VARIANTS])
def test_ranks_with_unequal_lengths_compute_what_the_dense_model_does(lab: Lab, engine: str, variant: str) -> None:
    if engine != "reference":
        pytest.importorskip(engine)
    work = WORK.with_(dtype="fp32", optimizer="adamw", lr=1e-3, weight_decay=0.1, eps=1e-4)
    case = Case(CARD.name, variant, engine, Topology(dp=2), work)
    assert {found.quantity: found.verdict for found in lab.measure("parity", case) if found.verdict != "pass"} == {}


def test_every_parameter_counts() -> None:
    for options in VARIANTS.values():
        trainer = dense(WORK, **options)
        trainer.backward(batch(WORK, 0))
        gradients = trainer.gradients()
        assert gradients.keys() == dict(initial(WORK, **options)).keys()
        assert all(gradient.norm() > 0 for gradient in gradients.values())


def test_a_soft_prompt_of_words_is_these_words_before_the_text() -> None:
    trainer, model, tokens = dense(WORK, **VARIANTS["prompt_tuning"]), build_model(WORK), batch(WORK, 0)[0]
    words = torch.tensor([3, 1, 4, 1, 5])
    with torch.no_grad():
        trainer.weights["prompt_encoder.embedding.weight"].copy_(model.model.embed_tokens.weight[words])
    text = torch.cat((words.expand(len(tokens), -1), tokens), dim=1)
    torch.testing.assert_close(trainer.logits(tokens), model(text)[:, len(words) :], rtol=1e-10, atol=1e-12)


def test_a_prefix_of_a_word_s_keys_and_values_is_this_word_before_the_text() -> None:
    """At position 0, where RoPE turns nothing."""
    trainer, model, tokens = (
        dense(WORK, **{**VARIANTS["prefix_tuning"], "tokens": 1}),
        build_model(WORK),
        batch(WORK, 0)[0],
    )
    text, kept = F.pad(tokens, (1, 0), value=7), []
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.k_norm.register_forward_hook(lambda module, given, made: kept.append(made[0, 0]))  # [k, d]
        attention.v_proj.register_forward_hook(lambda module, given, made: kept.append(made[0, 0].view(2, 6)))
    expected = model(text)[:, 1:]
    with torch.no_grad():
        trainer.weights["prompt_encoder.embedding.weight"].copy_(torch.stack(kept).flatten()[None])
    torch.testing.assert_close(trainer.logits(tokens), expected, rtol=1e-10, atol=1e-12)


def test_a_reparametrised_prefix_is_that_of_its_mlp() -> None:
    with_mlp, without = (dense(WORK, **VARIANTS[name]) for name in ("prefix_tuning_mlp", "prefix_tuning"))
    given = start(VARIANTS["prefix_tuning_mlp"])
    w1, b1, w2, b2 = (
        given[f"prompt_encoder.transform.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    )
    made = torch.tanh(given["prompt_encoder.embedding.weight"] @ w1.T + b1) @ w2.T + b2
    with torch.no_grad():
        without.weights["prompt_encoder.embedding.weight"].copy_(made)
    tokens = batch(WORK, 0).inputs
    torch.testing.assert_close(with_mlp.logits(tokens), without.logits(tokens), rtol=1e-10, atol=1e-12)


def test_p_tuning_is_prompt_tuning_with_the_rows_of_its_mlp() -> None:
    encoded, plain = (dense(WORK, **VARIANTS[name]) for name in ("p_tuning", "prompt_tuning"))
    given = start(VARIANTS["p_tuning"])
    rows = given["prompt_encoder.embedding.weight"]
    for place in (0, 2, 4):
        rows = (
            rows @ given[f"prompt_encoder.mlp_head.{place}.weight"].T + given[f"prompt_encoder.mlp_head.{place}.bias"]
        )
        rows = rows.clamp(min=0) if place < 4 else rows
    with torch.no_grad():
        plain.weights["prompt_encoder.embedding.weight"].copy_(rows)
    tokens = batch(WORK, 0).inputs
    torch.testing.assert_close(encoded.logits(tokens), plain.logits(tokens), rtol=1e-10, atol=1e-12)


def test_rescaled_activations_are_those_of_a_merged_model() -> None:
    trainer, model, tokens = dense(WORK, method="ia3"), build_model(WORK), batch(WORK, 0).inputs
    rescaled, before = trainer.logits(tokens), {name: tensor.clone() for name, tensor in trainer.frozen().items()}
    merged = dict(trainer.merged())
    assert len(merged) == 3 * ODD.num_hidden_layers
    torch.testing.assert_close(functional_call(model, merged, (tokens,)), rescaled, rtol=1e-9, atol=1e-12)
    trainer.unmerge()
    for name, tensor in trainer.frozen().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-12, atol=1e-14)


def test_a_factor_of_a_whole_head_is_lost_in_the_norm_of_keys() -> None:
    work = WORK.with_(model=replace(ODD, rms_norm_eps=1e-20))
    trainer, tokens = dense(work, method="ia3"), batch(WORK, 0).inputs
    before = trainer.logits(tokens)
    with torch.no_grad():
        for name, scale in trainer.weights.items():
            if "k_proj" in name:
                scale[:6] *= 3
    torch.testing.assert_close(trainer.logits(tokens), before, rtol=1e-10, atol=1e-12)


def test_an_adapter_with_zero_weights_leaves_the_model_as_it_is() -> None:
    trainer, tokens = dense(WORK, **VARIANTS["bottleneck_adapters"]), batch(WORK, 0).inputs
    with torch.no_grad():
        for name, tensor in trainer.weights.items():
            if ".up." in name:
                tensor.zero_()
    torch.testing.assert_close(trainer.logits(tokens), build_model(WORK)(tokens), rtol=1e-12, atol=1e-14)


def test_the_base_stays_as_it_is() -> None:
    for options in VARIANTS.values():
        trainer = dense(WORK, **options)
        before = {name: tensor.clone() for name, tensor in trainer.frozen().items()}
        trainer.backward(batch(WORK, 0))
        trainer.update()
        assert before
        assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.frozen().items())


def test_the_papers_count_what_is_trained() -> None:
    h, layers, cache, f = ODD.hidden_size, ODD.num_hidden_layers, 12, ODD.intermediate_size
    expected = {
        "bottleneck_adapters": layers * 2 * (2 * 8 * h + h + 8),  # 2md + d + m
        "prefix_tuning": 2 * layers * 5 * cache,  # 2 L T d
        "prefix_tuning_mlp": 5 * cache + 24 * cache + 24 + 2 * layers * cache * (24 + 1),
        "prompt_tuning": 5 * h,
        "p_tuning": 5 * h + 24 * h + 24 + 24 * 24 + 24 + h * 24 + h,
        "ia3": layers * (cache + cache + f),
    }
    assert {name: shapes.parameters(ODD, **options) for name, options in VARIANTS.items()} == expected
    for name, options in VARIANTS.items():
        assert sum(prod(tensor.shape) for _, tensor in initial(WORK, **options)) == expected[name]


def test_states_and_traffic_are_those_of_the_trained_parameters() -> None:
    options, work = VARIANTS["prefix_tuning"], WORK.with_(dtype="bf16", optimizer="adamw")
    trained = 2 * 2 * 5 * 12
    assert laws.states(work, Topology(), **options) == 2 * ODD.parameters + 16 * trained
    assert laws.traffic(work, Topology(), **options) is None
    assert laws.traffic(work, Topology(dp=4), **options) == 2 * 3 / 4 * 4 * trained
    unmasked = CARD.variants["prompt_tuning_unmasked"]
    assert laws.states(work, Topology(), **unmasked) == laws.states(work, Topology(), **VARIANTS["prompt_tuning"])


def test_no_method_costs_more_than_training_the_whole_model_with_its_tokens() -> None:
    for options in CARD.variants.values():
        longer = WORK.with_(sequence_length=WORK.sequence_length + options.get("tokens", 0))
        matrices = sum(prod(shape) for name, shape in ODD.shapes() if len(shape) == 2 and "embed" not in name)
        assert -2.0 * WORK.tokens * matrices <= laws.added_flops(WORK, **options) < 6.0 * longer.tokens * matrices


def test_the_claims_are_the_arithmetic_of_their_models() -> None:
    adapters, prefix = claims.adapters([]), claims.prefix([])
    assert "m = 64: 1.92%" in adapters.detail["arithmetic"]
    assert "491,520 of 345 M: 0.14%" in prefix.detail["arithmetic"]
    record = {"measure": "memory", "quantity": "states", "engine": "reference", "variant": "prefix_tuning"}
    record |= {
        "workload": "thorough",
        "dtype": "fp32",
        "value": laws.states(claims.NAMED["thorough"], Topology(), **VARIANTS["prefix_tuning"]),
    }
    assert "holds 960 trained (960 by the formula)" in claims.prefix([record]).reason


def test_a_model_with_experts_is_refused_in_one_line() -> None:
    from harness.spec import Unsupported
    from harness.spec.named import NAMED

    with pytest.raises(Unsupported, match="dense layers only"):
        dense(replace(WORK, model=NAMED["meshed_experts"].model), method="ia3")
