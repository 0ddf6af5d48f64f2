"""The test that the losses of two engines differ by chance alone: how often it is wrong, and what it sees."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter

from harness.judge.residuals import ALPHA, FEWEST, judge
from harness.spec import Curves, Measurement

SEEDS, STEPS = 5, 30
ROWS, INPUTS, HIDDEN, CLASSES = 32, 16, 12, 6
RATE = 0.5
Losses = NDArray[np.float64]  # [runs, steps]


def side(losses: Losses) -> list[Curves]:
    return [Curves([1], [0.0], 1.0, run.tolist()) for run in losses]


def judged(ours: Losses, theirs: Losses) -> list[Measurement]:
    """Each SEEDS runs."""
    ends = range(SEEDS, len(ours) + 1, SEEDS)
    return [judge(side(ours[end - SEEDS : end]), side(theirs[end - SEEDS : end]), "fp32") for end in ends]


def alarms(found: list[Measurement]) -> float:
    """The share of judgements that would not take the differences for chance, however small they are."""
    return sum(each.detail["p"] <= ALPHA for each in found) / len(found)


def trained(runs: int, rate: float = RATE, backwards: bool = False, lost: int = 0) -> Losses:
    """An MLP by SGD in float32, each run on data of its own. ``backwards``: products add up in the other order;
    ``lost``: rows of each batch without a gradient."""
    generator = torch.Generator().manual_seed(1)
    order = torch.arange(INPUTS).flip(0) if backwards else torch.arange(INPUTS)
    truth = torch.randn(INPUTS, CLASSES, generator=generator)
    first = torch.randn(runs, INPUTS, HIDDEN, generator=generator) / INPUTS**0.5
    second = torch.randn(runs, HIDDEN, CLASSES, generator=generator) / HIDDEN**0.5
    found = []
    for _ in range(STEPS):
        x = torch.randn(runs, ROWS, INPUTS, generator=generator)
        labels = (x @ truth + torch.randn(runs, ROWS, CLASSES, generator=generator)).argmax(-1)
        weights = [first.requires_grad_(), second.requires_grad_()]
        logits = torch.tanh(x[..., order] @ first[:, order]) @ second
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # [runs, ROWS]
        gradients = torch.autograd.grad(losses[:, lost:].sum() / ROWS, weights)
        first, second = ((w - rate * g).detach() for w, g in zip(weights, gradients, strict=True))
        found.append(losses.detach().double().mean(1))
    return torch.stack(found, 1).numpy()


def test_honest_runs_that_round_differently_differ_by_chance() -> None:
    runs = 200 * SEEDS
    found = judged(trained(runs, backwards=True), trained(runs))
    assert all(each.value for each in found)  # they differ
    assert alarms(found) <= 0.01
    assert {each.verdict for each in found} == {"pass"}


@pytest.mark.parametrize("fault", [{"rate": 1.005 * RATE}, {"rate": 0.995 * RATE}, {"lost": ROWS // 8}], ids=str)
def test_a_small_bias_is_seen_in_every_five_runs(fault: dict[str, Any]) -> None:
    runs = 20 * SEEDS
    assert {each.verdict for each in judged(trained(runs, **fault), trained(runs))} == {"fail"}


def independent(noise: Losses) -> Losses:
    return noise


def persistent(noise: Losses) -> Losses:
    return lfilter([1.0], [1.0, -0.99], noise)


def wandering(noise: Losses) -> Losses:
    return noise.cumsum(1)


def growing(noise: Losses) -> Losses:
    """By four orders of magnitude, as rounding does in training."""
    return noise.cumsum(1) * np.exp(np.linspace(0, np.log(1e4), STEPS))


def uneven(noise: Losses) -> Losses:
    """A run's differences are up to a hundred times another's."""
    scale = 10.0 ** np.linspace(0, 2, SEEDS)
    return noise.cumsum(1) * np.tile(scale, len(noise) // SEEDS)[:, None]


@pytest.mark.parametrize("shape", [independent, persistent, wandering, growing, uneven])
def test_chance_is_seldom_taken_for_a_bias_however_steps_depend_on_each_other(
    shape: Callable[[Losses], Losses],
) -> None:
    noise = shape(np.random.default_rng(7).normal(size=(2000 * SEEDS, STEPS)))
    assert alarms(judged(2.0 + 1e-3 * noise / np.abs(noise).max(), np.full(noise.shape, 2.0))) < 0.005


class TestJudge:
    honest = np.full((SEEDS, STEPS), 2.0)

    def test_equal_runs_pass(self) -> None:
        found = judge(side(self.honest), side(self.honest), "fp32")
        assert (found.verdict, found.value, found.detail["p"]) == ("pass", 0.0, 1.0)

    def test_an_engine_that_always_rounds_downwards_is_not_wrong_and_one_that_does_more_is(self) -> None:
        below = np.nextafter(np.float32(2), np.float32(0)) * np.ones_like(self.honest)
        assert judge(side(below), side(self.honest), "fp32").verdict == "pass"
        assert judge(side(below), side(self.honest), "fp64").verdict == "fail"
        far = judge(side(1.001 * self.honest), side(self.honest), "fp32")
        assert far.verdict == "fail"
        assert far.value == pytest.approx(0.001)
        assert judge(side(1.001 * self.honest), side(self.honest), "bf16").verdict == "pass"

    def test_a_loss_that_is_no_number_fails(self) -> None:
        broken = self.honest.copy()
        broken[2, 5] = np.nan
        assert judge(side(broken), side(self.honest), "fp32").verdict == "fail"

    @pytest.mark.parametrize("steps", [0, STEPS - 1])
    def test_a_run_of_another_length_fails(self, steps: int) -> None:
        short = [*side(self.honest[1:]), *side(self.honest[:1, :steps])]
        found = judge(short, side(self.honest), "fp32")
        assert found.verdict == "fail"
        assert f"{steps}] losses" in found.reason

    def test_too_few_runs_decide_nothing(self) -> None:
        few = slice(FEWEST - 1)
        assert judge(side(1.1 * self.honest[few]), side(self.honest[few]), "fp32").verdict == "inconclusive"
