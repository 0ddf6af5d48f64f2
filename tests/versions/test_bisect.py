"""The bisection over releases, some of which cannot be judged."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.versions import RIGHT, UNKNOWN, WRONG, Cell
from harness.versions.bisect import bisect, change


def judged(states: list[str], *hints: str) -> tuple[list[str], dict[str, Cell]]:
    names = [f"1.{number}" for number in range(len(states))]
    return names, bisect(names, lambda version: Cell(states[names.index(version)]), hints)


def test_it_finds_the_first_bad_release_in_logarithmically_many_steps() -> None:
    names, found = judged([RIGHT] * 37 + [WRONG] * 27)
    assert change(names, found) == ("1.36", "1.37")
    assert list(found)[:2] == ["1.0", "1.63"]
    assert len(found) <= 2 + math.log2(64)


def test_it_finds_the_first_release_that_is_right_again() -> None:
    names, found = judged([WRONG, WRONG, WRONG, RIGHT])
    assert change(names, found) == ("1.2", "1.3")


def test_it_goes_round_releases_that_cannot_be_judged() -> None:
    names, found = judged([UNKNOWN, RIGHT, RIGHT, UNKNOWN, UNKNOWN, UNKNOWN, WRONG, UNKNOWN])
    assert change(names, found) == ("1.2", "1.6")
    assert found["1.4"].state == UNKNOWN


def test_between_equal_ends_it_searches_both_sides_of_a_release_that_is_known_to_differ() -> None:
    names, found = judged([RIGHT] * 9 + [WRONG] * 5 + [RIGHT] * 9, "0.9", "1.3", "1.11", "1.12")
    assert change(names, found) == ("1.8", "1.9")
    assert (found["1.13"].state, found["1.14"].state) == (WRONG, RIGHT)


@pytest.mark.parametrize("states", [[RIGHT] * 5, [WRONG] * 5, [UNKNOWN] * 5, [UNKNOWN, RIGHT, UNKNOWN]])
def test_no_change_is_claimed_where_the_ends_agree(states: list[str]) -> None:
    names, found = judged(states)
    assert change(names, found) is None


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_nothing_that_could_be_judged_is_left_between(before: int, after: int, data: st.DataObject) -> None:
    states = [RIGHT] * before + [WRONG] * after
    for place in data.draw(st.sets(st.integers(0, len(states) - 1))):
        states[place] = UNKNOWN
    names, found = judged(states)
    right, wrong = ([i for i, each in enumerate(states) if each == state] for state in (RIGHT, WRONG))
    expected = (names[right[-1]], names[wrong[0]]) if right and wrong else None
    assert change(names, found) == expected
