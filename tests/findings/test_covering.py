"""A finding covers a failure only where its size is the known one: a new fault does not hide behind an old one."""

import math

import pytest

from harness.spec import Measurement, Symptom

PEAK = Measurement("memory", "peak", 130.0, "B", "fail", "too much", law=100.0)
LOSS = Measurement("parity", "loss", 80.0, "× floor", "fail", "shapes differ", detail={"error": 0.007})


@pytest.mark.parametrize(
    ("measurement", "size"),
    [
        (PEAK, 1.3),
        (PEAK.but(law=None), 130.0),
        (PEAK.but(law=0.0), 130.0),
        (PEAK.but(value=None), None),
        (LOSS, 0.007),
    ],
)
def test_a_size_is_the_relative_error_or_the_value_over_its_law_or_the_value(
    measurement: Measurement, size: float | None
) -> None:
    assert measurement.size == size


def test_a_symptom_is_about_one_figure_of_the_cases_that_it_matches() -> None:
    symptom = Symptom("zero?-deepspeed-*", "memory", "peak", (1.2, 1.4))
    case = "zero3-deepspeed-dp2-fp32"
    assert symptom.covers(case, PEAK)
    assert not symptom.covers("zero3-torch-dp2-fp32", PEAK)
    assert not symptom.covers(case, PEAK.but(quantity="states"))
    assert not symptom.covers(case, PEAK.but(measure="traffic"))
    assert not symptom.covers(case, PEAK.but(verdict="pass"))


@pytest.mark.parametrize(("value", "inside"), [(119.9, False), (120.0, True), (140.0, True), (140.1, False)])
def test_both_ends_of_the_band_belong_to_it(value: float, inside: bool) -> None:
    symptom = Symptom("*", "memory", "peak", (1.2, 1.4))
    assert symptom.covers("a", PEAK.but(value=value)) is inside
    assert symptom.about("a", PEAK.but(value=value))


@pytest.mark.parametrize("size", [None, math.nan, math.inf])
def test_a_failure_without_a_figure_is_covered_by_its_reason(size: float | None) -> None:
    failure = LOSS.but(value=None, detail={"error": size})
    assert Symptom("*", "parity", "loss", says="shapes differ").covers("a", failure)
    assert not Symptom("*", "parity", "loss", says="a rank died").covers("a", failure)
    assert not Symptom("*", "parity", "loss", (0.0, 1.0)).covers("a", failure)
    assert not Symptom("*", "parity", "loss", says="shapes differ").covers("a", LOSS)
