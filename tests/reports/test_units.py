import math

import pytest

from reports import units


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "bytes", "0\u202fB"),
        (1023, "bytes", "1023\u202fB"),
        (1024, "bytes", "1.00\u202fKiB"),
        (3.5 * 2**20, "bytes", "3.50\u202fMiB"),
        (80 * 2**30, "bytes", "80.0\u202fGiB"),
        (0.0123, "s", "12.3\u202fms"),
        (75, "s", "75.0\u202fs"),
        (4e-6, "s", "4.00\u202fµs"),
        (2310.0, "× floor", "2\u2009310×"),
        (1.2e-7, "", "1.2·10⁻⁷"),
        (-0.5, "", "−0.500"),
        (9.999, "", "10.0"),
        (0.76, "of linear", "0.760\u202fof linear"),
        (None, "bytes", "–"),
        (math.nan, "s", "not a number"),
        (math.inf, "bytes", "∞"),
    ],
)
def test_figures_are_written_with_three_digits_and_a_fitting_unit(value: float | None, unit: str, text: str) -> None:
    assert units.figure(value, unit) == text


def test_ratios_keep_two_decimals_below_ten() -> None:
    assert [units.ratio(value) for value in (1.0, 1.043, 9.994, 12.0, None)] == [
        "1.00×",
        "1.04×",
        "9.99×",
        "12.0×",
        "–",
    ]


def test_large_rates_take_a_prefix() -> None:
    assert units.si(12_345.0, "tokens/s") == "12.3\u202fk tokens/s"


def test_relative_sizes_are_per_cent_until_they_are_tiny() -> None:
    assert [units.share(value) for value in (0.008, 4e-7)] == ["0.8\u202f%", "4.0·10⁻⁷"]


def test_a_duration_is_hours_minutes_and_seconds() -> None:
    assert units.duration("2026-03-14T09:00:00+00:00", "2026-03-14T10:02:03+00:00") == "1\u202fh 2\u202fmin 3\u202fs"
    assert units.duration("2026-03-14T09:00:00+00:00", None) == "–"
