"""Ranks that share a GPU: a staged collective returns the same result as a direct one."""

import pytest
import torch

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job
from harness.launch.staged import _up as staged_up

JOBS = "tests.launch.staged_jobs"


@pytest.fixture(scope="module")
def found() -> list[dict[str, list[float]]]:
    with LocalLauncher() as launcher:
        world = launcher.world(2, JOBS, JOBS)
        outcomes = world.run(Job(f"{JOBS}:collectives", {}), 60.0)
        world.close()
    assert all(isinstance(outcome, Done) for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes]


BOTH = {
    "all_reduce": [3.0] * 4,
    "broadcast": [2.0] * 4,
    "all_gather": [1.0] * 4 + [2.0] * 4,
    "all_gather_list": [1.0] * 4 + [2.0] * 4,
    "reduce_scatter": [3.0] * 2,
    "reduce_scatter_in_place": [3.0] * 2,
    "all_to_all": [1.0, 1.0, 2.0, 2.0],
    "coalesced": ([1.0] * 4 + [2.0] * 4) * 2,
    "functional": [3.0] * 4,
    "ddp": [1.5] * 4,
}


@pytest.mark.parametrize("name", BOTH)
def test_a_staged_collective_writes_into_the_very_tensors(name: str, found: list[dict[str, list[float]]]) -> None:
    assert [rank[name] for rank in found] == [BOTH[name]] * 2


def test_a_staged_message_arrives_when_it_is_waited_for(found: list[dict[str, list[float]]]) -> None:
    assert [rank["received"] for rank in found] == [[2.0] * 4, [1.0] * 4]


def test_none_of_them_went_past(found: list[dict[str, list[float]]]) -> None:
    assert {"c10d::allreduce_", "c10d::send", "c10d::recv_", "c10d::alltoall_base_"} <= set(found[0]["went"])


def test_results_may_be_views_that_autograd_protects() -> None:
    """Megatron-Core gathers experts' tokens into parts of one split tensor."""
    parts = (torch.zeros(8, requires_grad=True) * 1).split(4)
    staged_up([(part, torch.ones(4)) for part in parts])
    assert torch.cat(parts).tolist() == [1.0] * 8
