"""The step of units whose shards lie with different ranks."""

from types import SimpleNamespace

import pytest
import torch

from harness.spec.named import NAMED
from impls.common.weights import build_model
from impls.parallelism.zero import unit


@pytest.mark.parametrize("ranks", [2, 4])
def test_below_stage_3_a_unit_is_no_larger_than_what_a_rank_keeps(ranks: int) -> None:
    model = build_model(NAMED["tiny"])
    units = [own for _, own in unit.owners(model, 2, ranks)]
    share = NAMED["tiny"].model.parameters / ranks
    assert all(sum(p.numel() for p in own) <= share for own in units)
    assert len(units) <= 2 * ranks  # and not much smaller: each is a message


def test_after_a_step_all_units_are_told_and_the_weights_that_stay_travel_as_one_in_each_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened: list[str] = []
    units = []
    for name, stage, group in (("a", 1, "all"), ("b", 2, "all"), ("c", 1, "some"), ("d", 3, "all")):
        stepped = lambda name=name: happened.append(f"stepped {name}")  # noqa: E731
        about = {"full": name, "stage": stage, "group": group, "stepped": stepped}
        master = torch.zeros(1, requires_grad=True)
        units.append(SimpleNamespace(master=master, gradient=torch.ones(1), parameters=[], **about))
    gathered = lambda weights, group: happened.append(f"gathered {weights} in {group}")  # noqa: E731
    monkeypatch.setattr(unit, "all_gather_together", gathered)
    unit.step(units, torch.optim.SGD([each.master for each in units], lr=1.0))
    assert happened[:4] == ["stepped a", "stepped b", "stepped c", "stepped d"]
    assert happened[4:] == ["gathered ['a', 'b'] in all", "gathered ['c'] in some"]
    assert all(each.master.item() == -1 for each in units)
