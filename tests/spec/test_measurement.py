"""Measurements: the one that decides, and the outcome of a published claim."""

import pytest

from harness.spec import VERDICTS, Measurement, assessed, measured
from harness.spec.measurement import worst


def measurement(verdict: str, quantity: str = "peak") -> Measurement:
    return Measurement("memory", quantity, 1.0, "B", verdict, "because")


def test_the_first_of_the_worst_verdict_decides() -> None:
    found = [measurement("pass"), measurement("fail", "first"), measurement("fail", "second"), measurement("skipped")]
    assert worst(found).quantity == "first"
    assert worst([measurement(verdict) for verdict in reversed(VERDICTS)]).verdict == "error"


@pytest.mark.parametrize(("field", "value"), [("verdict", "ok"), ("direction", "up")])
def test_an_unknown_word_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field} '{value}' is none of "):
        measurement("pass").but(**{field: value})


def test_a_contradicted_claim_fails_and_one_that_cannot_be_tested_is_skipped() -> None:
    assert assessed("x", "contradicted", "why", "1 + 1", value=2.0).verdict == "fail"
    found = assessed("x", "out of reach here", "no such GPU")
    assert (found.verdict, found.value, found.detail["status"]) == ("skipped", None, "out of reach here")


def test_measured_takes_the_values_of_equal_rows_that_have_one() -> None:
    rows = [{"engine": "torch", "value": 1.0}, {"engine": "torch", "value": None}, {"engine": "trl", "value": 3.0}]
    assert measured(rows, engine="torch") == [1.0]
    assert measured(rows) == [1.0, 3.0]
