"""Where the level of a series changed, and how sure that is."""

import sys

import numpy as np
import pytest

from harness.judge.shift import SEGMENT, MissingOtavaError, shifts

NOISE = np.random.default_rng(7).normal(0, 1, 60)


@pytest.fixture
def otava() -> None:
    pytest.importorskip("otava.analysis", reason="needs Apache Otava: pip install 'plumbline[trend]'")


@pytest.mark.usefixtures("otava")
class TestShifts:
    def test_a_step_is_found_where_it_is_with_the_levels_around_it(self) -> None:
        (found,) = shifts([*(100 + NOISE[:40]), *(110 + NOISE[40:])])
        assert found.place == 40
        assert found.before == pytest.approx(100, abs=1)
        assert found.after == pytest.approx(110, abs=1)
        assert found.p < 1e-6

    def test_an_exact_figure_changed_for_certain_once_a_segment_has_the_new_one(self) -> None:
        for after in range(1, SEGMENT):
            assert shifts([4096.0] * 20 + [4097.0] * after) == []
        (found,) = shifts([4096.0] * 20 + [4097.0] * SEGMENT)
        assert found == (20, 0.0, 4096.0, 4097.0)

    def test_a_spike_is_no_level_and_hides_none(self) -> None:
        spiky = 100 + NOISE
        spiky[30] += 50
        assert [found for found in shifts(spiky.tolist()) if found.p < 0.05] == []
        stepped = spiky + 5.0 * (np.arange(60) >= 45)
        assert min(shifts(stepped.tolist()), key=lambda found: found.p).place == 45

    def test_three_stray_runs_of_five_are_no_level_and_four_of_five_are_one(self) -> None:
        stray = 100 + NOISE[:45]
        stray[[40, 42, 43]] += 20
        assert all(found.p > 0.05 for nights in (44, 45) for found in shifts(stray[:nights]))
        stray[44] += 20
        assert min(shifts(stray), key=lambda found: found.p).place == 40

    def test_a_stray_run_does_not_hide_a_fresh_step(self) -> None:
        stepped = 100 + NOISE[:45]
        stepped[40:] += 6
        stepped[42] += 20
        (found,) = shifts(stepped)
        assert (found.place, found.p < 1e-4) == (40, True)

    def test_a_value_that_is_not_finite_is_no_value_and_moves_no_place(self) -> None:
        values = [float("nan"), *(100 + NOISE[:40]), float("inf"), *(110 + NOISE[40:50])]
        (found,) = shifts(values)
        assert found.place == 42
        assert shifts([float("nan")] * 20) == shifts([1.0, float("inf")] * 10) == []

    def test_a_level_that_is_also_noisier_is_found(self) -> None:
        (found,) = shifts([*(100 + NOISE[:40]), *(130 + 8 * NOISE[40:48])])
        assert found.place == 40

    def test_chance_alone_seldom_looks_unlikely(self) -> None:
        noise = np.random.default_rng(3).normal(100, 1, (200, 40))
        least = [min((found.p for found in shifts(row)), default=1.0) for row in noise.tolist()]
        assert sum(p <= 0.1 for p in least) <= 0.1 * 200

    def test_few_or_equal_values_have_no_change(self) -> None:
        assert shifts([]) == []
        assert shifts([1.0, 2.0, 1.0, 2.0, 9.0, 9.0, 9.0]) == []
        assert shifts([5.0] * 40) == []


def test_without_otava_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "otava", None)
    monkeypatch.setitem(sys.modules, "otava.analysis", None)
    with pytest.raises(MissingOtavaError, match=r"pip install 'plumbline\[trend\]'"):
        shifts([1.0, 2.0] * 10)
