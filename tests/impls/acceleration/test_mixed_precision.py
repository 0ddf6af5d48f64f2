"""Mixed precision: the loss scale's transitions, the laws, and the reference's steps."""

import math

import pytest
import torch
from torch.amp import GradScaler

from harness.run.lab import Lab
from harness.spec import Case, Topology, Unsupported, Workload
from impls.acceleration.mixed_precision import CARD, laws, plain
from impls.acceleration.mixed_precision.grid import FP16, SCALED
from impls.acceleration.mixed_precision.loss_scale import LEAST, LossScale
from impls.acceleration.mixed_precision.recipe import Recipe
from impls.common.data import batch

DP2, X = Topology(dp=2), True


def course(scale: LossScale, overflows: list[bool]) -> list[float]:
    """log₂ of the scale that each step uses."""
    found = []
    for overflow in overflows:
        found.append(math.log2(scale.scale))
        scale.update(overflow)
    return found


def test_the_scale_grows_after_n_steps_without_overflow_and_halves_after_one() -> None:
    assert course(LossScale(2.0**10, 2), [X, 0, 0, 0, X, 0, 0, 0]) == [10, 9, 9, 10, 10, 9, 9, 10]


def test_with_hysteresis_the_first_overflow_is_skipped_only_and_growth_alone_restores_it() -> None:
    assert course(LossScale(2.0**10, 2, 2), [X, 0, X, X, 0, 0, X, 0]) == [10, 10, 10, 9, 8, 8, 9, 9]


def test_a_static_scale_never_moves() -> None:
    assert course(LossScale(2.0**10), [X, 0, X, 0]) == [10] * 4


def test_the_scale_falls_no_lower_than_its_least() -> None:
    scale = LossScale(2.0, 2)
    course(scale, [X] * 5)
    assert scale.scale == LEAST


@pytest.mark.parametrize("overflows", [[X, X, 0, 0, 0, X, 0, 0], [0, 0, X, 0, X, 0, 0, 0, 0]])
def test_without_hysteresis_it_is_pytorchs_grad_scaler(overflows: list[bool]) -> None:
    theirs, weight = GradScaler("cpu", 2.0**10, growth_interval=2), torch.zeros(1, requires_grad=True)
    optimizer, found = torch.optim.SGD([weight], lr=1.0), []
    for overflow in overflows:
        found.append(math.log2(theirs.get_scale()))
        theirs.scale(weight * (torch.inf if overflow else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
    assert course(LossScale(2.0**10, 2), overflows) == found


@pytest.mark.parametrize(
    ("variant", "each"),
    [
        ("fp16_narrow", 2 + 2 + 12),
        ("bf16_narrow", 2 + 2 + 12),
        ("fp16_dynamic", 2 + 4 + 12),
        ("fp16_autocast", 4 + 4 + 8),
        ("bf16_pure", 2 + 2 + 4),
    ],
)
def test_the_law_of_states_counts_bytes_a_parameter(variant: str, each: int) -> None:
    recipe = CARD.variants[variant]
    work = SCALED.with_(dtype=recipe["precision"])
    assert laws.states(work, DP2, **recipe) == each * work.model.parameters


def test_a_variant_refuses_another_precision() -> None:
    with pytest.raises(Unsupported, match="this variant is one of fp16, not of fp32"):
        Recipe("fp16").check(Workload())


@pytest.fixture(scope="module")
def exact() -> dict[tuple[str, int, int], list[tuple[float, bool, float]]]:
    """By variant, ranks and seed: each step's scale, whether it was skipped, and the distance to another decision."""
    found = {}
    for variant in (name for name in FP16 if name != "fp16_static"):
        for seed in range(6):  # the oracle's, and the draws of its noise floor
            work = SCALED.with_(dtype="fp64", micro_batches=1, seed=SCALED.seed + seed)
            options = plain.options(SCALED, DP2, **CARD.variants[variant])
            model = plain.build(work, Topology(), **options)
            found[variant, 2, seed] = [_step(model, work, step) for step in range(work.steps)]
    return found


def _step(model: plain.Scaled, work: Workload, step: int) -> tuple[float, bool, float]:
    largest, watch = [0.0], model._watch

    def watching(gradients: dict[str, torch.Tensor]) -> None:
        largest.extend(float(g.abs().max()) for g in gradients.values())
        watch(gradients)

    model._watch = watching  # type: ignore[method-assign]
    model.backward(batch(work, step))
    model._watch = watch  # type: ignore[method-assign]
    model.update()
    seen = model.observe()
    return seen["scale"], bool(seen["skipped"]), abs(max(largest) / plain.LARGEST - 1)


def test_a_start_at_2_to_the_19_skips_the_first_step_by_itself_and_later_grows_into_overflow(exact) -> None:
    steps = exact["fp16_dynamic", 2, 0]
    assert [(math.log2(scale), skipped) for scale, skipped, _ in steps] == [(19, X), (18, 0), (18, 0), (19, X), (18, 0)]


def test_hysteresis_keeps_the_scale_after_the_first_overflow(exact) -> None:
    steps = exact["fp16_hysteresis", 2, 0]
    assert [(math.log2(scale), skipped) for scale, skipped, _ in steps] == [(18, X), (18, 0), (18, 0), (19, X), (19, X)]


def test_no_step_comes_near_another_decision_than_the_oracles(exact) -> None:
    """Float16's error in a gradient's largest element is far below this, so all engines skip the same steps."""
    nearest = min(distance for steps in exact.values() for *_, distance in steps)
    assert nearest > 4 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("variant", ["fp16_dynamic", "fp16_autocast", "fp16_narrow", "bf16_pure"])
def test_the_reference_computes_what_the_dense_model_does(lab: Lab, variant: str) -> None:
    work = SCALED.with_(dtype=CARD.variants[variant]["precision"])
    case = Case(CARD.name, variant, "reference", DP2, work)
    found = [m for measure in ("parity", "trace") for m in lab.measure(measure, case)]
    assert {m.quantity for m in found} >= {"gradient", "update", "loss", "replicas", "scale", "skipped", "norm"}
    assert [m.reason for m in found if m.verdict != "pass"] == []


def test_a_step_that_one_rank_alone_must_skip_is_skipped_by_all(lab: Lab) -> None:
    work = SCALED.with_(name="scaled_one_sided", dtype="fp16", unlabelled=SCALED.batch_size // 2)
    found = lab.measure("parity", Case(CARD.name, "fp16_dynamic", "reference", DP2, work))
    assert [m.reason for m in found if m.verdict != "pass"] == []
