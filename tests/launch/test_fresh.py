"""A timed Function's results on inputs that it has not seen."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import pytest
from torch import Tensor

from harness.launch.fresh import Fresh
from harness.launch.problem import forward_backward
from harness.spec import Workload
from impls.acceleration.flash_attention.problem import plain
from impls.posttraining.preference import problem as preference

PROBLEM = "impls.acceleration.flash_attention.problem"
Attention = Callable[[Mapping[str, Tensor]], Mapping[str, Any]]


def right(inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
    return plain(inputs, causal=True)


def stale() -> Attention:
    """Computes what the first call was given again and again."""
    first: dict[str, Tensor] = {}

    def attention(inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        for name, x in inputs.items():
            first.setdefault(name, x.detach())
        return right({name: x - x.detach() + first[name] for name, x in inputs.items()})

    return attention


def ratio(function: Attention, oracle: bool) -> float:
    fresh = Fresh(function, PROBLEM, Workload(), {"causal": True}, (), oracle)
    drawn = fresh.draw(123)
    return fresh.ratio(drawn, forward_backward(function, drawn[1]))


def test_an_engine_that_computes_is_about_as_far_off_as_before() -> None:
    assert 0 < ratio(right, oracle=True) < 0.1
    assert ratio(right, oracle=False) == 0


def test_a_single_number_that_happened_to_be_exact_before_is_no_false_alarm() -> None:
    def dpo(inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return preference.plain(inputs, beta=0.1)

    fresh = Fresh(dpo, preference.__name__, Workload(), {"beta": 0.1}, (), oracle=True)
    for seed in range(1, 30):
        drawn = fresh.draw(seed)
        assert fresh.ratio(drawn, forward_backward(dpo, drawn[1])) < 0.5


@pytest.mark.parametrize(("oracle", "least"), [(True, 100), (False, inf)])
def test_results_of_other_inputs_are_seen_with_and_without_an_oracle(oracle: bool, least: float) -> None:
    assert ratio(stale(), oracle) >= least


def test_an_engine_that_was_wrong_before_is_left_to_parity() -> None:
    def counted(inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        return {**right(inputs), "tiles": 3}  # which the plain formula does not return

    assert ratio(counted, oracle=True) == 0
