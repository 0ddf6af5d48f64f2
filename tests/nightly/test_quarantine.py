"""A failure in quarantine does not fail the night, as long as its entry counts."""

import datetime
from typing import Any

import pytest

from harness.nightly.quarantine import Entry, problems, split

TODAY = datetime.date(2026, 11, 29)
ENTRY = Entry("zero3-deepspeed-*", "ada", TODAY, "waits for a release", "memory")
FAILURE: dict[str, Any] = {"measure": "memory", "case": "zero3-deepspeed-dp2-fp32", "reason": "too much"}
TESTS = [("memory", "zero3-deepspeed-dp2-fp32"), ("parity", "zero1-torch-dp2-fp32")]


def test_a_failure_in_quarantine_is_told_with_owner_day_and_reason() -> None:
    free, held = split([FAILURE], [ENTRY], TODAY)
    assert free == []
    assert held == [{**FAILURE, "owner": "ada", "until": "2026-11-29", "why": "waits for a release"}]


@pytest.mark.parametrize("change", [{"measure": "parity"}, {"case": "zero3-torch-dp2-fp32"}])
def test_another_measure_or_case_is_free(change: dict[str, str]) -> None:
    assert split([{**FAILURE, **change}], [ENTRY], TODAY) == ([{**FAILURE, **change}], [])


def test_an_entry_counts_on_its_last_day_and_not_on_the_next() -> None:
    tomorrow = TODAY + datetime.timedelta(days=1)
    assert problems([ENTRY], TESTS, TODAY) == []
    assert split([FAILURE], [ENTRY], tomorrow) == ([FAILURE], [])
    (told,) = problems([ENTRY], TESTS, tomorrow)
    assert told == "zero3-deepspeed-* memory (ada, until 2026-11-29) is expired: repair it, or set a later day"


def test_an_entry_that_matches_no_case_is_wrong_if_all_cases_ran() -> None:
    other = Entry("zero3-megatron-*", "ada", TODAY, "?")
    (told,) = problems([ENTRY, other], TESTS, TODAY)
    assert told.startswith("zero3-megatron-* (ada, until 2026-11-29) matches no case")
    assert problems([other], None, TODAY) == []
