"""Learning curves compared with the float64 model's."""

import math

import pytest

from harness.judge import curve
from harness.judge.parity import MARGIN

ORACLE = [4.0 * 0.9**step for step in range(20)]
FLOOR = [1e-4 * (step + 1) for step in range(20)]


def off(at: int, floors: float) -> list[float]:
    return [loss * (1 + floors * FLOOR[step] * (step == at)) for step, loss in enumerate(ORACLE)]


def test_the_same_curve_passes_and_says_where_it_went() -> None:
    measurement = curve.judge(ORACLE, ORACLE, FLOOR)
    assert (measurement.verdict, measurement.measure, measurement.unit) == ("pass", "quality", "nats")
    assert measurement.value == pytest.approx(sum(ORACLE[-2:]) / 2)
    assert measurement.detail == {"losses": ORACLE, "oracle_losses": ORACLE}


@pytest.mark.parametrize(
    ("floors", "verdict"), [(0.9 * MARGIN, "pass"), (1.1 * MARGIN, "fail"), (-1.1 * MARGIN, "fail")]
)
def test_the_verdict_turns_at_the_margin_at_any_step(floors: float, verdict: str) -> None:
    for at in (0, 7, 19):
        measurement = curve.judge(off(at, floors), ORACLE, FLOOR)
        assert measurement.verdict == verdict
        assert f"at step {at + 1}" in measurement.reason


def test_the_floor_at_a_step_is_the_largest_up_to_it() -> None:
    dip = [*FLOOR[:10], 0.0, *FLOOR[11:]]
    assert curve.judge(off(10, 1.0), ORACLE, dip).verdict == "pass"


def test_a_curve_that_does_not_fall_fails_though_the_oracle_does_not_fall_either() -> None:
    flat = [4.0] * 20
    measurement = curve.judge(flat, flat, FLOOR)
    assert measurement.verdict == "fail"
    assert "does not fall" in measurement.reason


def test_a_loss_that_is_no_number_fails() -> None:
    assert curve.judge([*ORACLE[:5], math.nan, *ORACLE[6:]], ORACLE, FLOOR).verdict == "fail"


def test_a_curve_that_is_cut_short_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer"):
        curve.judge(ORACLE[:-1], ORACLE, FLOOR)
