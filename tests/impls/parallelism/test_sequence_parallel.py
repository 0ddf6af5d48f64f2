"""Sequence parallelism on two and four CPU ranks: compared with the float64 oracle, the laws, and planted faults."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.torch_version import TorchVersion

from harness.launch.outcome import Done, Job, describe
from harness.launch.rank import Context
from harness.run.lab import Lab
from harness.spec import Case, Engine, Measurement, ModelConfig, Topology, Trainer, Unsupported, Workload
from impls.parallelism import sequence_parallel
from impls.parallelism.sequence_parallel import claims, laws, on_torch, operators, reference
from impls.parallelism.tensor_parallel import laws as tensor_parallel
from impls.parallelism.tensor_parallel.operators import Conjugate

SMALL_THINGS = 1024  # bytes: losses, labels, positions and weights of micro-batches, which the formula leaves out

CARD = sequence_parallel.CARD
TP2, TP4, DP2TP2 = Topology(tp=2), Topology(tp=4), Topology(dp=2, tp=2)
UNEVEN = Workload("uneven_sequence", ModelConfig(131, 45, 76, 2, 4, 4, 6, tie_word_embeddings=True), sequence_length=13)
FEWER_POSITIONS_THAN_RANKS = UNEVEN.with_(name="three_positions", sequence_length=3)
SMALL = ModelConfig(128, 64, 96, 2, 8, 4, 8)
# With so large an epsilon AdamW's step is nearly linear in the gradient, so a wrong norm is visible.
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
ENDS = Workload("ends", SMALL, sequence_length=15, min_length=2)  # some sequences have no label on the last rank

UNEVEN_DTENSORS = pytest.mark.skipif(torch.__version__ < on_torch.EVEN_BEFORE, reason="the adapter says so")


def case(engine: str, workload: Workload, topology: Topology = TP2, variant: str = "sp") -> Case:
    return Case(CARD.name, variant, engine, topology, workload)


@pytest.mark.parametrize(
    ("engine", "workload", "topology", "variant"),
    [
        ("reference", UNEVEN, Topology(), "sp"),
        ("reference", UNEVEN, TP4, "sp"),
        ("reference", UNEVEN, TP2, "sp_kept"),
        ("reference", FEWER_POSITIONS_THAN_RANKS, TP4, "sp"),
        ("reference", CLIPPED, DP2TP2, "sp"),
        ("reference", MIXED, TP2, "sp"),
        ("reference", ENDS.with_(dtype="fp64"), TP2, "sp"),
        ("torch", CLIPPED, TP2, "sp_kept"),
        pytest.param("torch", ENDS, TP2, "sp_kept", marks=UNEVEN_DTENSORS),
        ("megatron", CLIPPED, TP2, "sp"),
        ("megatron", MIXED, DP2TP2, "sp"),
    ],
    ids=lambda value: f"{value.name}-{value.dtype}" if isinstance(value, Workload) else str(value),
)
def test_engine_computes_what_the_dense_model_does(
    lab: Lab, engine: str, workload: Workload, topology: Topology, variant: str
) -> None:
    measurements = lab.measure("parity", case(engine, workload, topology, variant))
    assert {measurement.quantity for measurement in measurements} >= {"gradient", "update", "loss"}
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []


def test_dtensor_says_which_pytorch_it_takes_for_unequal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1"))
    with pytest.raises(Unsupported, match=r"unequal length before PyTorch 2\.13"):
        on_torch.build(ENDS, TP2, gather_again=False)


@pytest.mark.parametrize(
    ("engine", "workload", "topology", "variant"),
    [
        ("reference", UNEVEN, TP4, "sp"),
        ("reference", CLIPPED, DP2TP2, "sp"),
        ("reference", UNEVEN, TP2, "sp_kept"),
        pytest.param("torch", ENDS, TP2, "sp_kept", marks=UNEVEN_DTENSORS),
        ("megatron", CLIPPED, TP2, "sp"),
        ("megatron", MIXED, DP2TP2, "sp"),
    ],
    ids=lambda value: value.name if isinstance(value, Workload) else str(value),
)
def test_a_step_sends_what_the_law_says_to_the_byte(
    lab: Lab, engine: str, workload: Workload, topology: Topology, variant: str
) -> None:
    (measurement,) = lab.measure("traffic", case(engine, workload, topology, variant))
    assert (measurement.verdict, measurement.value) == ("pass", measurement.law), measurement.reason


@pytest.mark.parametrize(
    ("workload", "topology", "variant"),
    [
        (UNEVEN, TP4, "sp"),
        (FEWER_POSITIONS_THAN_RANKS, TP4, "sp"),
        (CLIPPED, DP2TP2, "sp"),
        (MIXED, TP2, "sp"),
        (UNEVEN, TP2, "sp_kept"),
        (CLIPPED, TP2, "sp_off"),
    ],
    ids=lambda value: value.name if isinstance(value, Workload) else str(value),
)
def test_the_reference_keeps_what_the_law_says_but_for_labels_and_scalars(
    lab: Lab, workload: Workload, topology: Topology, variant: str
) -> None:
    measurements = {
        measurement.quantity: measurement
        for measurement in lab.measure("memory", case("reference", workload, topology, variant))
    }
    kept = measurements["activations"]
    assert kept.value is not None
    assert kept.law is not None
    assert 0 <= kept.value - kept.law < SMALL_THINGS
    assert measurements["states"].verdict == "pass", measurements["states"].reason


@pytest.mark.parametrize(
    ("engine", "variant", "reason"),
    [
        ("megatron", "sp", "tp 2 does not divide 13"),
        ("megatron", "sp_kept", "always gathers it again"),
        ("torch", "sp", "it is the variant sp_kept"),
    ],
)
def test_work_that_an_engine_cannot_do_is_skipped_with_the_reason(
    lab: Lab, engine: str, variant: str, reason: str
) -> None:
    (measurement,) = lab.measure("traffic", case(engine, UNEVEN, TP2, variant))
    assert measurement.verdict == "skipped"
    assert reason in measurement.reason


def _without(name: str, stand_in: Callable[..., Any]) -> Callable[[], None]:
    return lambda: setattr(reference, name, stand_in)


def _joined_only(x: Tensor, group: operators.Group, s: int, *weights: Tensor) -> tuple[Tensor, ...]:
    """g with a backward pass that takes this rank's part and sums nothing."""

    def part(y: Tensor, group: operators.Group) -> Tensor:
        rows = operators.positions(s, group.size())
        y = F.pad(y, (0, 0, 0, 0, 0, group.size() * rows - s))
        return y[group.rank() * rows :][:rows].contiguous()

    whole = Conjugate.apply(x, group, partial(operators._joined, s=s), part)
    return tuple(F.linear(whole, weight) for weight in weights)


def _own_part_only(x: Tensor, group: operators.Group) -> Tensor:
    """ḡ with which every rank keeps its own part of its own partial result."""
    rows = operators.positions(len(x), group.size())
    return F.pad(x, (0, 0, 0, 0, 0, group.size() * rows - len(x)))[group.rank() * rows :][:rows]


FAULTS: Mapping[str, Callable[[], None]] = {
    "g does not sum": _without("columns", _joined_only),
    "ḡ does not sum": _without("scatter", _own_part_only),
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
        measurements: dict[str, Measurement] = {
            f.quantity: f for f in lab.measure("parity", case("reference", UNEVEN, variant=fault))
        }
    finally:
        lab.runner.cards = {CARD.name: CARD}
    assert (measurements["gradient"].verdict, measurements["update"].verdict) == ("fail", "fail")


def conjugates(context: Context, s: int) -> dict[str, tuple[float, float]]:
    """⟨A x, y⟩ and ⟨x, Aᵀ y⟩ of each operator in float64, over all ranks. A part's positions beyond s are zeros."""
    group, rank = torch.distributed.group.WORLD, context.rank
    own = torch.Generator().manual_seed(rank + 1)
    rows = operators.positions(s, context.size)
    held = max(0, min(rows, s - rank * rows))

    def part() -> Tensor:
        drawn = torch.randn(rows, 2, 5, generator=own, dtype=torch.float64)
        drawn[held:] = 0
        return drawn

    def dot(a: Tensor, b: Tensor) -> float:
        product = (a * b).sum()
        torch.distributed.all_reduce(product)
        return float(product)

    def whole() -> Tensor:
        return torch.randn(s, 2, 5, generator=own, dtype=torch.float64)

    found = {}
    for name, x, y in (("gather", part(), whole()), ("scatter", whole(), part())):
        x.requires_grad_()
        out = operators.gather(x, group, s) if name == "gather" else operators.scatter(x, group)
        assert out.shape == y.shape
        out.backward(y)
        found[name] = (dot(out.detach(), y), dot(x.detach(), x.grad))
    return found


def twice(context: Context, s: int) -> float:
    """The largest difference between ``columns`` and ``naive_columns``, of any output or gradient."""
    group = torch.distributed.group.WORLD
    rows = operators.positions(s, context.size)
    generator = torch.Generator().manual_seed(context.rank)
    drawn = [torch.randn(shape, generator=generator) for shape in ((rows, 2, 8), (4, 8), (6, 8))]
    found = []
    for run in (operators.columns, operators.naive_columns):
        x, *weights = (leaf.double().requires_grad_() for leaf in drawn)
        outs = run(x, group, s, *weights)
        sum((out**2).sum() for out in outs).backward()
        found.append([*(out.detach() for out in outs), x.grad, *(weight.grad for weight in weights)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))


def _in_ranks(lab: Lab, ranks: int, job: str, s: int) -> list[Any]:
    world = lab.runner.launcher.world(ranks, "reference", CARD.engines["reference"].build.partition(":")[0])
    outcomes = world.run(Job(f"{__name__}:{job}", {"s": s}), timeout=30)
    world.close()
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    return [outcome.value for outcome in outcomes if isinstance(outcome, Done)]


@pytest.mark.parametrize(("ranks", "s"), [(2, 6), (2, 7), (3, 7), (3, 2)])
def test_each_operators_backward_is_its_transpose(lab: Lab, ranks: int, s: int) -> None:
    for found in _in_ranks(lab, ranks, "conjugates", s):
        assert found.keys() == {"gather", "scatter"}
        for forward, backward in found.values():
            assert forward == pytest.approx(backward, rel=1e-12)


@pytest.mark.parametrize(("ranks", "s"), [(2, 6), (3, 7)])
def test_gathering_again_changes_nothing_but_what_is_saved(lab: Lab, ranks: int, s: int) -> None:
    assert max(_in_ranks(lab, ranks, "twice", s)) < 8 * torch.finfo(torch.float64).eps


@st.composite
def divisible(draw: st.DrawFn) -> tuple[Workload, Topology]:
    """Work with sizes that t divides."""
    t = draw(st.sampled_from([2, 4, 8]))
    times = st.integers(1, 3)
    kv = t * draw(times)
    model = ModelConfig(
        t * draw(times), draw(st.integers(5, 40)), t * draw(times), draw(times), kv * draw(times), kv, 2 * draw(times)
    )
    dtype = draw(st.sampled_from(["fp32", "bf16", "fp64"]))
    return Workload(model=model, batch_size=2, sequence_length=t * draw(times), dtype=dtype), Topology(tp=t)


def _everywhere(work: Workload) -> float:
    """Bytes of activations that every rank needs: RoPE's tables, the tokens' and labels' indices and masks, and the
    number of labels."""
    return 2 * work.sequence_length * work.model.head_dim * work.element_size + work.tokens * (2 * (8 + 1) + 1) + 8


@given(divisible())
def test_activations_are_divided_by_t(drawn: tuple[Workload, Topology]) -> None:
    work, topology = drawn
    one, mine = (laws.activations(work, each) - _everywhere(work) for each in (Topology(), topology))
    assert mine == pytest.approx(one / topology.tp)
    kept, off = (
        laws.activations(work, topology, **variant)
        for variant in ({"gather_again": False}, {"sequence_parallel": False})
    )
    assert laws.activations(work, topology) < kept < off


@given(divisible())
def test_traffic_is_tensor_parallelisms_and_one_more_gather_for_each_block_and_the_head(
    drawn: tuple[Workload, Topology],
) -> None:
    work, topology = drawn
    t, layers, h = topology.tp, work.model.num_hidden_layers, work.model.hidden_size
    alone = laws.traffic(work, topology, sequence_parallel=False)
    assert alone == tensor_parallel.traffic(work, topology)
    heads, all_gains = (
        tensor_parallel.ring(count * work.element_size, t)
        for count in (2 * layers * work.model.head_dim, 2 * layers * work.model.head_dim + (2 * layers + 1) * h)
    )
    kept = laws.traffic(work, topology, gather_again=False)
    assert alone is not None
    assert kept is not None
    assert kept - all_gains == pytest.approx(alone - heads)
    again = (2 * layers + 1) * (t - 1) / t * work.tokens * h * work.element_size
    assert laws.traffic(work, topology) == pytest.approx(kept + again)


def test_one_rank_sends_nothing() -> None:
    assert laws.traffic(UNEVEN, Topology()) is None


def _activations(topology: str, variant: str, value: float) -> dict[str, Any]:
    return {**claims.WORK, "topology": topology, "variant": variant, "value": value}


def test_the_papers_factor_is_its_tables_and_bears_what_was_measured() -> None:
    empty = claims.activation_memory([])
    assert (empty.detail["status"], empty.law) == ("formula only", 5.0)
    assert empty.value == pytest.approx((10 + 3 + 8) / (34 / 8))  # 530 B: 5as/(ht) = 5 · 128 · 2048 / (20480 · 8)
    found = claims.activation_memory([_activations("tp4", "sp_off", 9.0), _activations("tp4", "sp", 4.0)])
    assert "÷ 2.25 at tp4" in found.reason
    assert "at tp2" not in found.reason


def test_every_claim_says_what_became_of_it() -> None:
    statuses = {claim.name: getattr(claims, claim.name)([]).detail["status"] for claim in CARD.claims}
    assert statuses == {"activation_memory": "formula only", "recomputation_time": "out of reach here"}
