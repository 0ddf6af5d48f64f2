"""FP8 training: short runs learn, recipes differ in rounding alone, and the claim compares seed by seed."""

from typing import Any

import pytest
import torch

from harness.spec import Topology
from impls.acceleration.fp8_training import CARD, claims, grid
from impls.acceleration.fp8_training.reference import Projection, run
from impls.acceleration.fp8_training.text import sentences

STEPS = 20


@pytest.mark.parametrize("variant", CARD.variants)
def test_the_loss_falls_and_starts_where_every_recipe_starts(variant: str) -> None:
    curves = run(grid.SHORT, Topology(), 0, STEPS * grid.SHORT.batch_size, **CARD.variants[variant])
    assert list(curves.samples) == [4 * step for step in range(1, STEPS + 1)]
    assert curves.scores[-1] < curves.scores[0]
    exact = run(grid.SHORT, Topology(), 0, STEPS * grid.SHORT.batch_size, **CARD.variants["curve_fp32"])
    assert curves.scores[0] == pytest.approx(exact.scores[0], rel=0.01)
    assert (curves.scores[0] == exact.scores[0]) == (variant == "curve_fp32")


def test_delayed_scaling_remembers_every_step_in_all_three_histories() -> None:
    torch.manual_seed(0)
    layer = Projection(8, 4, "delayed", "e5m2")
    for step in (1.0, 2.0, 3.0):
        layer(torch.full((1, 2, 8), step)).backward(torch.full((1, 2, 4), 10 * step))
        layer.remember()
    assert layer.past["x_history"][:4].tolist() == [3.0, 2.0, 1.0, 0.0]
    assert layer.dy_past[:4].tolist() == [30.0, 20.0, 10.0, 0.0]


def test_sentences_follow_the_rule_in_four_of_five_places() -> None:
    text = sentences(200, 40, 32, seed=1)
    table = torch.randint(32, (8, 32), generator=torch.Generator().manual_seed(0))
    told = table[text[:, :-2] % 8, text[:, 1:-1]] == text[:, 2:]
    assert float(told.float().mean()) == pytest.approx(0.8 + 0.2 / 32, abs=0.02)


def records(**results: list[float]) -> list[dict[str, Any]]:
    same = {"measure": "learning", "quantity": "score", "engine": "reference", "workload": "sentences"}
    return [{**same, "variant": name, "detail": {"results": values}} for name, values in results.items()]


@pytest.mark.parametrize(("off", "status"), [(1.001, "reproduced"), (1.004, "contradicted")])
def test_the_claim_is_about_the_mean_relative_error_of_blocks(off: float, status: str) -> None:
    base = [2.0, 2.2, 2.1]
    found = claims.loss(records(curve_bf16=base, curve_fp8_blocks=[off * loss for loss in base]))
    assert found.detail["status"] == status
    assert found.value == pytest.approx(off - 1)
    assert f"fp8_blocks {off - 1:+.2%} ± 0.00%, inside bf16's band" in found.reason


def test_where_seeds_differ_more_than_the_claim_says_it_is_left_open_with_the_seeds_that_it_takes() -> None:
    base = [2.0, 2.2, 2.1, 2.0]
    blocks = [loss * (1 + off) for loss, off in zip(base, (0.0, 0.004, 0.008, -0.004), strict=True)]
    found = claims.loss(records(curve_bf16=base, curve_fp8_blocks=blocks))
    assert found.detail["status"] == "out of reach here"
    assert "about 427 seeds would decide" in found.reason


def test_seeds_of_two_workloads_are_each_compared_with_their_own_bf16() -> None:
    more = [{**each, "workload": "more"} for each in records(curve_bf16=[3.0, 3.0], curve_fp8_blocks=[3.003, 3.003])]
    found = claims.loss([*records(curve_bf16=[2.0, 2.0], curve_fp8_blocks=[2.002, 2.002]), *more])
    assert found.value == pytest.approx(0.001)
    assert "of 4 seeds" in found.reason


def test_without_curves_the_claim_says_what_is_missing() -> None:
    assert claims.loss([]).detail["status"] == "out of reach here"


def test_the_course_s_gap_is_not_that_of_a_float() -> None:
    assert claims.mlp([]).detail["status"] == "contradicted"
