"""Axes: round numbers around all values, whatever the values are."""

import pytest

from reports import draw


@pytest.mark.parametrize(
    ("low", "high", "about", "found"),
    [
        (0, 4, 5, [0, 1, 2, 3, 4]),
        (0, 14.8, 5, [0, 5, 10, 15]),
        (3.1, 6.9, 4, [3, 4, 5, 6, 7]),
        (2, 2, 4, [1.8, 2.2]),
        (0, 0, 4, [-1, 1]),
    ],
)
def test_the_numbers_of_an_axis_are_round_and_hold_all_values(
    low: float, high: float, about: int, found: list[float]
) -> None:
    assert draw.ticks(low, high, about) == pytest.approx(found)


@pytest.mark.parametrize(("values", "found"), [([3e-7, 2e-9], [-9, -8, -7, -6]), ([10.0], [1, 2]), ([0.5], [-1, 0])])
def test_a_logarithmic_axis_has_the_powers_of_ten_around_all_values(values: list[float], found: list[int]) -> None:
    assert draw.powers(values) == found


def test_a_name_that_is_too_long_is_cut_and_markup_is_text() -> None:
    marks = [draw.Mark("<v>", "an_engine_with_a_long_name", "dot", 1.0, 1.0, "var(--e1)")]
    svg = draw.rows(marks, ["<v>"], ["an_engine_with_a_long_name"], "s", "<label>")
    assert ">an_engine_with…</text>" in svg
    assert ">&lt;v&gt;</text>" in svg
    assert 'aria-label="&lt;label&gt;"' in svg
