"""The measurements of a call exclude memory that earlier calls held."""

from typing import Any

import pytest

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job
from harness.spec import Topology, Workload
from harness.spec.run import Checked
from tests.launch import late

WORK = {"variant": {}, "workload": Workload(), "topology": Topology(), "keep": False}


@pytest.mark.parametrize(
    ("task", "arguments", "held"),
    [
        ("function", {"build": f"{late.__name__}:function", "problem": late.__name__, "exact": ()}, "kept"),
        ("trainer", {"build": f"{late.__name__}:trainer", "data": late.__name__, "options": {}}, "states"),
    ],
)
def test_a_buffer_that_a_thread_holds_for_a_moment_longer_is_none_of_the_next_call_s(
    task: str, arguments: dict[str, Any], held: str
) -> None:
    run = checked(task, arguments)
    assert all(0 <= getattr(step, held) < late.HELD / 100 for step in run.memory)
    assert all(late.HELD <= step.peak < late.HELD * 1.01 for step in run.memory)


def checked(task: str, arguments: dict[str, Any]) -> Checked:
    with LocalLauncher() as launcher:
        world = launcher.world(1, late.__name__, late.__name__)
        (found,) = world.run(Job(f"harness.launch.checked:{task}", {**WORK, **arguments}), 60.0)
        world.close()
    assert isinstance(found, Done), found
    run: Checked = found.value
    return run
