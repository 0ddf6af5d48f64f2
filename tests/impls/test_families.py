"""Topics on models of Llama and Qwen2.5 with all that these may have: the promises hold, or a reason is given."""

from dataclasses import replace

import pytest

from harness.run.lab import Lab
from harness.spec import Card, Case, ModelConfig, RopeScaling, Topology, Workload
from impls.acceleration import activation_checkpointing, multi_token_prediction
from impls.finetuning import adalora, lora, prompt_methods, qlora, sft, sft_ulysses
from impls.parallelism import (
    hybrid_3d,
    model_parallel,
    overlap,
    pipeline_parallel,
    sequence_parallel,
    tensor_parallel,
    zero,
)

PLACES = (
    activation_checkpointing,
    multi_token_prediction,
    adalora,
    lora,
    prompt_methods,
    qlora,
    sft,
    sft_ulysses,
    hybrid_3d,
    model_parallel,
    overlap,
    pipeline_parallel,
    sequence_parallel,
    tensor_parallel,
    zero,
)
CARDS: dict[str, Card] = {place.CARD.name: place.CARD for place in PLACES}
SMALL = ModelConfig(128, 64, 96, 2, 8, 4, 8, qk_norm=False)
LLAMA = Workload(
    "llama",
    replace(
        SMALL,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        rope_scaling=RopeScaling("llama3", 8.0, 16, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    sequence_length=16,
)
QWEN = Workload(
    "qwen",
    replace(SMALL, qkv_bias=True, sliding_window=5, sliding_layers=(1,), rope_scaling=RopeScaling("yarn", 4.0, 8)),
    sequence_length=16,
)
LLAMA, QWEN = (work.with_(optimizer="adamw", lr=1e-3, eps=1e-6) for work in (LLAMA, QWEN))
CASES = [
    (LLAMA, "activation_checkpointing", "recompute_attention", Topology(tp=2), "memory flops"),
    (QWEN, "activation_checkpointing", "recompute_layers", Topology(), "memory flops"),
    (LLAMA, "multi_token_prediction", "mtp2_sp", Topology(tp=2), "memory traffic"),
    (LLAMA, "adalora", "adalora", Topology(), ""),
    (QWEN, "lora", "dora", Topology(dp=2), "memory traffic flops"),
    (LLAMA, "prompt_methods", "prefix_tuning", Topology(), "memory"),
    (LLAMA, "qlora", "qlora", Topology(), "memory"),
    (LLAMA, "sft", "sft_packed", Topology(dp=2), "memory traffic"),
    (QWEN, "sft", "sft_packed", Topology(), "memory"),
    (QWEN, "sft_ulysses", "sft_ulysses_packed", Topology(cp=2), "memory traffic"),
    (LLAMA, "hybrid_3d", "mesh_sp", Topology(tp=2, pp=2), "memory traffic"),
    (QWEN, "model_parallel", "layers", Topology(pp=2), "memory traffic"),
    (LLAMA, "overlap", "async_tp", Topology(tp=2), "memory traffic"),
    (QWEN, "overlap", "domino", Topology(tp=2), "memory traffic"),
    (LLAMA, "pipeline_parallel", "zb_h1", Topology(pp=2), "memory traffic"),
    (LLAMA, "sequence_parallel", "sp", Topology(tp=2), "memory traffic"),
    (QWEN, "tensor_parallel", "tp", Topology(tp=2), "memory traffic"),
    (LLAMA, "tensor_parallel", "tp", Topology(tp=2), "memory traffic"),
    (LLAMA, "zero", "zero3", Topology(dp=2), "memory traffic"),
]
WINDOW = "does not support a sliding window, which this model has"
UNSUPPORTED = [
    (QWEN, "multi_token_prediction", "mtp1", Topology(), f"a depth, which has no place among the layers, {WINDOW}"),
    (QWEN, "prompt_methods", "prefix_tuning", Topology(), f"attention to a prompt before the text {WINDOW}"),
    (QWEN, "hybrid_3d", "mesh", Topology(dp=2, cp=2), f"attention that goes round a ring {WINDOW}"),
    (LLAMA, "overlap", "domino", Topology(tp=2), "it does not support a bias on attention's output"),
]


def words(value: object) -> str:
    return value.name if isinstance(value, Workload) else str(value)


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "topic", "variant", "topology", "measures"), CASES, ids=words)
def test_results_and_promises_hold(
    lab: Lab, workload: Workload, topic: str, variant: str, topology: Topology, measures: str
) -> None:
    case = Case(topic, variant, "reference", topology, workload)
    found = [each for measure in ("parity", *measures.split()) for each in lab.measure(measure, case)]
    assert [each.reason for each in found if each.verdict != "pass"] == []


@pytest.mark.parametrize(("workload", "topic", "variant", "topology", "reason"), UNSUPPORTED, ids=words)
def test_what_a_reference_cannot_take_is_named(
    lab: Lab, workload: Workload, topic: str, variant: str, topology: Topology, reason: str
) -> None:
    (found,) = lab.measure("parity", Case(topic, variant, "reference", topology, workload))
    assert found.verdict == "skipped"
    assert reason in found.reason


def test_a_window_as_long_as_the_sequences_is_none(lab: Lab) -> None:
    longer = QWEN.with_(model=replace(QWEN.model, sliding_window=QWEN.sequence_length))
    found = lab.measure("parity", Case("sft", "sft_padded", "reference", Topology(), longer))
    assert {each.verdict for each in found} == {"pass"}


@pytest.mark.parametrize(("engine", "workload"), [("trl", LLAMA), ("transformers", QWEN)], ids=words)
def test_fine_tuning_is_compared_with_transformers_model_of_the_family(
    lab: Lab, engine: str, workload: Workload
) -> None:
    pytest.importorskip(engine)
    found = lab.measure("parity", Case("sft", "sft_padded", engine, Topology(), workload))
    assert [each.reason for each in found if each.verdict != "pass"] == []


def test_a_mixture_that_no_model_of_transformers_has_is_named(lab: Lab) -> None:
    pytest.importorskip("transformers")
    mixed = LLAMA.with_(model=replace(LLAMA.model, qk_norm=True))
    (found,) = lab.measure("parity", Case("sft", "sft_padded", "transformers", Topology(), mixed))
    assert found.verdict == "skipped"
    assert "neither Qwen3, Qwen2 nor Llama has this mix" in found.reason
