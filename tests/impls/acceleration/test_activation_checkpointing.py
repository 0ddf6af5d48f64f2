"""Activation checkpointing: the cuts and their laws, a segment of any number of tensors, and every variant."""

import itertools
from math import log2

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from impls.acceleration.activation_checkpointing import CARD, claims, laws
from impls.acceleration.activation_checkpointing.attention import attend
from impls.acceleration.activation_checkpointing.cuts import halves, replays, segments
from impls.acceleration.activation_checkpointing.grid import DROPPED
from impls.acceleration.activation_checkpointing.segment import segment
from impls.common import decoder

# Five layers are no square and no power of two; heads are shared; the last segments are shorter.
ODD = Workload(
    "odd",
    ModelConfig(23, 12, 20, 5, 4, 2, 6, dropout=0.2),
    batch_size=2,
    sequence_length=7,
    steps=5,
)
PLAIN = ODD.with_(name="odd_plain", model=ModelConfig(23, 12, 20, 5, 4, 2, 6))


@given(st.integers(1, 40), st.integers(1, 9) | st.just("sqrt"))
def test_segments_have_every_layer_once_and_in_order(layers: int, each: int | str) -> None:
    cut = segments(layers, each)
    assert list(itertools.chain(*cut)) == list(range(layers))
    longest = max(map(len, cut))
    assert longest == (min(each, layers) if each != "sqrt" else longest)
    if each == "sqrt":
        assert len(cut) <= longest
        assert (longest - 1) ** 2 < layers <= longest**2


def test_no_segment_is_no_cut() -> None:
    assert segments(16, 0) == []


@pytest.mark.parametrize("layers", [1, 2, 4, 16, 64])
def test_halving_replays_each_layer_once_a_level(layers: int) -> None:
    assert replays(range(layers)) == layers * log2(layers)


@given(st.integers(2, 50))
def test_halves_are_as_even_as_can_be(layers: int) -> None:
    first, second = halves(range(3, 3 + layers))
    assert [*first, *second] == list(range(3, 3 + layers))
    assert len(first) - len(second) in (0, 1)


def test_attention_that_keeps_its_scores_is_the_decoder_s() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 7, 6, generator=draw, dtype=torch.float64) for n in (4, 2, 2))
    torch.testing.assert_close(attend(q, k, v), decoder.attend(q, k, v), rtol=0, atol=1e-14)


def pair(x: Tensor, y: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Two outputs of two differentiated inputs, one of them used twice, with dropout; a table without a gradient."""
    z = F.dropout(x * table, 0.5)
    return z @ y + x, torch.tanh(y)


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_a_segment_of_several_tensors_has_the_gradients_of_the_plain_call(on_host: bool, used: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(5, 5, generator=draw) for _ in range(3)]
    found = []
    for call in (pair, lambda *inputs: segment(pair, *inputs, on_host=on_host)):
        torch.manual_seed(3)
        x, y = (value.clone().requires_grad_() for value in values[:2])
        outputs = call(x, y, values[2])
        later = torch.rand(3)  # what is drawn after the forward pass
        sum((outputs[index] * (index + 2)).sum() for index in used).backward()
        # If no output is a function of x, the plain call has no gradient where the segment has zeros.
        found.append([torch.zeros_like(x) if x.grad is None else x.grad, y.grad, later, torch.rand(3), *outputs])
    for plain, replayed in zip(*found, strict=True):
        assert torch.equal(plain, replayed)


def test_a_segment_without_a_gradient_is_refused_and_without_a_graph_is_called() -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match="no input of the segment requires a gradient"):
        segment(torch.sin, x)
    with torch.no_grad():
        assert torch.equal(segment(torch.sin, x.requires_grad_()), torch.sin(x))


def test_a_policy_computes_its_operators_once() -> None:
    calls = []

    def product(x: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return torch.sin(x @ x)

    gradients = []
    for policy in (frozenset(), frozenset({torch.ops.aten.mm.default})):
        x = torch.arange(9.0).view(3, 3).requires_grad_()
        y = segment(product, x, policy=policy)
        with Counter() as counter:
            y.sum().backward()
        gradients.append(x.grad)
        assert counter.products == (2 if policy else 3)  # two of the backward pass
    assert calls == [False, True, False, True]
    assert torch.equal(*gradients)


class Counter(torch.utils._python_dispatch.TorchDispatchMode):
    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.products += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", CARD.twins)
def test_every_variant_has_the_bits_the_bytes_and_the_operations_promised(lab: Lab, variant: str) -> None:
    case = Case(CARD.name, variant, "reference", Topology(), ODD)
    for measure in ("bits", "flops"):
        assert [found.reason for found in lab.measure(measure, case) if found.verdict != "pass"] == []


def test_what_the_reference_keeps_is_the_law_s_on_the_deep_model(lab: Lab) -> None:
    for variant in ("no_recompute", "recompute_sqrt", "recompute_operators"):
        found = {
            m.quantity: m for m in lab.measure("memory", Case(CARD.name, variant, "reference", Topology(), DROPPED))
        }
        assert found["activations"].value == pytest.approx(found["activations"].law, rel=0.02)


@pytest.mark.parametrize("variant", ["recompute_nested", "recompute_operators", "recompute_attention"])
def test_replays_compose_with_tensor_and_data_parallelism(lab: Lab, variant: str) -> None:
    case = Case(CARD.name, variant, "reference", Topology(dp=2, tp=2), PLAIN)
    for measure in ("bits", "flops", "traffic"):
        assert [found.reason for found in lab.measure(measure, case) if found.verdict != "pass"] == []


def test_the_laws_order_the_variants() -> None:
    kept = {name: laws.activations(DROPPED, Topology(), **options) for name, options in CARD.variants.items()}
    assert sorted(kept, key=lambda name: kept[name]) == [
        "recompute_nested",
        "recompute_sqrt",
        "recompute_two_layers",
        "recompute_layers",
        "recompute_offload",
        "recompute_operators",
        "recompute_attention",
        "no_recompute",
    ]
    again = {name: laws.recomputed(DROPPED, Topology(), **options) for name, options in CARD.variants.items()}
    step = laws.step(DROPPED, Topology())
    assert again["recompute_sqrt"] / step == pytest.approx(1 / 3, rel=0.02)
    assert again["recompute_nested"] == 4 * again["recompute_layers"]
    assert again["recompute_operators"] == again["recompute_attention"] < 0.05 * step


def test_a_contradiction_of_the_course_is_found_by_counting() -> None:
    def record(variant: str, quantity: str, value: float) -> dict[str, object]:
        return {"variant": variant, "quantity": quantity, "value": value, **claims.HERE}

    step = laws.step(DROPPED, Topology())
    again = laws.recomputed(DROPPED, Topology(), each="sqrt")
    records = [record("recompute_sqrt", "recomputed", again), record("recompute_sqrt", "step", step + again)]
    assert claims.course_compute(records).detail["status"] == "contradicted"
    assert claims.chen_compute(records).detail["status"] == "reproduced"
    assert claims.chen_compute([]).detail["status"] == "out of reach here"
