"""The cores on which timed steps run."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.launch import timed
from harness.launch.rank import Context

CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs are not bound to cores")


@pytest.fixture(autouse=True)
def _free_afterwards() -> Iterator[None]:
    yield
    gc.unfreeze()
    os.sched_setaffinity(0, CORES)


def cores_of_timed_steps(rank: int, size: int) -> list[set[int]]:
    seen: list[set[int]] = []
    context = Context(rank, size, Path())
    timed._ready(context, lambda index: seen.append(os.sched_getaffinity(0)))
    assert all(cores == set(CORES) for cores in seen), "the steps in which engines start threads are free"
    seen.clear()
    assert len(timed.steps(context, warm=1, steps=2, seed=0).seconds) == 2
    return seen


@pytest.mark.skipif(len(CORES) < 2, reason="there is one core")
def test_a_rank_stays_on_its_core_warm_steps_too() -> None:
    assert cores_of_timed_steps(len(CORES) - 2, len(CORES) - 1) == 3 * [{CORES[-2]}]


@pytest.mark.parametrize("size", [len(CORES), len(CORES) + 1])
def test_ranks_that_take_every_core_are_bound_to_none(size: int) -> None:
    assert cores_of_timed_steps(0, size) == 3 * [set(CORES)]
