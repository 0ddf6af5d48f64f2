"""Observed values are judged in floors, which depend on the CPU; their size is that of the error."""

import pytest

from harness.judge.parity import MARGIN, Oracle, Reference
from harness.judge.trace import judge


def reference(*steps: float, floor: float) -> Reference:
    oracle = Oracle({}, [], {}, [{"loss": step} for step in steps])
    return Reference(oracle, {}, [], {"loss": floor})


@pytest.mark.parametrize("floor", [1e-7, 1e-3])
def test_the_size_of_a_deviation_is_its_relative_error_whatever_the_floor(floor: float) -> None:
    (measurement,) = judge([{"loss": 2.5}, {"loss": 4.95}], reference(2.5, 4.5, floor=floor), True)
    assert measurement.verdict == "fail"
    assert measurement.size == pytest.approx(0.1)
    assert measurement.value == pytest.approx(0.1 / floor)


def test_an_error_below_the_bound_passes() -> None:
    (measurement,) = judge([{"loss": 2.5 * (1 + 0.9 * MARGIN * 1e-3)}], reference(2.5, floor=1e-3), True)
    assert measurement.verdict == "pass"
