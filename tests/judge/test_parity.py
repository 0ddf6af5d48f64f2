"""Errors, floors and verdicts on handmade tensors."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from harness.judge import parity
from harness.judge.parity import MARGIN, Errors, Oracle, Reference
from harness.spec import Measurement

TRUTH = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}
FLOOR = Errors({"a": 1e-3, "b": 1e-3}, slope=1e-4, total=1e-3)
LOSSES = [2.0, 1.0, 0.5]


def scaled(factor: float) -> dict[str, Tensor]:
    return {name: tensor * factor for name, tensor in TRUTH.items()}


def with_(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**TRUTH, name: tensor}


def judged(
    gradient: Mapping[str, Tensor],
    losses: Sequence[float] = LOSSES,
    ranks: int = 1,
    whole: bool = True,
    kind: str = "gradient",
) -> dict[str, Measurement]:
    reference = Reference(Oracle({kind: TRUTH}, LOSSES), {kind: FLOOR}, [1e-3] * 3)
    found = parity.judge({kind: gradient}, losses, reference, ranks, () if whole else {kind})
    return {measurement.quantity: measurement for measurement in found}


def test_errors_are_relative_to_each_tensor_and_to_all_of_them() -> None:
    found = parity.errors(with_("a", torch.tensor([3.0, 4.5])), TRUTH)
    assert found.tensors == pytest.approx({"a": 0.5 / 5, "b": 0.0})
    assert found.total == pytest.approx(0.5 / math.sqrt(25 + 5))
    assert found.slope == pytest.approx(0.5 * 4 / 30)


def test_the_slope_is_the_scale_error_and_is_blind_to_noise_across_it() -> None:
    assert parity.errors(scaled(1.01), TRUTH).slope == pytest.approx(0.01)
    across = {"a": TRUTH["a"] + torch.tensor([-4.0, 3.0]), "b": TRUTH["b"]}
    assert parity.errors(across, TRUTH).slope == pytest.approx(0.0, abs=1e-12)
    assert parity.errors(across, TRUTH).tensors["a"] == pytest.approx(1.0)


def test_a_tensor_that_is_truly_zero_is_measured_against_the_typical_element() -> None:
    truth = {**TRUTH, "key.bias": torch.zeros(4)}
    typical = math.sqrt(30 / (2 + 4 + 4))
    found = parity.errors({**TRUTH, "key.bias": torch.full((4,), 1e-3)}, truth)
    assert found.tensors["key.bias"] == pytest.approx(1e-3 / typical)


def test_all_zero_truth_divides_by_nothing() -> None:
    zero = {"a": torch.zeros(2)}
    assert parity.errors(zero, zero) == Errors({"a": 0.0}, 0.0, 0.0)
    assert parity.errors({"a": torch.ones(2)}, zero).total == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": TRUTH["a"]}, "the engine returned nothing for b, only for a$"),
        ({**TRUTH, "c": torch.ones(1)}, "the engine returned c, which the model does not have"),
        (with_("b", torch.ones(4)), r"b has shape \(4,\), the model's is \(2, 2\)"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(found: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parity.errors(found, TRUTH)
    verdict = judged(found)["gradient"]
    assert (verdict.verdict, verdict.value) == ("fail", None)


def test_a_kind_that_the_engine_never_returned_fails() -> None:
    reference = Reference(Oracle({"gradient": TRUTH}), {"gradient": FLOOR})
    (measurement,) = parity.judge({}, [], reference, 1, ())
    assert measurement.verdict == "fail"


def test_the_floor_is_the_worst_of_the_ensemble_figure_by_figure() -> None:
    runs = [Errors({"a": 1.0, "b": 4.0}, -5.0, 1.0), Errors({"a": 2.0, "b": 3.0}, 4.0, 6.0)]
    assert parity.floor(runs) == Errors({"a": 2.0, "b": 4.0}, 5.0, 6.0)


def test_a_tensor_that_the_ensemble_rounds_alike_may_be_off_by_what_float64_leaves_open() -> None:
    changes = {"a": torch.tensor([3e-3, 4e-3]), "b": torch.zeros(2)}
    unit = parity.unit({"a": torch.tensor([3.0, -4.0]), "b": torch.ones(2)}, changes)
    assert unit == pytest.approx({"a": 5.0 * torch.finfo(torch.float64).eps / 5e-3})
    floor = Errors({"a": 0.0, "b": 0.5}, slope=0.1, total=0.2)
    assert parity.at_least(floor, unit) == Errors({"a": unit["a"], "b": 0.5}, slope=0.1, total=0.2)
    assert parity.at_least(floor, {"a": 0.0, "b": 0.25}) == floor


@pytest.mark.parametrize(("factor", "verdict"), [(0.9, "pass"), (1.1, "fail")])
def test_the_verdict_turns_at_the_margin(factor: float, verdict: str) -> None:
    off = TRUTH["a"] + torch.tensor([-4.0, 3.0]) * factor * MARGIN * FLOOR.tensors["a"]
    measurement = judged(with_("a", off))["gradient"]
    assert measurement.verdict == verdict
    assert measurement.value == pytest.approx(factor * MARGIN, rel=1e-3)
    assert measurement.bound == MARGIN
    assert measurement.detail["tensor"] == "a"


def test_a_scale_error_below_the_norms_floor_fails_by_its_slope() -> None:
    found = judged(scaled(1 + 0.9 * MARGIN * FLOOR.tensors["a"]))
    assert found["gradient"].verdict == "pass"
    assert found["gradient slope"].verdict == "fail"


def noisy(seed: int, size: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A true tensor of 2,000 elements, and the same with independent rounding errors of this size."""
    generator = torch.Generator().manual_seed(seed)
    truth = {name: torch.randn(1000, generator=generator, dtype=torch.float64) for name in ("a", "b")}
    return truth, {n: t + size * t.abs() * torch.randn(1000, generator=generator).double() for n, t in truth.items()}


def test_the_standard_error_of_a_slope_is_what_chance_makes_of_it() -> None:
    found = [parity.errors(*reversed(noisy(seed, 1e-3))) for seed in range(200)]
    spread = (sum(error.slope**2 for error in found) / len(found)) ** 0.5
    assert sum(error.slope_error for error in found) / len(found) == pytest.approx(spread, rel=0.2)


def test_rounding_of_twice_the_floor_passes_by_its_slope_and_an_error_of_scale_does_not() -> None:
    truth, _ = noisy(0, 0.0)
    limit = parity.floor([parity.errors(noisy(0, 1e-3)[1], truth)])
    reference = Reference(Oracle({"gradient": truth}), {"gradient": limit})
    for seed in range(1, 50):
        errors = {
            name: value - truth_
            for (name, value), truth_ in zip(noisy(seed, 2e-3)[1].items(), noisy(seed, 0.0)[0].values(), strict=True)
        }
        found = parity.judge({"gradient": {n: truth[n] + errors[n] for n in truth}}, [], reference, 1, ())
        assert [measurement.verdict for measurement in found] == ["pass", "pass"]
        wrong = {n: truth[n] * 1.002 + errors[n] for n in truth}
        _, slope = parity.judge({"gradient": wrong}, [], reference, 1, ())
        assert slope.verdict == "fail"


def test_every_verdict_prints_its_resolution() -> None:
    for measurement in judged(TRUTH).values():
        assert "a scale error of" in measurement.reason
    assert judged(TRUTH)["gradient"].detail["resolution"] == pytest.approx(2 * MARGIN * FLOOR.slope)


def test_one_tensor_alone_is_not_judged_where_only_the_whole_counts() -> None:
    off = with_("b", TRUTH["b"] + (MARGIN + 1) * FLOOR.tensors["b"] * torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    assert judged(off)["gradient"].verdict == "fail"
    assert judged(off, whole=False)["gradient"].verdict == "pass"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_fail_everywhere(bad: float) -> None:
    found = judged(with_("a", torch.tensor([3.0, bad])), [2.0, bad, 0.5])
    assert {measurement.verdict for measurement in found.values()} == {"fail"}
    assert found["gradient"].value == math.inf
    assert "worst in a" in found["gradient"].reason


def test_an_error_that_float64_itself_makes_is_none_though_the_floor_is_zero() -> None:
    reference = Reference(Oracle({"output": TRUTH}), {"output": Errors({"a": 0.0, "b": 0.0}, 0.0, 0.0)})
    tiny = {name: tensor.double() * (1 + 2e-16) for name, tensor in TRUTH.items()}
    assert {f.verdict for f in parity.judge({"output": tiny}, [], reference, 1, ())} == {"pass"}


def test_the_first_loss_that_is_off_is_named_not_the_worst() -> None:
    losses = judged(TRUTH, [2.0, 1.01, 0.6])["loss"]
    assert losses.verdict == "fail"
    assert "first divergence: step 2, loss 1.01 instead of 1" in losses.reason
    assert losses.value == pytest.approx(0.2 / 1e-3)
    assert losses.detail["oracle_losses"] == LOSSES


def test_losses_that_agree_pass() -> None:
    assert judged(TRUTH, [2.0 * (1 + 2e-3), 1.0, 0.5])["loss"].verdict == "pass"


@pytest.mark.parametrize(
    ("off", "place"),
    [
        ([[0.0, 0.0], [1.0, 1.0]], "only in part 2 of 2 along dim 0 (rank 1's, where parts are in order)"),
        ([[1.0, 0.0], [0.0, 0.0]], "only in part 1 of 2 along dim 0 (rank 0's, where parts are in order)"),
        ([[0.0, 1.0], [0.0, 1.0]], "only in part 2 of 2 along dim 1 (rank 1's, where parts are in order)"),
        ([[1.0, 1.0], [1.0, 1.0]], "all over the tensor"),
    ],
)
def test_the_first_divergence_names_step_tensor_and_part(off: list[list[float]], place: str) -> None:
    measurement = judged(with_("b", TRUTH["b"] + torch.tensor(off)), ranks=2)["gradient"]
    assert measurement.detail["first_divergence"] == f"step 1, gradient of b, {place}"
    assert str(measurement.detail["first_divergence"]) in measurement.reason


def test_an_update_that_is_off_is_traced_to_the_first_loss_that_was() -> None:
    measurement = judged(scaled(1.5), [2.0, 1.1, 0.5], kind="update")["update"]
    assert "first divergence: step 2, loss 1.1 instead of 1; after step 3, update of" in measurement.reason
    measurement = judged(scaled(1.5), kind="update")["update"]
    assert "first divergence: after step 3, update of" in measurement.reason


@pytest.mark.parametrize("factor", [0.5, -1.0, 1.25])
def test_an_error_of_scale_is_told_by_factor_and_sign(factor: float) -> None:
    assert f"every gradient × {factor:.4g}" in judged(scaled(factor))["gradient"].reason
    assert "every" not in judged(with_("a", TRUTH["a"] + 1.0))["gradient"].reason


def test_a_function_has_no_steps() -> None:
    reference = Reference(Oracle({"output": TRUTH}), {"output": FLOOR})
    found = parity.judge({"output": with_("a", TRUTH["a"] + 1.0)}, [], reference, 1, ())[0]
    assert found.detail["first_divergence"] == "output of a"


def later(*factors: float) -> dict[str, Measurement]:
    """The judgement of a run whose gradients are scaled, step by step from the second."""
    kinds = {f"gradient at step {step}": scaled(factor) for step, factor in enumerate(factors, start=2)}
    truth = {"gradient": TRUTH, **dict.fromkeys(kinds, TRUTH), "update": TRUTH}
    reference = Reference(Oracle(truth, LOSSES), dict.fromkeys(truth, FLOOR), [1e-3] * 3)
    found = parity.judge({"gradient": TRUTH, **kinds, "update": TRUTH}, LOSSES, reference, 1, ())
    return {measurement.quantity: measurement for measurement in found}


def test_later_gradients_are_one_figure_of_the_worst_step_that_names_the_first_wrong_one() -> None:
    found = later(1.0, 1.1, 1.5, 1.0)
    figures = [name + ending for name in ("gradient", "later gradients", "update") for ending in ("", " slope")]
    assert [*found] == [*figures, "loss"]
    assert [name for name, each in found.items() if each.verdict == "fail"] == figures[2:4]
    assert found["later gradients"].value == pytest.approx(0.5 / 1e-3)
    assert str(found["later gradients"].detail["first_divergence"]).startswith("step 3, gradient of")
    assert {each.verdict for each in later(1.0, 1.0).values()} == {"pass"}


def test_later_gradients_without_a_tensor_at_every_step_fail_and_have_no_slope() -> None:
    truth = {"gradient": TRUTH, "gradient at step 2": TRUTH, "update": TRUTH}
    reference = Reference(Oracle(truth, LOSSES), dict.fromkeys(truth, FLOOR), [1e-3] * 3)
    found = parity.judge({**truth, "gradient at step 2": {"a": TRUTH["a"]}}, LOSSES, reference, 1, ())
    verdicts = {measurement.quantity: measurement.verdict for measurement in found}
    assert [quantity for quantity, verdict in verdicts.items() if verdict == "fail"] == ["later gradients"]
    assert "later gradients slope" not in verdicts


def digests(*weights: str) -> list[dict[str, bytes]]:
    """The digests of a rank after each step."""
    return [{"a": step.encode(), "b": b"same"} for step in weights]


def test_replicas_that_drift_are_named_with_rank_tensor_and_step() -> None:
    assert parity.replicas([digests("x", "y"), digests("x", "y")]).verdict == "pass"
    found = parity.replicas([digests("x", "y", "z"), digests("x", "y", "z"), digests("x", "q", "r")])
    assert (found.verdict, found.value) == ("fail", 1.0)
    assert found.reason == "after step 2, rank 2's copy of a differs from rank 0's"
    assert parity.replicas([digests("x"), [{"b": b"same"}]]).verdict == "pass"  # a rank without the tensor


def test_a_pass_names_no_divergence() -> None:
    for measurement in judged(TRUTH).values():
        assert "divergence" not in measurement.reason
        assert "first_divergence" not in measurement.detail
