"""Units of one optimizer whose shards lie with different ranks, as of experts and of what is dense."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from impls.parallelism.zero import unit


def test_what_is_gathered_is_waited_for_with_its_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    open_groups: list[str] = []
    gathered: list[tuple[str, str]] = []

    @contextmanager
    def manager(group: str) -> Iterator[None]:
        open_groups.append(group)
        yield
        open_groups.pop()

    monkeypatch.setattr(dist, "_coalescing_manager", manager)
    units = []
    for group in ("dense", "experts", "dense", "experts", "experts", "experts", "experts"):
        master = torch.zeros(1, requires_grad=True)
        spread = lambda group=group: gathered.append((group, *open_groups))  # noqa: E731
        units.append(SimpleNamespace(group=group, master=master, gradient=torch.ones(1), parameters=[], spread=spread))
    unit.step(units, torch.optim.SGD([each.master for each in units], lr=1.0))
    assert sorted(gathered) == [("dense", "dense")] * 2 + [("experts", "experts")] * 5
    assert all(each.master.item() == -1 for each in units)
