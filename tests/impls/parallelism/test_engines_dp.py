"""Data parallelism of DeepSpeed, Megatron-Core and FairScale on two CPU ranks, against float64 and the laws."""

import importlib
from dataclasses import replace

import pytest

from harness import findings
from harness.run.lab import Lab
from harness.run.recorder import Recorder
from harness.spec import Case, Engine, Measurement, Topology, Trainer, Workload
from harness.spec.named import NAMED
from impls.parallelism import data_parallel, zero

DP2 = Topology(dp=2)
UNEVEN_TIED = NAMED["uneven_tied"]
# With so large an epsilon AdamW's step is nearly linear in the gradient, so a wrong norm is visible.
CLIPPED = UNEVEN_TIED.with_(
    name="uneven_tied_clipped", optimizer="adamw", lr=1.0, eps=1.0, weight_decay=0.1, max_grad_norm=0.5
)
MIXED = NAMED["tiny_adamw"].with_(dtype="bf16")
CARDS = {"data_parallel": data_parallel.CARD, "zero": zero.CARD}


def with_a_larger_rate(workload: Workload, topology: Topology, adapter: str) -> Trainer:
    faster = workload.with_(lr=workload.lr * 1.01)
    trainer: Trainer = importlib.import_module(adapter).build(faster, topology)
    return trainer


def with_collectives_of_its_own(workload: Workload, topology: Topology) -> Trainer:
    trainer: Trainer = importlib.import_module(f"{data_parallel.HERE}.reference").build(workload, topology)
    trainer.unmetered = "not through torch.distributed"  # type: ignore[attr-defined]
    return trainer


def case(variant: str, engine: str, workload: Workload) -> Case:
    return Case("zero" if variant.startswith("zero") else "data_parallel", variant, engine, DP2, workload)


@pytest.mark.parametrize(
    ("variant", "engine", "workload"),
    [
        ("ddp_no_sync", "deepspeed", UNEVEN_TIED),
        ("ddp_no_sync", "megatron", UNEVEN_TIED),
        ("zero1", "deepspeed", UNEVEN_TIED),
        ("zero2", "deepspeed", UNEVEN_TIED),
        ("zero3", "deepspeed", UNEVEN_TIED),
        ("ddp", "deepspeed", CLIPPED),
        ("zero3", "deepspeed", CLIPPED),
        ("zero3", "fairscale", CLIPPED),
        ("zero1", "megatron", CLIPPED),
    ],
)
def test_engine_computes_what_the_dense_model_does(lab: Lab, variant: str, engine: str, workload: Workload) -> None:
    measurements = lab.measure("parity", case(variant, engine, workload))
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []


@pytest.mark.parametrize("engine", ["deepspeed", "megatron"])
def test_a_learning_rate_one_percent_too_large_is_seen(lab: Lab, engine: str) -> None:
    adapter = data_parallel.CARD.engines[engine].build.partition(":")[0]
    planted = replace(
        data_parallel.CARD,
        variants={"faulty": {"adapter": adapter}},
        engines={**data_parallel.CARD.engines, engine: Engine(f"{__name__}:with_a_larger_rate")},
    )
    lab.runner.cards = {**CARDS, "data_parallel": planted}
    try:
        verdicts = {f.quantity: f.verdict for f in lab.measure("parity", case("faulty", engine, UNEVEN_TIED))}
    finally:
        lab.runner.cards = CARDS
    assert (verdicts["gradient"], verdicts["update"], verdicts["update slope"]) == ("pass", "fail", "fail")


@pytest.mark.parametrize(
    ("variant", "engine"),
    [
        ("ddp", "megatron"),
        ("zero1", "megatron"),
        ("zero2", "deepspeed"),
        ("zero3", "deepspeed"),
        ("zero3", "fairscale"),
    ],
)
def test_states_in_mixed_precision_take_what_the_paper_promises(lab: Lab, variant: str, engine: str) -> None:
    states = lab.measure("memory", case(variant, engine, MIXED))[0]
    assert (states.quantity, states.verdict) == ("states", "pass"), states.reason


@pytest.mark.parametrize("engine", ["deepspeed", "megatron"])
def test_several_micro_batches_are_reduced_once(lab: Lab, engine: str) -> None:
    by_op = lab.measure("traffic", case("ddp_no_sync", engine, UNEVEN_TIED))[0].detail["by_op"]
    ring = 2 * (DP2.dp - 1) / DP2.dp
    assert by_op["all_reduce"]["bytes"] == ring * UNEVEN_TIED.model.parameters * UNEVEN_TIED.element_size


def test_collectives_that_cannot_be_counted_are_no_figure(lab: Lab) -> None:
    odd = Engine(f"{__name__}:with_collectives_of_its_own")
    planted = replace(data_parallel.CARD, engines={**data_parallel.CARD.engines, "odd": odd})
    lab.runner.cards = {**CARDS, "data_parallel": planted}
    try:
        (measurement,) = lab.measure("traffic", case("ddp", "odd", Workload()))
    finally:
        lab.runner.cards = CARDS
    assert (measurement.verdict, measurement.reason, measurement.value) == (
        "skipped",
        "not through torch.distributed",
        None,
    )


def test_parity_may_be_asked_again(lab: Lab) -> None:
    """Its tensors are gone by then, and what else the run gave is not."""
    asked = case("zero2", "deepspeed", UNEVEN_TIED)
    first = lab.measure("parity", asked)
    (first_rank, *_) = lab.runner.checked(asked).ranks
    assert first_rank.tensors is None
    assert first_rank.memory[0].peak > 0
    assert [measurement.verdict for measurement in lab.measure("parity", asked)] == [
        measurement.verdict for measurement in first
    ]


def test_an_engine_that_fails_parity_or_is_known_to_is_wrong(lab: Lab) -> None:
    right, known = case("zero2", "deepspeed", UNEVEN_TIED), case("zero2", "fairscale_default", UNEVEN_TIED)
    recorder = Recorder(lambda case, found: None, findings.read())
    recorder.record(right, lab.measure("parity", right), {})
    assert (recorder.wrong(right), recorder.wrong(known)) == (False, True)
    recorder.record(right, [Measurement("parity", "loss", 1.0, "", "fail", "planted")], {})
    assert recorder.wrong(right)


def test_deepspeed_gathers_weights_twice_and_reduces_gradients_once_in_stage_3(lab: Lab) -> None:
    by_op = lab.measure("traffic", case("zero3", "deepspeed", MIXED))[0].detail["by_op"]
    share = (DP2.dp - 1) / DP2.dp * MIXED.model.parameters * MIXED.element_size
    gathered, scattered = (by_op[name]["bytes"] + by_op[name]["control"] for name in ("all_gather", "reduce_scatter"))
    assert (gathered / share, scattered / share) == (2, 1)


@pytest.mark.parametrize(
    ("variant", "engine", "workload", "reason"),
    [
        ("zero1", "megatron", Workload(), "takes Adam only, not sgd"),
        ("zero2", "megatron", NAMED["tiny_adamw"], "is ZeRO stage 1, not 2"),
        ("ddp", "megatron", Workload(dtype="fp64"), "float32, float16 and bfloat16"),
        ("ddp", "deepspeed", Workload(dtype="fp64"), "float32, float16 and bfloat16"),
        ("zero3", "fairscale", Workload(dtype="fp64"), "float32 weights only"),
    ],
)
def test_unsupported_work_is_skipped_with_the_reason(
    lab: Lab, variant: str, engine: str, workload: Workload, reason: str
) -> None:
    (measurement,) = lab.measure("parity", case(variant, engine, workload))
    assert measurement.verdict == "skipped"
    assert reason in measurement.reason
