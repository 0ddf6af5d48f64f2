"""Step times of engines in interleaved rounds: noise decides nothing, a difference does, drift is nobody's."""

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.blocks import ROUNDS, TURN
from harness.judge import speed
from harness.spec import Finding

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


def judged(engine: str, of: dict[str, Rounds], ceiling: float = 0.0, spoilt: int = 0, wrong: str = "") -> Finding:
    (finding,) = speed.judge(engine, of, 256, 1e9, ceiling, spoilt, {wrong})
    return finding


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.05])
def test_the_same_engine_twice_never_fails(noise: float) -> None:
    """A/A: of 100 sessions none says that the one is a toy beside the other."""
    for seed in range(100):
        pair = {"reference": rounds(2 * seed, noise), "torch": rounds(2 * seed + 1, noise)}
        assert judged("reference", pair).verdict in ("pass", "inconclusive")


def test_a_quiet_machine_decides() -> None:
    verdicts = [judged("reference", {"reference": rounds(s), "torch": rounds(s + 100)}).verdict for s in range(20)]
    assert verdicts == ["pass"] * 20


def test_where_nothing_is_asked_of_the_reference_it_is_told_apart_and_passes() -> None:
    pair = {"reference": rounds(0, factor=40.0), "torch": rounds(1)}
    (finding,) = speed.judge("reference", pair, 256, 1e9, 0.0, 0, limit=None)
    assert (finding.verdict, finding.bound) == ("pass", None)
    assert finding.detail["ratio_to_fastest"] == pytest.approx(40.0, rel=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_a_reference_that_is_a_fifth_slower_fails(seed: int) -> None:
    finding = judged("reference", {"reference": rounds(seed, factor=1.2), "torch": rounds(seed + 100)})
    assert finding.verdict == "fail"
    assert finding.bound == speed.REFERENCE_LIMIT
    assert "× the fastest engine torch" in finding.reason


def test_what_computes_something_else_sets_no_pace_but_is_timed() -> None:
    pair = {"reference": rounds(1, factor=1.4), "fast_and_wrong": rounds(2), "torch": rounds(3, factor=1.4)}
    finding = judged("reference", pair, wrong="fast_and_wrong")
    assert (finding.verdict, finding.detail["fastest"]) == ("pass", "fast_and_wrong")
    assert "× the fastest engine torch" in finding.reason
    assert judged("reference", pair).verdict == "fail"


def test_an_engine_may_be_slower_than_another() -> None:
    finding = judged("deepspeed", {"deepspeed": rounds(1, factor=3.0), "torch": rounds(2)})
    assert finding.verdict == "pass"
    assert finding.detail["ratio_to_fastest"] == pytest.approx(3.0, rel=0.03)
    assert finding.detail["fastest"] == "torch"


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, "fail"), (1.3, "pass")])
def test_however_noisy_the_verdict_is_right_or_inconclusive(factor: float, wrong: str) -> None:
    verdicts = []
    for seed in range(50):
        pair = {"reference": rounds(seed, noise=0.4, factor=factor), "torch": rounds(seed + 100, noise=0.4)}
        verdicts.append(judged("reference", pair).verdict)
    assert wrong not in verdicts
    assert verdicts.count("inconclusive") > 25


def test_noise_that_could_hide_a_tenth_is_inconclusive_never_pass() -> None:
    for seed in range(20):
        pair = {"torch": rounds(seed, noise=0.5), "deepspeed": rounds(seed + 100, noise=0.5)}
        assert judged("torch", pair).verdict == "inconclusive"


def test_what_can_be_told_apart_shrinks_with_the_rounds() -> None:
    def effect(count: int) -> float:
        return float(np.median([speed.effect(rounds(seed, 0.05, count=count)) for seed in range(20)]))

    few, some, many = effect(4), effect(16), effect(64)
    assert few > 1.4 * some > 1.4**2 * many


def test_one_round_tells_nothing() -> None:
    assert speed.effect(rounds(0, count=1)) == float("inf")
    assert judged("torch", {"torch": rounds(0, count=1)}).verdict == "inconclusive"


def test_a_reference_within_noise_of_the_limit_is_inconclusive_on_either_side() -> None:
    for factor in (0.99, 1.01):
        pair = {"reference": rounds(1, 0.05, factor * speed.REFERENCE_LIMIT), "torch": rounds(2, 0.05)}
        assert judged("reference", pair).verdict == "inconclusive"


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
    finding = judged("torch", {"torch": rounds(0)}, ceiling=1e12, spoilt=2)
    assert finding.value is not None
    assert finding.detail["tokens_per_second"] == pytest.approx(256 / finding.value)
    assert finding.detail["tflops"] == pytest.approx(1e-3 / finding.value)
    assert finding.detail["mfu"] == pytest.approx(1e-3 / finding.value)
    assert "2 spoilt rounds were repeated" in finding.reason
    assert judged("torch", {"torch": rounds(0)}).detail["mfu"] is None
    assert len(finding.detail["samples"]) == ROUNDS * STEPS
