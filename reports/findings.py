"""What is wrong today: the findings that a run stored, with the cases that show them."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from harness.spec.finding import KINDS
from reports.tidy import Record, RunView


class Place(NamedTuple):
    """A case, in the section of its topic."""

    topic: str
    case: str


@dataclass(frozen=True)
class Group:
    """Findings of some kinds. ``look`` is the class of their border; all but the first two groups are folded."""

    title: str
    kinds: tuple[str, ...]
    look: str
    folded: bool
    findings: tuple[Record, ...]


GROUPS = (
    ("Wrong results", KINDS[:1], "wrong", False),
    ("What costs memory, traffic, messages and time", KINDS[1:5], "cost", False),
    ("By design", KINDS[5:6], "design", True),
    ("Not comparable here", KINDS[6:7], "design", True),
    ("Intended by the cases", KINDS[7:], "design", True),
)


def groups(view: RunView) -> list[Group]:
    """The findings in the order in which they are shown. In a group, those come first that nobody notices and that hit
    everybody. Those that the run's own releases no longer have are left out."""
    today = {name: finding for name, finding in view.findings.items() if not finding.get("repaired")}
    ordered = sorted(today.items(), key=lambda item: (not item[1]["silent"], not item[1]["default"], item[0]))
    found = []
    for title, kinds, look, folded in GROUPS:
        mine = tuple({"id": name, **finding} for name, finding in ordered if finding["kind"] in kinds)
        if mine:
            found.append(Group(title, kinds, look, folded, mine))
    return found


def shown(view: RunView) -> dict[str, list[Place]]:
    """By id, the cases of this run that show a finding."""
    places: dict[str, dict[Place, None]] = defaultdict(dict)
    for record in view.measurements:
        if name := record["detail"].get("finding"):
            places[name][Place(record["topic"], record["case"])] = None
    return {name: list(cases) for name, cases in places.items()}
