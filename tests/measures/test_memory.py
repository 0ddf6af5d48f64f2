"""A step's peak is told: the highest of any rank."""

from typing import Any

from harness.lab import Checked
from harness.measures import memory
from harness.spec import Case, Finding, Topology, Workload

MINE = Case("zero", "zero1", "reference", Topology(dp=2), Workload())


class PlantedLab:
    def checked(self, case: Case) -> Checked:
        ranks = ({"peak": peak, "states": 1.0, "padding": 0, "meter": "planted"} for peak in (2.0**20, 3.0 * 2**20))
        return Checked(ranks=tuple(ranks))

    def against_law(self, *_: Any) -> Finding:
        return Finding("memory", "states", 1.0, "B", "pass", "")


def test_a_peak_is_that_of_the_rank_that_has_the_highest() -> None:
    lab: Any = PlantedLab()
    peak = memory.take(lab, MINE)[-1]
    assert (peak.quantity, peak.value, peak.verdict, peak.bound) == ("peak", 3.0 * 2**20, "pass", None)
    assert "3.00 MiB" in peak.reason
