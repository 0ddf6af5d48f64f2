"""Step times of engines in interleaved rounds: noise decides nothing, a difference does, and drift affects all
alike."""

from math import inf
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.judge import speed
from harness.run.blocks import ROUNDS, TURN
from harness.spec import Measurement

STEPS = TURN["cpu"]["steps"]

Rounds = list[list[float]]


def rounds(seed: int, noise: float = 0.01, factor: float = 1.0, count: int = ROUNDS) -> Rounds:
    """Step times of about 10 ms × factor."""
    generator = np.random.default_rng(seed)
    return (0.010 * factor * np.exp(noise * generator.standard_normal((count, STEPS)))).tolist()


def drift(seed: int, count: int = ROUNDS) -> NDArray[np.float64]:
    return np.exp(np.cumsum(0.15 * np.random.default_rng(seed).standard_normal(count)))


def drifted(times: Rounds, by: NDArray[np.float64]) -> Rounds:
    return (np.array(times) * by[:, None]).tolist()


def judged(engine: str, of: dict[str, Rounds], ceiling: float = 0.0, spoilt: int = 0, **about: Any) -> Measurement:
    (measurement,) = speed.judge(engine, of, 256, 1e9, ceiling, spoilt, **about)
    return measurement


def test_a_quiet_machine_decides() -> None:
    verdicts = [judged("reference", {"reference": rounds(s), "torch": rounds(s + 100)}).verdict for s in range(20)]
    assert verdicts == ["pass"] * 20


@pytest.mark.parametrize("noise", [0.001, 0.05, 0.4])
@pytest.mark.parametrize("marked", [False, True])
def test_time_never_fails(noise: float, marked: bool) -> None:
    for seed, factor in enumerate((0.5, 1.0, 1.2, 3.0, 40.0)):
        pair = {"reference": rounds(seed, noise, factor), "torch": rounds(seed + 100, noise)}
        assert judged("reference", pair, marked=marked).verdict in ("pass", "inconclusive")


def test_on_gpus_a_reference_far_slower_than_the_fastest_right_engine_is_marked() -> None:
    slow = {"reference": rounds(0, factor=2.0), "torch": rounds(1), "wrong": rounds(2, factor=0.5)}
    assert "marked" not in judged("reference", slow).detail
    found = judged("reference", slow, marked=True, wrong={"wrong"})
    assert found.detail["marked"].startswith(("1.9", "2.0"))
    assert "× torch" in found.detail["marked"]
    assert found.detail["marked"] in found.reason
    assert "marked" not in judged("torch", slow, marked=True).detail
    near = {"reference": rounds(0, factor=1.4), "torch": rounds(1), "wrong": rounds(2, factor=0.5)}
    assert "marked" not in judged("reference", near, marked=True, wrong={"wrong"}).detail
    assert "marked" in judged("reference", near, marked=True).detail


def test_a_mark_needs_more_than_noise() -> None:
    noisy = {"reference": rounds(0, noise=0.4, factor=1.55), "torch": rounds(1, noise=0.4)}
    assert "marked" not in judged("reference", noisy, marked=True).detail


def test_an_engine_may_be_slower_than_another() -> None:
    measurement = judged("deepspeed", {"deepspeed": rounds(1, factor=3.0), "torch": rounds(2)})
    assert measurement.verdict == "pass"
    assert measurement.detail["ratio_to_fastest"] == pytest.approx(3.0, rel=0.03)
    assert measurement.detail["fastest"] == "torch"


def test_noise_that_could_hide_a_tenth_is_inconclusive_never_pass() -> None:
    for seed in range(20):
        pair = {"torch": rounds(seed, noise=0.5), "deepspeed": rounds(seed + 100, noise=0.5)}
        assert judged("torch", pair).verdict == "inconclusive"


def test_the_detectable_difference_shrinks_with_the_rounds() -> None:
    def effect(count: int) -> float:
        return float(np.median([speed.effect(rounds(seed, 0.05, count=count)) for seed in range(20)]))

    few, some, many = effect(4), effect(16), effect(64)
    assert few > 1.4 * some > 1.4**2 * many


def test_one_round_tells_nothing() -> None:
    assert speed.effect(rounds(0, count=1)) == float("inf")
    assert judged("torch", {"torch": rounds(0, count=1)}).verdict == "inconclusive"


def test_drift_that_all_engines_share_is_no_noise() -> None:
    ours, theirs, by = rounds(1), rounds(2), drift(3)
    alone, beside = drifted(ours, by), [drifted(theirs, by)]
    assert speed.effect(alone) > 0.1
    assert speed.effect(alone, beside) == pytest.approx(speed.effect(ours, [theirs]))


def test_a_ratio_within_the_rounds_is_proof_against_drift() -> None:
    ours, theirs, by = rounds(1, factor=1.1), rounds(2), drift(3)
    assert speed.ratio(drifted(ours, by), drifted(theirs, by)) == pytest.approx(speed.ratio(ours, theirs))
    assert speed.timing(drifted(ours, by)).median != pytest.approx(speed.timing(ours).median, rel=0.02)


def test_the_interval_holds_the_true_ratio_nearly_always() -> None:
    held = 0
    for seed in range(200):
        _, low, high = speed.ratio(rounds(seed, 0.02, 1.1), rounds(seed + 1000, 0.02))
        held += low <= 1.1 <= high
    assert held >= 0.85 * 200


def test_the_median_lies_in_its_interval_and_one_slow_round_does_not_move_it() -> None:
    calm = rounds(5)
    found = speed.timing([*calm[:-1], [1.0] * STEPS])
    assert found.low <= found.median <= found.high
    assert found.median == pytest.approx(speed.timing(calm).median, rel=0.02)


def test_rates_follow_from_the_median() -> None:
    measurement = judged("torch", {"torch": rounds(0)}, ceiling=1e12, spoilt=2)
    assert measurement.value is not None
    assert measurement.detail["tokens_per_second"] == pytest.approx(256 / measurement.value)
    assert measurement.detail["tflops"] == pytest.approx(1e-3 / measurement.value)
    assert measurement.detail["mfu"] == pytest.approx(1e-3 / measurement.value)
    assert "2 disturbed rounds were repeated" in measurement.reason
    assert judged("torch", {"torch": rounds(0)}).detail["mfu"] is None
    assert len(measurement.detail["samples"]) == ROUNDS * STEPS


def test_times_of_an_engine_that_returns_old_results_fail_and_an_infinite_error_is_told() -> None:
    honest, stale = speed.fresh([0.01, 0.2]), speed.fresh([0.01, inf])
    assert (honest.verdict, honest.value) == ("pass", 0.2)
    assert stale.verdict == "fail"
    assert "results of other inputs" in stale.reason
