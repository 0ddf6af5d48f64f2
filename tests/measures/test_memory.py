"""A reference's peak beside the leanest engine's."""

from typing import Any

import pytest

from harness.lab import Checked
from harness.measures import memory
from harness.spec import Case, Finding, Topology, Workload

MINE = Case("zero", "zero1", "reference", Topology(dp=2), Workload())
PEER = Case("zero", "zero1", "torch", Topology(dp=2), Workload())


def checked(peak: float) -> Checked:
    return Checked(ranks=({"peak": peak, "states": 1.0, "padding": 0, "meter": "planted"},))


class PlantedLab:
    """The reference peaks at ``first``, then at ``second``; the one other engine at 100."""

    def __init__(self, first: float, second: Checked) -> None:
        self.first, self.second, self.runs = first, second, 1

    def checked(self, case: Case) -> Checked:
        return checked(self.first if case.engine == "reference" else 100.0)

    def again(self, case: Case) -> Checked:
        self.runs += 1
        return self.second

    def peers(self, case: Case) -> list[Case]:
        return [PEER]

    def against_law(self, *_: Any) -> Finding:
        return Finding("memory", "states", 1.0, "B", "pass", "")


@pytest.mark.parametrize(
    ("first", "second", "value", "verdict", "runs"),
    [
        (104.0, checked(90.0), 104.0, "pass", 1),
        (120.0, checked(101.0), 101.0, "pass", 2),
        (120.0, checked(110.0), 110.0, "fail", 2),
        (120.0, checked(130.0), 120.0, "fail", 2),
        (120.0, Checked(), 120.0, "fail", 2),
    ],
)
def test_a_peak_that_is_too_high_is_measured_once_more_and_the_lower_counts(
    first: float, second: Checked, value: float, verdict: str, runs: int
) -> None:
    lab: Any = PlantedLab(first, second)
    peak = memory.take(lab, MINE)[-1]
    assert (peak.value, peak.verdict, lab.runs) == (value, verdict, runs)
