"""Faults that the suites must catch, run as every case is run; and the honest references, which must pass."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import catalog
from harness.measures import MEASURES
from harness.run.lab import Lab
from harness.spec import DTYPES, Case, Measurement
from harness.spec.fault import (
    EXACT,
    GRADIENT,
    LATER_GRADIENT,
    LOSS,
    OUTPUT,
    REPLAYED,
    REPLICAS,
    UPDATE,
)
from tests import labs
from tests.planted.faults import BROKEN, CARDS, EVERY, FAULTS, fails, judged, of

SEEDS = range(1, 11)
FEW = 1  # seeds of other topics, and in float32 of work other than tiny; calibration has another one of each
ALL = ("data_parallel", "zero", "tensor_parallel", "flash_attention", "preference")
# Figures of trainers that adapt a frozen model, taken after the run.
BASE = frozenset({"frozen", "merged", "merged slope", "unmerged", "unmerged slope"})
ORDER = (OUTPUT | EXACT, GRADIENT, REPLAYED, LATER_GRADIENT, UPDATE, LOSS, REPLICAS, BASE)  # of a run
# Each measure that must find a fault, in each precision.
NAMED = [
    (name, measure, dtype) for name, p in FAULTS.items() for measure, found in p.fault.finds.items() for dtype in found
]
OTHER = [named for named in NAMED if named[1] != "parity"]


def one_of_each(kind: Callable[..., str], named: Iterable[tuple[str, ...]]) -> list[Any]:
    """A fault's name and what is looked at. The first one of a kind stands for its others, which are slow: all of them
    take three quarters of an hour."""
    seen, found = set[str](), []
    for each in named:
        found.append(pytest.param(*each, marks=[pytest.mark.slow] if kind(*each) in seen else []))
        seen.add(kind(*each))
    return found


@pytest.fixture(scope="module")
def recorded() -> list[tuple[Case, Measurement]]:
    return []


@pytest.fixture(scope="module")
def lab(recorded: list[tuple[Case, Measurement]], request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = labs.make(
        BROKEN, lambda case, measurements: recorded.extend((case, measurement) for measurement in measurements)
    )
    expected = [case for item in request.session.items for case in _checked(item)]
    lab.runner.expect(expected, expected, parity=True)  # two worlds at a time
    yield lab
    lab.runner.close()


def _checked(item: pytest.Item) -> list[Case]:
    """The cases whose checked runs a test of this file needs."""
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if item.path != Path(__file__) or "name" not in given:
        return []
    planted, dtype = FAULTS[given["name"]], given.get("dtype", "fp32")
    if "measure" not in given:
        return [planted.case(dtype)]
    apart = given["measure"] in ("timeline", "nonfinite")  # these have runs of their own
    return [] if apart else [planted.unbroken(dtype), planted.case(dtype)]


def in_parity(dtype: str) -> list[str]:
    return [name for name, measure, other in NAMED if (measure, other) == ("parity", dtype)]


def planted(lab: Lab, name: str, measure: str, dtype: str) -> dict[str, Measurement]:
    """The measurements on a reference with this fault."""
    return judged(lab, FAULTS[name], measure, dtype)


def clear(measurements: dict[str, Measurement]) -> set[str]:
    """The figures that fail at twice their bound, which no honest run comes near to (test_calibration.py)."""
    assert {measurement.verdict for measurement in measurements.values()} <= {"pass", "fail"}, measurements
    return {
        quantity
        for quantity, found in measurements.items()
        if found.verdict == "fail" and (found.value is None or found.value >= 2 * found.bound)
    }


def rank(quantity: str) -> int:
    """How late in a run it goes wrong."""
    return next(index for index, figures in enumerate(ORDER) if quantity in figures)


@pytest.mark.parametrize("topic", CARDS)
def test_every_topic_has_planted_faults_that_name_what_finds_them(topic: str) -> None:
    faults = of(CARDS[topic])
    assert faults
    for planted in faults:
        assert callable(catalog.load(planted.build))
        assert planted.fault.variant in CARDS[topic].variants
        assert planted.fault.finds.keys() <= MEASURES.keys()
        assert all(
            figures and dtype in DTYPES for found in planted.fault.finds.values() for dtype, figures in found.items()
        )


def test_the_names_of_faults_are_unique_and_no_variant_s() -> None:
    counts = Counter(fault.name for fault in EVERY)
    counts.update(variant for card in CARDS.values() for variant in card.variants)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("name", one_of_each(lambda name: FAULTS[name].topic, ((name,) for name in in_parity("fp32"))))
def test_a_planted_fault_fails_in_float32_where_it_is_and_nowhere_else(lab: Lab, name: str) -> None:
    found, must = planted(lab, name, "parity", "fp32"), FAULTS[name].figures("parity", "fp32")
    assert clear(found) >= must
    earliest = min(map(rank, must))
    assert all(measurement.verdict == "pass" for quantity, measurement in found.items() if rank(quantity) < earliest)
    # The replayed update is furthest off somewhere, and replicas differ from each other, not from the oracle.
    # A tensor that is missing diverges nowhere, an integer is told by itself, and so are tensors that must not change.
    diverged = sorted(
        (name for name in must - REPLAYED - REPLICAS - EXACT - {"frozen"} if found[name].value is not None), key=rank
    )
    for quantity in diverged:
        assert "first divergence: " in found[quantity].reason
    for quantity in diverged[:1]:
        assert FAULTS[name].fault.where in found[quantity].detail["first_divergence"]
    for quantity in must & EXACT:
        assert f"first {FAULTS[name].fault.where}" in found[quantity].reason


NARROW = [(name, dtype) for dtype in ("bf16", "fp16") for name in in_parity(dtype)]


@pytest.mark.parametrize(("name", "dtype"), one_of_each(lambda name, dtype: dtype, NARROW))
def test_a_planted_fault_fails_in_narrow_numbers_too(lab: Lab, name: str, dtype: str) -> None:
    assert clear(planted(lab, name, "parity", dtype)) >= FAULTS[name].figures("parity", dtype)


@pytest.mark.parametrize(("name", "measure", "dtype"), one_of_each(lambda name, measure, dtype: measure, OTHER))
def test_a_planted_fault_fails_the_measure_that_it_names_and_nothing_else_there(
    lab: Lab, name: str, measure: str, dtype: str
) -> None:
    unbroken = lab.measure(measure, FAULTS[name].unbroken(dtype))
    assert [measurement.reason for measurement in unbroken if fails(measurement)] == []
    found = planted(lab, name, measure, dtype)
    assert {quantity for quantity, measurement in found.items() if fails(measurement)} == FAULTS[name].figures(
        measure, dtype
    )


def test_what_failed_is_recorded_at_once(lab: Lab, recorded: list[tuple[Case, Measurement]]) -> None:
    recorded.clear()
    found = planted(lab, "wrong_sign", "parity", "fp32")
    assert [measurement for _, measurement in recorded] == list(found.values())
    assert {case.id for case, _ in recorded} == {"wrong_sign-wrong_sign-dp1-fp32"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_unbroken_references_pass_with_ten_other_seeds(lab: Lab, dtype: str) -> None:
    unbroken = {case.id: case for case in (FAULTS[name].unbroken(dtype) for name in in_parity(dtype))}.values()
    cases = [
        replace(case, workload=case.workload.with_(name=f"{case.workload.name}_seed{seed}", seed=seed))
        for seed in SEEDS
        for case in unbroken
        if (case.workload.name == "tiny" and case.topic in ALL)
        or (seed <= FEW and (case.workload.name == "tiny" or dtype == "fp32"))
    ]
    lab.runner.expect(cases, cases, parity=True)  # two worlds at a time
    wrong = {
        case.id: [found.reason for found in lab.measure("parity", case) if found.verdict != "pass"] for case in cases
    }
    assert {case: reasons for case, reasons in wrong.items() if reasons} == {}
