"""Domino and asynchronous tensor parallelism: any rows and lengths, communication in flight, and rejected work."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.launch.outcome import Done, Job, describe
from harness.launch.rank import Context
from harness.run.lab import Lab
from harness.spec import Case, Engine, ModelConfig, Span, Topology, Trainer, Workload
from impls.parallelism import overlap
from impls.parallelism.overlap import claims, laws, reference, ring
from impls.parallelism.overlap.grid import HALVES
from impls.parallelism.overlap.wire import Wire
from impls.parallelism.sequence_parallel.operators import naive_columns, positions, scatter
from tests.impls.layouts import wrong

CARD = overlap.CARD
TP2 = Topology(tp=2)
TINY = ModelConfig(31, 12, 20, 2, 2, 2, 6)
HEADS = ModelConfig(31, 12, 20, 2, 4, 4, 6)
WORK = Workload("work", TINY, batch_size=2, sequence_length=4, dtype="fp64")


def case(variant: str, workload: Workload, topology: Topology = TP2, engine: str = "reference") -> Case:
    return Case(CARD.name, variant, engine, topology, workload)


@st.composite
def layouts(draw: st.DrawFn) -> Case:
    """Small, odd work: rows that two does not divide, lengths that the ranks do not; tied or clipped or neither."""
    dp, tp = draw(st.sampled_from([(1, 2), (1, 4), (2, 2), (1, 1)]))
    micro_batches, kv = draw(st.sampled_from([1, 2])), draw(st.sampled_from([tp, 2 * tp]))
    vocabulary = 31 if dp == 1 else 32  # the law of dp's gradients does not cover a rank with one row more
    work = Workload(
        "drawn",
        ModelConfig(vocabulary, 12, 20, 2, 2 * tp, kv, 6, tie_word_embeddings=draw(st.booleans())),
        batch_size=dp * micro_batches * draw(st.integers(2, 5)),
        micro_batches=micro_batches,
        sequence_length=draw(st.integers(3, 9)),  # a half's losses exceed a flag's 16 bytes
        min_length=draw(st.sampled_from([0, 2])),
        max_grad_norm=draw(st.sampled_from([0.0, 0.3])),
        dtype="fp64",
    )
    return case(draw(st.sampled_from(["domino", "async_tp"])), work, Topology(dp=dp, tp=tp))


@pytest.mark.slow
@settings(max_examples=5)
@given(drawn=layouts())
def test_any_layout_computes_what_the_dense_model_does_with_the_bytes_of_the_law(lab: Lab, drawn: Case) -> None:
    assert wrong(lab, drawn) == []


def watched(context: Context, variant: dict[str, Any], work: Workload) -> list[Span]:
    """This rank's actions in its second step."""
    from impls.common.data import batch

    trainer: Any = reference.build(work, Topology(tp=context.size), **variant)
    spans: list[Span] = []
    for index in range(2):
        trainer.record(spans if index else None)
        trainer.backward(batch(work, index))
        trainer.record(None)
        trainer.update()
    return spans


def in_ranks(lab: Lab, ranks: int, job: str, **arguments: Any) -> list[Any]:
    world = lab.runner.launcher.world(ranks, "reference", CARD.engines["reference"].build.partition(":")[0])
    outcomes = world.run(Job(f"{__name__}:{job}", arguments), timeout=30)
    world.close()
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    return [outcome.value for outcome in outcomes if isinstance(outcome, Done)]


def meanwhile(spans: list[Span]) -> float:
    """Seconds in which communication was in flight while the rank computed."""
    return sum(
        max(0.0, min(c.end, s.end) - max(c.start, s.start))
        for c in spans
        for s in spans
        if c.kind == "C" and s.kind in "FB"
    )


@pytest.mark.parametrize("variant", ["domino", "domino_waiting", "async_tp", "async_tp_waiting"])
def test_communications_are_counted_and_overlap_only_where_they_should(lab: Lab, variant: str) -> None:
    options = dict(CARD.variants[variant])
    for spans in in_ranks(lab, 2, "watched", variant=options, work=HALVES):
        assert sum(s.kind == "C" for s in spans) == laws.flights(HALVES, TP2, **options)
        assert sum(s.kind == "X" for s in spans) == 2 * sum(s.kind == "C" for s in spans)  # issued, and waited for
        assert all(s.end >= s.start for s in spans)
        actions = sorted((s for s in spans if s.kind in "FBX"), key=lambda s: s.start)
        assert all(a.end <= b.start for a, b in itertools.pairwise(actions))  # one thing at a time
        assert (meanwhile(spans) > 0) is options.get("overlap", True)


def test_the_halves_take_turns_forward_and_backward(lab: Lab) -> None:
    spans = in_ranks(lab, 2, "watched", variant={"technique": "domino"}, work=WORK)[0]
    stages = range(2 * TINY.num_hidden_layers + 2)
    for kind, order in (("F", stages), ("B", reversed(stages))):
        halves = (0, 1) if kind == "F" else (1, 0)
        assert [(s.stage, s.micro) for s in spans if s.kind == kind] == [(n, half) for n in order for half in halves]


def products(context: Context, s: int) -> float:
    """The largest difference of any output or gradient between the rings and gather, product, scatter."""
    group = torch.distributed.group.WORLD
    wire, rows = Wire(group), positions(s, context.size)
    generator = torch.Generator().manual_seed(context.rank)
    x, q, k, w = (torch.randn(shape, generator=generator) for shape in ((rows, 3, 8), (4, 8), (6, 8), (8, 4)))

    def in_rings(x: Tensor, *weights: Tensor) -> list[Tensor]:
        outs = ring.Columns.apply(x, wire, 0, s, *weights[:2])
        return [*outs, ring.Rows.apply(outs[0].transpose(0, 1).contiguous().transpose(0, 1), wire, 1, weights[2])]

    def whole(x: Tensor, *weights: Tensor) -> list[Tensor]:
        outs = naive_columns(x, group, s, *weights[:2])
        return [*outs, scatter(outs[0] @ weights[2].t(), group)]

    found = []
    for run in (in_rings, whole):
        leaves = [leaf.double().requires_grad_() for leaf in (x, q, k, w)]
        outs = run(*leaves)
        sum((out**2).sum() for out in outs).backward()
        found.append([*(out.detach() for out in outs), *(leaf.grad for leaf in leaves)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("ranks", "s"), [(1, 5), (2, 6), (3, 7), (4, 2)])
def test_rings_compute_what_gather_product_and_scatter_do(lab: Lab, ranks: int, s: int) -> None:
    assert max(in_ranks(lab, ranks, "products", s=s)) < 64 * torch.finfo(torch.float64).eps


def test_a_ring_sends_nothing_but_messages_to_neighbours(lab: Lab) -> None:
    (measurement,) = lab.measure("traffic", case("async_tp", WORK, TP2))
    rings, messages = 10 * TINY.num_hidden_layers + 3, measurement.detail["by_op"]["send"]
    assert messages["calls"] == rings
    assert messages["bytes"] == rings * WORK.sequence_length // 2 * WORK.batch_size * TINY.hidden_size * 8


@pytest.mark.parametrize(
    ("engine", "variant", "work", "reason"),
    [
        ("reference", "domino", WORK.with_(name="rows", micro_batches=2), "two halves of its rows, but this one has 1"),
        ("deepspeed", "domino", WORK.with_(name="rows", micro_batches=2, model=HEADS), "has 1"),
        ("deepspeed", "domino", WORK, "one head a rank"),
        ("deepspeed", "domino", Workload(), "4 key/value heads under 8 query heads"),
        ("megatron", "async_tp", WORK, "the local layers, which run on a CPU, accept the flag and ignore it"),
        ("torch", "async_tp", WORK, "needs a CUDA GPU"),
    ],
)
def test_work_that_cannot_run_is_skipped_with_the_reason(
    lab: Lab, engine: str, variant: str, work: Workload, reason: str
) -> None:
    (measurement,) = lab.measure("parity", case(variant, work, engine=engine))
    assert measurement.verdict == "skipped"
    assert reason in measurement.reason


def unfused(workload: Workload, topology: Topology, technique: str) -> Trainer:
    """The adapter with PyTorch's own unfused forms of the operators, which need no symmetric memory."""
    from torch.distributed import _symmetric_memory as symmetric

    from impls.parallelism.overlap import on_torch

    on_torch.gather_matmul = symmetric._fused_all_gather_matmul_fallback
    on_torch.matmul_scatter = symmetric._fused_matmul_reduce_scatter_fallback
    return on_torch.build(workload, topology, technique)


def test_the_adapter_of_the_fused_operators_is_wired_as_the_dense_model_is(lab: Lab) -> None:
    engines = dict(CARD.engines) | {"torch": Engine(f"{__name__}:unfused")}
    lab.runner.cards = {CARD.name: type(CARD)(**{**vars(CARD), "engines": engines})}
    try:
        measurements = lab.measure("parity", case("async_tp", WORK.with_(name="even", batch_size=3), engine="torch"))
    finally:
        lab.runner.cards = {CARD.name: CARD}
    assert [f.reason for f in measurements if f.verdict != "pass"] == []


def kept(context: Context, work: Workload) -> tuple[int, int]:
    """The bytes that Domino's table of handles keeps after a step, and the bytes of a gradient [s, b, h]."""
    from deepspeed.runtime.domino.transformer import DominoUtil

    from impls.common.data import batch
    from impls.parallelism.overlap import on_deepspeed

    trainer = on_deepspeed.build(work, Topology(tp=context.size), "domino")
    trainer.backward(batch(work, 0))
    handles = [handle for handle in DominoUtil.HANDLE_DIC.values() if handle is not None]
    found = sum(tensor.nbytes for handle in handles for tensor in handle.result())
    return found, work.tokens // work.micro_batches * work.model.hidden_size * work.element_size


def test_dominos_table_keeps_the_last_two_gradients(lab: Lab) -> None:
    """Checks the cause that the finding deepspeed_domino_handles gives."""
    for found, whole in in_ranks(lab, 2, "kept", work=HALVES):
        assert found == whole


def _record(variant: str, measure: str, quantity: str, value: float) -> dict[str, Any]:
    return {**claims.WORK, "variant": variant, "measure": measure, "quantity": quantity, "value": value}


def test_without_step_times_no_claim_is_made_of_a_gain() -> None:
    for claim in CARD.claims:
        measurement = getattr(claims, claim.name)([])
        assert measurement.detail["status"] == "out of reach here"
        assert measurement.value is None


def test_where_overlap_gains_nothing_the_measurement_says_so() -> None:
    def records(seconds: float) -> list[dict[str, Any]]:
        times = {"domino": seconds, "domino_waiting": 5.0, "domino_off": 2.0}
        return [_record(name, "throughput", "step_time", value) for name, value in times.items()]

    slow, fast = (claims.domino_speedup(records(seconds)) for seconds in (4.0, 1.0))
    assert (slow.value, fast.value) == (0.5, 2.0)
    assert "takes 0.80 × that of the same pieces without overlap and 2.00 × that of the whole" in slow.reason
    assert "the device gains nothing from the hidden time" in slow.reason
    assert "gains nothing" not in fast.reason


def test_the_hidden_share_is_named_beside_the_published_one() -> None:
    measurement = claims.flux_hidden([_record("async_tp", "timeline", "hidden", 0.25)])
    assert "25.0% is hidden" in measurement.reason
    assert measurement.law == 0.96
