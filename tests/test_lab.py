"""A Lab's requests to its ranks, and its notes."""

from collections.abc import Iterator

import pytest

from harness import catalog
from harness.run import runner as runners
from harness.run.lab import Lab
from harness.spec import Case, Topology, Workload
from tests import labs

CASE = Case("data_parallel", "ddp", "reference", Topology(), Workload())


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = labs.make(catalog.topics())
    yield lab
    lab.runner.close()


def test_a_large_models_tensors_are_sent_only_where_they_are_compared(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "small", lambda case: False)
    (rank,) = lab.runner.checked(CASE).ranks
    assert rank.tensors is None
    assert rank.memory[0].peak > 0
    (rank,) = lab.runner.taken(CASE).ranks
    assert set(rank.tensors or {}) == {f"{kind} {step}" for kind in ("gradient", "parameters") for step in range(1, 6)}


def test_ranks_that_share_a_gpu_are_told_in_every_record(lab: Lab) -> None:
    pair = Case("data_parallel", "ddp", "reference", Topology(dp=8), Workload())  # skipped: too many ranks
    lab.runner.launcher.gpus = 1
    (found,) = lab.measure("memory", pair)
    assert found.detail["device_note"].startswith("8 ranks share the GPU")
    assert "device_note" not in lab.measure("memory", CASE)[0].detail
