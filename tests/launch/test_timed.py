"""Where timed steps run."""

import os
from pathlib import Path

import pytest
import torch

from harness.launch import tasks
from harness.launch.rank import Context

CORES = sorted(os.sched_getaffinity(0))
cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs are not bound to cores")


def cores_of_steps(rank: int, size: int) -> list[set[int]]:
    seen: list[set[int]] = []
    context = Context(rank, size, Path(), {"step": lambda index: seen.append(os.sched_getaffinity(0))})
    assert len(tasks.timed(context, warm=1, steps=2)) == 2
    return seen


@cpu
@pytest.mark.skipif(len(CORES) < 2, reason="there is one core")
def test_a_rank_stays_on_its_core_warm_steps_too_and_is_free_afterwards() -> None:
    assert cores_of_steps(len(CORES) - 2, len(CORES) - 1) == 3 * [{CORES[-2]}]
    assert os.sched_getaffinity(0) == set(CORES)


@cpu
@pytest.mark.parametrize("size", [len(CORES), len(CORES) + 1])
def test_ranks_that_take_every_core_are_bound_to_none(size: int) -> None:
    assert cores_of_steps(0, size) == 3 * [set(CORES)]


@cpu
def test_a_step_that_raises_leaves_the_rank_free() -> None:
    def step(index: int) -> None:
        raise ValueError("no step")

    with pytest.raises(ValueError, match="no step"):
        tasks.timed(Context(0, 1, Path(), {"step": step}), warm=0, steps=1)
    assert os.sched_getaffinity(0) == set(CORES)
