"""A NaN on one data-parallel rank reaches every weight on every rank, or the step changes nothing anywhere."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from harness.judge import nonfinite
from harness.measures.nonfinite import SAID
from harness.plan import cases as plan
from harness.plan.cases import Request
from harness.run.lab import Lab
from harness.spec import Case, Engine, Measurement, Topology
from harness.spec.named import NAMED
from harness.spec.run import Weight
from harness.spec.workload import POISONED_STEP, POISONED_WEIGHT
from impls.common.data import batch
from impls.common.weights import initial
from tests import labs
from tests.planted.faults import CARDS

POISONED = NAMED["poisoned"]
DDP = Case("data_parallel", "ddp", "reference", Topology(dp=2), POISONED)
TRAINED, NOTHING, NAN, PART = (0, 8), (0, 0), (8, 0), (5, 3)  # elements that are not finite, and that are changed
Fate = tuple[int, int]


def rank(*fates: Fate | None) -> list[dict[str, Weight]]:
    """Two weights of eight elements, which fare alike in each of three steps; None: the rank returns none of them."""
    bits = str(fates).encode()
    return [{name: Weight(8, *fate, bits) for name in ("a", "b")} if fate else {} for fate in fates]


def judged(*ranks: list[dict[str, Weight]], clipped: bool = True) -> dict[str, Measurement]:
    return {found.quantity: found for found in nonfinite.judge(ranks, clipped)}


@pytest.mark.parametrize(
    ("fates", "reason"),
    [
        ((TRAINED, NAN, NAN), "every element is NaN on all ranks after step 2: the run shows it"),
        ((TRAINED, NOTHING, TRAINED), "step 2 is skipped on all ranks, and the next one trains on"),
    ],
)
def test_nan_everywhere_passes_and_so_does_a_step_that_all_ranks_skip(fates: tuple[Fate, ...], reason: str) -> None:
    found = judged(rank(*fates), rank(*fates))
    assert {each.verdict for each in found.values()} == {"pass"}
    assert (found["lost"].value, found["lost"].reason) == (0.0, reason)


@pytest.mark.parametrize(
    ("fates", "lost", "reason"),
    [
        ((TRAINED, TRAINED, TRAINED), 100.0, "0 % of the elements are NaN and 100 % are updated with finite values"),
        ((TRAINED, PART, NAN), 37.5, "62.5 % of the elements are NaN and 37.5 % are updated with finite values (a, b)"),
        ((TRAINED, (5, 0), NAN), 37.5, "62.5 % of the elements are NaN and no other changes on all ranks"),
        ((TRAINED, NOTHING, NAN), 100.0, "skipped on all ranks, but the next one is wrong: 100 % of the elements are"),
        ((TRAINED, NOTHING, NOTHING), 100.0, "skipped on all ranks, but the next one is wrong: 0 % of the elements"),
        (((1, 7), NAN, NAN), 12.5, "12.5 % of the elements are NaN before step 2"),
    ],
    ids=["dropped", "finite beside NaN", "unchanged beside NaN", "skipped too late", "stuck", "too early"],
)
def test_a_nan_that_does_not_reach_every_element_fails(fates: tuple[Fate, ...], lost: float, reason: str) -> None:
    found = judged(rank(*fates), rank(*fates))["lost"]
    assert (found.verdict, found.value) == ("fail", lost)
    assert reason in found.reason


def test_ranks_that_fare_differently_fail_and_each_is_told() -> None:
    found = judged(rank(TRAINED, NAN, NAN), rank(TRAINED, NOTHING, NAN))
    assert (found["lost"].verdict, found["replicas"].verdict) == ("fail", "fail")
    assert "100 % of the elements are NaN and no other changes on rank 0; 0 % of" in found["lost"].reason
    assert "after step 1, rank 1's copy of a, b differs" in found["replicas"].reason


def test_without_clipping_a_part_of_each_weight_is_enough() -> None:
    assert "every weight has NaN" in judged(rank(TRAINED, PART, NAN), clipped=False)["lost"].reason
    assert judged(rank(TRAINED, PART, NAN), clipped=True)["lost"].verdict == "fail"
    assert judged(rank(TRAINED, TRAINED, TRAINED), clipped=False)["lost"].verdict == "fail"


@pytest.mark.parametrize("fate", [NAN, PART])
def test_ranks_that_return_no_weights_are_left_out(fate: Fate) -> None:
    alone, found = judged(rank(TRAINED, fate, NAN)), judged(rank(TRAINED, fate, NAN), rank(None, None, None))
    assert found["lost"] == alone["lost"]
    assert found["replicas"].verdict == "pass"


@pytest.mark.parametrize("message", ["found NaN in local grad", "loss is not finite", "Infinite norm", "grad overflow"])
def test_an_error_that_speaks_of_it_is_known(message: str) -> None:
    assert SAID.search(message)


@pytest.mark.parametrize(
    "message", ["AssertionError", "information is missing", "the inner nanny", "hernan", "infra is down"]
)
def test_an_error_about_something_else_is_not(message: str) -> None:
    assert not SAID.search(message)


def test_the_poisoned_token_occurs_once_and_its_row_alone_is_nan() -> None:
    places = [
        (step, *place)
        for step in range(1, 11)
        for place in (batch(POISONED, step - 1).inputs == POISONED.model.vocab_size - 1).nonzero().tolist()
    ]
    assert places == [(POISONED_STEP, POISONED.batch_size - 1, 0)]
    assert not any((batch(POISONED, step).labels == POISONED.model.vocab_size - 1).any() for step in range(10))
    healthy = dict(initial(POISONED.with_(poisoned=False)))
    for name, tensor in initial(POISONED):
        wrong = tensor.isnan()
        assert torch.equal(tensor[~wrong], healthy[name][~wrong])
        row = torch.arange(len(tensor)) == (len(tensor) - 1 if name == POISONED_WEIGHT else -1)
        assert torch.equal(wrong, row.view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor))


@pytest.mark.parametrize("change", [{"data": "corpus.txt"}, {"weights": "folder"}, {"model": NAMED["meshed"].model}])
def test_poison_is_refused_where_it_would_be_elsewhere_or_everywhere(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="poisoned requires synthetic data"):
        POISONED.with_(**change)


@pytest.mark.parametrize("request_", [Request(), Request(workloads=("poisoned",))], ids=["grid", "asked for"])
def test_of_poisoned_work_nothing_else_is_measured_and_of_other_work_it_is_not(request_: Request) -> None:
    for card in CARDS.values():
        case = Case(card.name, next(iter(card.variants)), "reference", Topology(dp=2), POISONED.with_(steps=100))
        assert set(plan.measures(case, request_, card)) <= {"nonfinite"}
        other = replace(case, workload=NAMED["thorough"])
        assert "nonfinite" not in plan.measures(other, request_, card)
    assert plan.measures(DDP, request_, CARDS["data_parallel"]) == ["nonfinite"]


def test_the_default_grid_poisons_every_engine_and_variant_of_clipping() -> None:
    request = Request(topics=("gradient_clipping",), depth="default")
    card = CARDS["gradient_clipping"]
    found = {(c.engine, c.variant) for c in plan.cases(request, plan.cards(request)) if c.workload.poisoned}
    assert found == {(name, variant) for name, e in card.engines.items() for variant in e.variants or card.variants}


def test_poisoned_work_stands_for_no_other_case() -> None:
    request = Request(topics=("gradient_clipping", "zero"), depth="default", cores=1)
    cards = plan.cards(request)
    every = plan.every(request, cards)
    healthy = plan.at_depth([case for case in every if not case.workload.poisoned], request, cards)
    assert [case for case in plan.at_depth(every, request, cards) if not case.workload.poisoned] == healthy


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    honest = {
        name: Engine(f"tests.planted.honest:{name}", requires=("torch",))
        for name in ("skipped_on_all_ranks", "stopped_on_all_ranks")
    }
    card = CARDS["data_parallel"]
    lab = labs.make({card.name: replace(card, engines={**card.engines, **honest})})
    yield lab
    lab.runner.close()


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ("reference", "every element is NaN on all ranks"),
        ("skipped_on_all_ranks", "skipped on all ranks, and the next one trains on"),
        ("stopped_on_all_ranks", "every rank stops: RuntimeError: the gradient is not finite"),
    ],
)
def test_each_honest_answer_passes_with_its_name(lab: Lab, engine: str, reason: str) -> None:
    found = lab.measure("nonfinite", replace(DDP, engine=engine))
    assert {each.verdict for each in found} == {"pass"}
    assert reason in found[0].reason
