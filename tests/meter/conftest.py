"""Two ranks for the meters."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job, describe

JOBS = "tests.meter.jobs"


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., list[Any]]]:
    """The results of a job of ``tests.meter.jobs`` on each rank of a fresh world."""
    with LocalLauncher() as launcher:

        def run(job: str, size: int = 2) -> list[Any]:
            world = launcher.world(size, "meter", JOBS)
            outcomes = world.run(Job(f"{JOBS}:{job}", {}), 60.0)
            world.close()
            assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
            return [outcome.value for outcome in outcomes if isinstance(outcome, Done)]

        yield run
