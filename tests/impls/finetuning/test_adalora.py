"""AdaLoRA: the budget is PEFT's, the choice is the best of all matrices, and ranks agree on it."""

from types import SimpleNamespace

import pytest
import torch

from harness.run.lab import Lab
from harness.spec import Case, Topology
from impls.finetuning.adalora import CARD, LONG
from impls.finetuning.adalora.budget import Importance, Schedule, kept


def test_the_budget_falls_by_a_cubic_from_all_to_the_target() -> None:
    schedule = Schedule(start=84, end=42, warmup=2, final=2, every=2, total=10)
    assert [schedule.at(t) for t in range(1, 11)] == [None, None, None, 54, None, 43, None, 42, 42, 42]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(("warmup", "final", "total"), [(0, 0, 7), (2, 3, 12), (5, 1, 40)])
def test_it_is_the_budget_of_peft(every: int, warmup: int, final: int, total: int) -> None:
    layer = pytest.importorskip("peft.tuners.adalora.layer")
    config = SimpleNamespace(
        tinit=warmup, tfinal=final, total_step=total, deltaT=every, target_r=3, beta1=0.85, beta2=0.85
    )
    model = torch.nn.Module()
    model.register_parameter("x_lora_A_default", None)
    allocator = layer.RankAllocator(model, config, "default")
    allocator.init_bgt, allocator.target_bgt = 60, 30
    ours = Schedule(60, 30, warmup, final, every, total)
    for t in range(1, total - final + 1):
        budget, masks = allocator.budget_schedule(t)
        assert ours.at(t) == (budget if masks or t == total - final else None), t


def test_the_choice_is_among_all_matrices_at_once() -> None:
    scores = [torch.tensor([5.0, 1.0, 4.0]), torch.tensor([0.5, 3.0, 2.0])]
    assert [mask.tolist() for mask in kept(scores, 3)] == [[True, False, True], [False, True, False]]
    assert all(mask.all() for mask in kept(scores, 6))
    assert [mask.tolist() for mask in kept(scores, 1)] == [[True, False, False], [False, False, False]]


def test_importance_is_smoothed_sensitivity_times_uncertainty() -> None:
    importance, weight = Importance(), torch.tensor([2.0])
    for gradient in (1.0, -3.0):
        importance.update({"w": weight}, {"w": torch.tensor([gradient])})
    first = 0.15 * 2
    mean = 0.85 * first + 0.15 * 6
    doubt = 0.85 * 0.15 * (2 - first) + 0.15 * (6 - mean)
    assert importance.score("w").item() == pytest.approx(mean * doubt)


@pytest.mark.parametrize("engine", ["reference", "peft"])
def test_two_ranks_take_the_same_values_away_as_one(lab: Lab, engine: str) -> None:
    if engine == "peft":
        pytest.importorskip("peft")
    case = Case(
        CARD.name, "adalora_mean_norm", engine, Topology(dp=2), LONG.with_(name="allotted_sgd", optimizer="sgd")
    )
    for measure in ("parity", "trace"):
        wrong = {found.quantity: found.reason for found in lab.measure(measure, case) if found.verdict != "pass"}
        assert wrong == {}
