"""A topic of each contract is one folder, and is measured like any other; the named measure finds each planted
fault."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from harness.measures import memory
from harness.plan import cases as plan
from harness.run.lab import Lab
from harness.spec import Card, Case, Engine, Measurement
from tests import labs
from tests.examples import bandit, extraction, low_rank, recomputed

CARDS = {module.CARD.name: module.CARD for module in (low_rank, extraction, bandit, recomputed)}
REQUEST = plan.Request(depth="full", ranks=2)


def every() -> list[tuple[str, Case]]:
    return [
        (measure, case)
        for case in plan.cases(REQUEST, CARDS)
        for measure in plan.measures(case, REQUEST, CARDS[case.topic])
        if measure not in ("throughput", "bottleneck")  # which noise decides
    ]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = labs.make(CARDS, capacity=2)
    yield lab
    lab.runner.close()


@pytest.mark.parametrize(("measure", "case"), every(), ids=str)
def test_every_promise_of_the_contract_is_measured_and_passes(lab: Lab, measure: str, case: Case) -> None:
    found = lab.measure(measure, case)
    assert {measurement.verdict for measurement in found} == {"pass"}, [measurement.reason for measurement in found]


def test_each_contract_has_the_measures_that_suit_it() -> None:
    measures: dict[str, set[str]] = {}
    for measure, case in every():
        measures.setdefault(case.topic, set()).add(measure)
    assert measures == {
        "low_rank": {"parity", "memory", "traffic", "trace"},
        "extraction": {"parity", "memory"},
        "bandit": {"learning"},
        "recomputed": {"memory", "bits"},
    }


def broken(lab: Lab, card: Card, build: str, measure: str, topology: str, variant: str = "") -> dict[str, Measurement]:
    """Measurements about a planted fault, by quantity."""
    name = build.partition(":")[2]
    faulty = replace(card, engines={"reference": card.engines["reference"], name: Engine(build)})
    lab.runner.cards = {**CARDS, card.name: faulty}
    cases = plan.cases(replace(REQUEST, engines=(name,)), {card.name: faulty})
    case = next(case for case in cases if str(case.topology) == topology and variant in case.variant)
    return {measurement.quantity: measurement for measurement in lab.measure(measure, case)}


def test_a_frozen_tensor_that_changes_by_its_last_place_is_found(lab: Lab) -> None:
    found = broken(lab, low_rank.CARD, "tests.examples.low_rank.reference:thawed", "parity", "dp2")
    assert found["frozen"].verdict == "fail"
    assert "W0" in found["frozen"].reason
    assert {q for q, measurement in found.items() if measurement.verdict == "fail"} == {"frozen"}


def test_a_count_that_is_off_by_one_is_found(lab: Lab) -> None:
    found = broken(lab, low_rank.CARD, "tests.examples.low_rank.reference:counts_twice", "trace", "dp2")
    assert found["steps"].verdict == "fail"
    assert found["steps"].reason == "step 1: 2 instead of 1"
    assert found["norm"].verdict == "pass"


def test_a_text_that_is_another_is_found(lab: Lab) -> None:
    found = broken(lab, extraction.CARD, "tests.examples.test_examples:hasty", "parity", "dp1")
    assert found["exact"].verdict == "fail"
    assert found["exact"].reason.startswith("4 of 5 exact outputs differ")


def test_an_engine_that_does_not_learn_is_found(lab: Lab) -> None:
    found = broken(lab, bandit.CARD, "tests.examples.bandit.on_autograd:idle", "learning", "dp1")
    assert found["score"].verdict == "fail"
    assert "residuals" not in found  # the reference tells no losses


def test_a_variant_that_is_not_bit_equal_to_its_twin_is_found(lab: Lab) -> None:
    twins = recomputed.CARD.variants
    found = broken(lab, recomputed.CARD, "tests.examples.recomputed.reference:other_draws", "bits", "dp1", [*twins][1])
    assert found["tensors"].verdict == "fail"
    assert "differ from those of kept_layers, first model." in found["tensors"].reason


def test_a_function_that_returns_no_dict_is_told_so(lab: Lab) -> None:
    found = broken(lab, extraction.CARD, "tests.examples.test_examples:bare", "parity", "dp1")
    assert found["run"].verdict == "error"
    assert "a Function returns a dict of outputs by name, not a list" in found["run"].reason


def test_a_name_that_the_engine_does_not_observe_is_told(lab: Lab) -> None:
    found = broken(lab, low_rank.CARD, "tests.examples.low_rank.reference:misspelt", "trace", "dp1")
    assert (found["steps"].verdict, found["steps"].reason) == ("skipped", "the engine observes stepps, norm, not steps")
    assert found["norm"].verdict == "pass"


def test_a_measure_that_raises_is_an_error_of_its_case(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: object) -> None:
        raise TypeError("a mistake in the measure")

    monkeypatch.setattr(memory, "take", take)
    lab.runner.cards = CARDS
    case = next(case for measure, case in every() if measure == "memory")
    (measurement,) = lab.measure("memory", case)
    assert (measurement.measure, measurement.verdict) == ("memory", "error")
    assert "a mistake in the measure" in measurement.reason


def bare(workload: object, topology: object, strict: bool) -> object:
    return lambda inputs: inputs["completions"]


def hasty(workload: object, topology: object, strict: bool) -> object:
    """A planted fault: the first number instead of the last."""
    import re

    def extract(inputs):  # type: ignore[no-untyped-def]
        found = [(re.findall(r"\d+", text) or [""])[0] for text in inputs["completions"]]
        right = [answer == truth for answer, truth in zip(found, inputs["answers"], strict=True)]
        return {"extracted": found, "right": right, "accuracy": sum(right) / len(right)}

    return extract
