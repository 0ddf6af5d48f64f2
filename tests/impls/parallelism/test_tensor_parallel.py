"""Tensor parallelism on two and four CPU ranks: compared with the float64 oracle, the laws, and planted faults."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.launch.outcome import Done, Job, describe
from harness.launch.rank import Context
from harness.meter.traffic import CONTROL
from harness.run.lab import Lab
from harness.spec import Case, Engine, Measurement, ModelConfig, Topology, Trainer, Workload
from impls.common.shards import join, shard
from impls.parallelism import tensor_parallel
from impls.parallelism.tensor_parallel import claims, laws, operators, reference

CARD = tensor_parallel.CARD
TP2, TP4, DP2TP2 = Topology(tp=2), Topology(tp=4), Topology(dp=2, tp=2)
# 131 rows of vocabulary on 2 and on 4 ranks, tied; only the heads' sizes are even.
UNEVEN = Workload(
    "uneven_vocabulary", ModelConfig(131, 45, 76, 2, 4, 4, 6, tie_word_embeddings=True), sequence_length=13
)
# Grouped queries, tied embeddings, two micro-batches, clipping. With so large an epsilon AdamW's step is nearly linear
# in the gradient, so a wrong norm is visible.
SMALL = ModelConfig(128, 64, 96, 2, 8, 4, 8)
CLIPPED = Workload(
    "clipped",
    replace(SMALL, tie_word_embeddings=True),
    micro_batches=2,
    sequence_length=16,
    optimizer="adamw",
    lr=1.0,
    eps=1.0,
    weight_decay=0.1,
    max_grad_norm=0.3,
)
MIXED = Workload("mixed", SMALL, micro_batches=2, sequence_length=16, dtype="bf16")


def case(engine: str, workload: Workload, topology: Topology = TP2, variant: str = "tp") -> Case:
    return Case(CARD.name, variant, engine, topology, workload)


def failed(measurements: list[Measurement]) -> list[str]:
    return [measurement.reason for measurement in measurements if measurement.verdict != "pass"]


@pytest.mark.parametrize(
    ("engine", "workload", "topology"),
    [
        ("reference", UNEVEN, Topology()),
        ("reference", UNEVEN, TP2),
        ("reference", UNEVEN, TP4),
        ("reference", CLIPPED, TP2),
        ("reference", CLIPPED, DP2TP2),
        ("reference", MIXED, TP2),
        ("reference", UNEVEN.with_(dtype="fp64"), TP2),
        ("torch", UNEVEN, TP2),
        ("torch", CLIPPED, TP2),
        ("megatron", CLIPPED, TP2),
        ("megatron", MIXED, TP2),
        ("deepspeed", UNEVEN, TP2),
        ("deepspeed", CLIPPED, TP2),
    ],
    ids=lambda value: f"{value.name}-{value.dtype}" if isinstance(value, Workload) else str(value),
)
def test_engine_computes_what_the_dense_model_does(
    lab: Lab, engine: str, workload: Workload, topology: Topology
) -> None:
    measurements = lab.measure("parity", case(engine, workload, topology))
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    assert failed(measurements) == []


@pytest.mark.parametrize("engine", ["reference", "megatron"])
@pytest.mark.parametrize("topology", [TP2, TP4], ids=str)
def test_a_step_sends_what_the_law_says_to_the_byte(lab: Lab, engine: str, topology: Topology) -> None:
    (measurement,) = lab.measure("traffic", case(engine, CLIPPED, topology))
    assert (measurement.verdict, measurement.value) == ("pass", measurement.law), measurement.reason


def test_data_parallel_groups_add_one_all_reduce_of_what_a_rank_holds(lab: Lab) -> None:
    (measurement,) = lab.measure("traffic", case("reference", CLIPPED, DP2TP2))
    assert measurement.value == measurement.law, measurement.reason


@pytest.mark.parametrize("variant", ["tp_validated", "tp_own_head"])
@pytest.mark.parametrize(("workload", "topology"), [(CLIPPED, DP2TP2), (MIXED, TP4)], ids=["fp32", "bf16"])
def test_what_users_put_around_a_model_computes_and_sends_what_it_promises(
    lab: Lab, variant: str, workload: Workload, topology: Topology
) -> None:
    around = case("reference", workload, topology, variant)
    assert failed([found for measure in ("parity", "memory") for found in lab.measure(measure, around)]) == []
    (sent,) = lab.measure("traffic", around)
    assert sent.value == sent.law, sent.reason


def test_logits_of_unequal_parts_are_skipped_with_the_reason(lab: Lab) -> None:
    (found,) = lab.measure("parity", case("reference", UNEVEN, variant="tp_validated"))
    assert (found.verdict, found.reason) == (
        "skipped",
        "logits are gathered here in equal parts, and tp 2 does not divide 131",
    )


def test_autotp_sends_one_backward_all_reduce_for_each_column_parallel_matrix(lab: Lab) -> None:
    """Five per layer where the paper has two; its embedding, if not tied to the head, is whole and sends nothing."""
    workload = Workload("untied", SMALL)
    (measurement,) = lab.measure("traffic", case("deepspeed", workload))
    activation = workload.tokens * workload.model.hidden_size * workload.element_size
    assert measurement.value is not None
    assert measurement.law is not None
    assert measurement.value - measurement.law == (3 * workload.model.num_hidden_layers - 1) * activation


@pytest.mark.parametrize("workload", [CLIPPED, UNEVEN], ids=lambda workload: workload.name)
def test_the_reference_holds_the_states_that_the_law_says(lab: Lab, workload: Workload) -> None:
    assert [f.reason for f in lab.measure("memory", case("reference", workload)) if f.verdict != "pass"] == []


def _without(name: str, stand_in: Callable[..., Any]) -> Callable[[], None]:
    return lambda: setattr(reference, name, stand_in)


def _off_by_one(name: str, full: Tensor, rank: int, t: int) -> Tensor:
    return shard(name, full.roll(1, 0) if name == "model.layers.1.mlp.up_proj.weight" else full, rank, t)


def _columns_without_f(x: Tensor, group: operators.Group, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.nn.functional.linear(x, weight) for weight in weights)


FAULTS: Mapping[str, Callable[[], None]] = {
    "g does not sum": _without("reduce", lambda x, group: x),
    "f does not sum": _without("column_parallel", _columns_without_f),
    "QK-norm gradients are not summed": _without("sum_flat", lambda tensors, group: None),
    "a shard is off by one row": _without("shard", _off_by_one),
}


def with_fault(workload: Workload, topology: Topology, fault: str) -> Trainer:
    """The reference with one part replaced, in its own rank."""
    FAULTS[fault]()
    return reference.build(workload, topology)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(lab: Lab, fault: str) -> None:
    planted = replace(CARD, variants={fault: {"fault": fault}}, engines={"reference": Engine(f"{__name__}:with_fault")})
    lab.runner.cards = {CARD.name: planted}
    try:
        measurements = {f.quantity: f for f in lab.measure("parity", case("reference", UNEVEN, variant=fault))}
    finally:
        lab.runner.cards = {CARD.name: CARD}
    assert (measurements["gradient"].verdict, measurements["update"].verdict) == ("fail", "fail")
    if fault.startswith("QK-norm"):
        assert "_norm.weight" in measurements["gradient"].detail["tensor"]


def conjugates(context: Context) -> dict[str, tuple[float, float]]:
    """⟨A x, y⟩ and ⟨x, Aᵀ y⟩ of each operator in float64; values that are equal on all ranks count once."""
    group = torch.distributed.group.WORLD
    own, same = (torch.Generator().manual_seed(seed) for seed in (context.rank + 1, 0))

    def dot(a: Tensor, b: Tensor, whole: bool) -> float:
        product = (a * b).sum()
        if not whole:
            torch.distributed.all_reduce(product)
        return float(product)

    found = {}
    n = 6
    for name, wide_in, whole_in, wide_out, whole_out in (
        ("copy", True, True, True, False),
        ("reduce", True, False, True, True),
        ("scatter", True, True, False, False),
        ("gather", False, False, True, True),
    ):
        sizes = [n if wide else n // context.size for wide in (wide_in, wide_out)]
        x, y = (
            torch.randn(3, size, generator=same if whole else own, dtype=torch.float64)
            for size, whole in zip(sizes, (whole_in, whole_out), strict=True)
        )
        x.requires_grad_()
        out = getattr(operators, name)(x, group)
        assert out.shape == y.shape
        out.backward(y)
        found[name] = (dot(out.detach(), y, whole_out), dot(x.detach(), x.grad, whole_in))
    return found


def overlapped(context: Context) -> float:
    """The largest difference between ``column_parallel`` and ``copy`` followed by plain products, of any gradient."""
    generator = torch.Generator().manual_seed(0)
    x, first, second = (torch.randn(shape, generator=generator) for shape in ((2, 3, 8), (4, 8), (6, 8)))
    group, gradients = torch.distributed.group.WORLD, []
    for run in (
        lambda x, *weights: operators.column_parallel(x, group, *weights),
        lambda x, *weights: [torch.nn.functional.linear(operators.copy(x, group), weight) for weight in weights],
    ):
        leaves = [leaf.double().requires_grad_() for leaf in (x, first + context.rank, second)]
        sum((out**2).sum() for out in run(*leaves)).backward()
        gradients.append([leaf.grad for leaf in leaves])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))


def _in_two_ranks(lab: Lab, job: str) -> list[Any]:
    world = lab.runner.launcher.world(2, "reference", CARD.engines["reference"].build.partition(":")[0])
    outcomes = world.run(Job(f"{__name__}:{job}", {}), timeout=30)
    world.close()
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    return [outcome.value for outcome in outcomes if isinstance(outcome, Done)]


def test_each_operators_backward_is_its_transpose(lab: Lab) -> None:
    for found in _in_two_ranks(lab, "conjugates"):
        assert found.keys() == {"copy", "reduce", "scatter", "gather"}
        for forward, backward in found.values():
            assert forward == pytest.approx(backward, rel=1e-12)


def test_the_overlapped_product_is_copy_and_linear(lab: Lab) -> None:
    assert max(_in_two_ranks(lab, "overlapped")) < 8 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_shards_join_to_the_whole(t: int) -> None:
    for name, shape in UNEVEN.model.shapes():
        full = torch.arange(float(torch.Size(shape).numel())).view(shape)
        assert torch.equal(join(name, [shard(name, full, rank, t) for rank in range(t)]), full)


LEAST = ModelConfig(6, 4, 8, 1, 2, 2, 2)  # V 6, h 4, f 8, one layer, 2 heads of 2


def test_states_are_the_matrices_over_t_and_the_norms() -> None:
    matrices, norms = 2 * 6 * 4 + 4 * 4 * 4 + 3 * 8 * 4, 3 * 4 + 2 * 2
    assert matrices + norms == LEAST.parameters
    workload = Workload(model=LEAST)
    assert laws.states(workload, Topology()) == 8 * LEAST.parameters
    assert laws.states(workload, TP2) == 8 * (matrices / 2 + norms)
    mixed = workload.with_(dtype="bf16", optimizer="adamw")
    assert laws.states(mixed, TP2) == 16 * (matrices / 2 + norms)
    assert laws.states(workload.with_(dtype="fp64", optimizer="adamw"), TP2) == 32 * (matrices / 2 + norms)


def test_traffic_counts_every_micro_batch_and_leaves_control_out() -> None:
    workload = Workload(model=LEAST, batch_size=4, sequence_length=3)
    tokens, once = 12, 2 * (2 - 1) / 2
    activations, statistics, gains = 6 * tokens * 4 * 4, 3 * tokens * 4, 2 * 2 * 4
    assert gains <= laws.CONTROL == CONTROL
    assert laws.traffic(workload, TP2) == once * (activations + statistics)
    assert laws.traffic(workload.with_(micro_batches=2), TP2) == once * (activations + statistics)
    assert laws.traffic(workload, TP4) == 1.5 * (activations + statistics)
    assert laws.traffic(workload, Topology()) is None


def _memory(topology: str, quantity: str, value: float) -> dict[str, Any]:
    return {**claims.ADAM, "topology": topology, "quantity": quantity, "value": value}


def test_the_practices_saving_is_judged_by_this_sessions_peaks() -> None:
    states = [_memory("dp1", "states", 2.0), _memory("tp2", "states", 1.0), _memory("dp1", "peak", 12.0)]
    assert claims.practice_memory([]).detail["status"] == "out of reach here"
    same = claims.practice_memory([*states, _memory("tp2", "peak", 7.0)])
    assert (same.detail["status"], same.value) == ("reproduced", pytest.approx(same.law))
    assert claims.practice_memory([*states, _memory("tp2", "peak", 11.0)]).detail["status"] == "out of reach here"


def test_every_claim_says_what_became_of_it() -> None:
    statuses = {claim.name: getattr(claims, claim.name)([]).detail["status"] for claim in CARD.claims}
    assert statuses == {
        "practice_memory": "out of reach here",
        "practice_loss": "formula only",
        "paper_512_gpus": "out of reach here",
    }
