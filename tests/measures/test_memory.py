"""The reported peak of a step is the highest of all ranks."""

from types import SimpleNamespace
from typing import Any

from harness import catalog
from harness.measures import memory
from harness.run.runner import Checked
from harness.spec import Case, Topology, Workload
from harness.spec.run import Memory, TrainerRun

MINE = Case("zero", "zero1", "reference", Topology(dp=2), Workload())


def test_a_peak_is_that_of_the_rank_and_step_that_have_the_highest() -> None:
    ranks = [TrainerRun(memory=[Memory(peak=low), Memory(peak=high)]) for low, high in ((1.0, 2.0), (3.0 * 2**20, 0.0))]
    runner = SimpleNamespace(checked=lambda case: Checked(tuple(ranks)), card=lambda case: catalog.topics()["zero"])
    lab: Any = SimpleNamespace(runner=runner)
    peak = memory.take(lab, MINE)[-1]
    assert (peak.quantity, peak.value, peak.verdict, peak.bound) == ("peak", 3.0 * 2**20, "pass", None)
    assert "3.00 MiB" in peak.reason
