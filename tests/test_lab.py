"""What a Lab asks its ranks for."""

from collections.abc import Iterator

import pytest

from harness import blocks, catalog
from harness.lab import Lab
from harness.launch.local import LocalLauncher
from harness.spec import Case, Topology, Workload

CASE = Case("data_parallel", "ddp", "reference", Topology(), Workload())


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(catalog.topics(), [CASE], LocalLauncher(), lambda *_: None)
    yield lab
    lab.close()


def test_a_large_models_tensors_are_sent_only_where_they_are_compared(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SMALL", 0)
    (rank,) = lab.checked(CASE).ranks
    assert rank["tensors"] is None
    assert rank["peak"] > 0
    (rank,) = lab.taken(CASE).ranks
    assert set(rank["tensors"]) == {"gradient", "parameters"}


def test_ranks_that_share_a_gpu_are_told_in_every_record(lab: Lab) -> None:
    pair = Case("data_parallel", "ddp", "reference", Topology(dp=2), Workload())
    lab.launcher.gpus = 1
    (found,) = lab._conclude(pair, [blocks.no_run("skipped", "why")])
    assert found.detail["device_note"].startswith("2 ranks share the GPU")
    (found,) = lab._conclude(CASE, [blocks.no_run("skipped", "why")])
    assert "device_note" not in found.detail
