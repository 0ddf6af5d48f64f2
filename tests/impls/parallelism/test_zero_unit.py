"""The step of units whose shards lie with different ranks."""

from types import SimpleNamespace

import torch

from impls.parallelism.zero import unit


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
