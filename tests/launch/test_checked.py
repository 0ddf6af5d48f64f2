"""What is measured of a call is none of what the calls before it held."""

from typing import Any

import pytest

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job
from harness.spec import Topology, Workload
from tests.launch import late


@pytest.mark.parametrize(
    ("task", "arguments", "kept"),
    [
        ("checked_function", {"build": f"{late.__name__}:function", "problem": late.__name__}, "saved"),
        ("checked_trainer", {"build": f"{late.__name__}:trainer", "data": f"{late.__name__}:batch"}, "states"),
    ],
)
def test_a_buffer_that_a_thread_holds_for_a_moment_longer_is_none_of_the_next_call_s(
    task: str, arguments: dict[str, Any], kept: str
) -> None:
    arguments |= {"variant": {}, "workload": Workload(), "topology": Topology(), "keep": False}
    with LocalLauncher() as launcher:
        world = launcher.world(1, late.__name__, late.__name__)
        (found,) = world.run(Job(f"harness.launch.tasks:{task}", arguments), 60.0)
        world.close()
    assert isinstance(found, Done), found
    assert 0 <= found.value[kept] < late.HELD / 100
    assert late.HELD <= found.value["peak"] < late.HELD * 1.01
