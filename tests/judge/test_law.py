"""Measured and promised values: within the tolerance, to the byte if it is zero, and with padding."""

from dataclasses import replace

import pytest

from harness import catalog
from harness.judge import law as law_judge
from harness.spec import Case, Law, Topology, Workload

EXACT, ABOUT = (Law("traffic", "bytes", "module:formula", tolerance, "a paper, §1") for tolerance in (0.0, 0.05))


@pytest.mark.parametrize(
    ("law", "value", "verdict"),
    [
        (EXACT, 1000, "pass"),
        (EXACT, 1001, "fail"),
        (EXACT, 999, "fail"),
        (ABOUT, 1050, "pass"),
        (ABOUT, 950, "pass"),
        (ABOUT, 1051, "fail"),
        (ABOUT, 949, "fail"),
    ],
)
def test_the_tolerance_bounds_either_side(law: Law, value: float, verdict: str) -> None:
    assert law_judge.judge(law, 1000.0, value).verdict == verdict


@pytest.mark.parametrize("law", [EXACT, ABOUT])
def test_less_memory_than_promised_is_no_failure_and_is_said(law: Law) -> None:
    measurement = law_judge.judge(replace(law, measure="memory", direction="at_most"), 1000.0, 900.0)
    assert measurement.verdict == "pass"
    assert "less than promised" in measurement.reason
    assert law_judge.judge(replace(law, measure="memory", direction="at_most"), 1000.0, 1100.0).verdict == "fail"


def test_far_less_than_promised_is_inconclusive_since_the_meter_may_miss_something() -> None:
    law = replace(ABOUT, measure="memory", direction="at_most")
    assert law_judge.judge(law, 1000.0, 501.0).verdict == "pass"
    measurement = law_judge.judge(law, 1000.0, 499.0)
    assert measurement.verdict == "inconclusive"
    assert "the meter may miss something" in measurement.reason


@pytest.mark.parametrize(
    ("value", "verdict", "said"),
    [
        (1000, "pass", ""),
        (1032, "pass", "of which 32 may be padding"),
        (1064, "pass", "of which 64 may be padding"),
        (1065, "fail", "of which 64 may be padding"),
        (999, "fail", ""),
    ],
)
def test_padding_is_allowed_on_top_and_named(value: float, verdict: str, said: str) -> None:
    measurement = law_judge.judge(EXACT, 1000.0, value, padding=64.0)
    assert measurement.verdict == verdict
    assert said in measurement.reason
    assert bool(said) == ("padding" in measurement.reason)
    assert measurement.detail["padding"] == 64.0


def test_a_buffer_that_the_ranks_do_not_divide_may_be_off_by_half_a_unit() -> None:
    assert law_judge.judge(EXACT, 1000.5, 1001).verdict == "pass"


def test_the_measurement_holds_figure_promise_bound_and_source() -> None:
    measurement = law_judge.judge(ABOUT, 1000.0, 1100.0)
    assert (measurement.value, measurement.law, measurement.bound, measurement.unit) == (1100.0, 1000.0, 1050.0, "B")
    assert (measurement.measure, measurement.quantity, measurement.direction) == ("traffic", "bytes", "equal")
    assert "measured 1,100 B, promised 1,000 (+10.00%); a paper, §1" in measurement.reason


def test_a_promise_of_nothing_can_be_kept_and_broken() -> None:
    assert law_judge.judge(EXACT, 0.0, 0.0).verdict == "pass"
    assert law_judge.judge(EXACT, 0.0, 8.0).verdict == "fail"


@pytest.mark.parametrize(
    ("engine", "share", "verdict"),
    [
        ("reference", 0.75, "fail"),
        ("torch", 0.75, "pass"),
        ("torch", 1.25, "fail"),
        ("torch", 0.25, "inconclusive"),  # the meter may miss something
    ],
)
def test_a_right_engine_may_send_less_than_promised_and_the_reference_may_not(
    engine: str, share: float, verdict: str
) -> None:
    card, case = catalog.topics()["zero"], Case("zero", "zero2", engine, Topology(dp=2), Workload())
    promised = law_judge.against(card, case, "traffic", "bytes", 0.0).law
    assert promised
    assert law_judge.against(card, case, "traffic", "bytes", share * promised).verdict == verdict
