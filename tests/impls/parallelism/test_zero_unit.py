"""The step of units whose shards lie with different ranks."""

from types import SimpleNamespace

import pytest
import torch

from harness.spec.named import NAMED
from impls.models.weights import build_model
from impls.parallelism.zero import unit


@pytest.mark.parametrize("ranks", [2, 4])
def test_below_stage_3_a_unit_is_no_larger_than_what_a_rank_keeps(ranks: int) -> None:
    model = build_model(NAMED["tiny"])
    units = [own for _, own in unit.owners(model, 2, ranks)]
    share = NAMED["tiny"].model.parameters / ranks
    assert all(sum(p.numel() for p in own) <= share for own in units)
    assert len(units) <= 2 * ranks  # and not much smaller: each is a message


def test_every_gather_is_begun_before_one_is_waited_for_and_all_are() -> None:
    happened: list[str] = []
    units = []
    for name in ("a", "b", ""):  # the last, as in stage 3, has nothing to spread
        master = torch.zeros(1, requires_grad=True)
        work = SimpleNamespace(wait=lambda name=name: happened.append(f"waited for {name}")) if name else None
        spread = lambda name=name, work=work: (happened.append(f"began {name}"), work)[1]  # noqa: E731
        units.append(SimpleNamespace(master=master, gradient=torch.ones(1), parameters=[], spread=spread))
    unit.step(units, torch.optim.SGD([each.master for each in units], lr=1.0))
    assert happened == ["began a", "began b", "began ", "waited for a", "waited for b"]
    assert all(each.master.item() == -1 for each in units)
