"""Known failures of engines, as data. The report shows them, and a waiver whose failure no longer happens fails."""

import datetime
import fnmatch
import tomllib
from dataclasses import dataclass
from pathlib import Path

from harness.spec import Measurement

DEVICES = ("", "cpu", "cuda")


@dataclass(frozen=True)
class Waiver:
    """``case`` is a pattern of case ids (``*`` and ``?``); ``measure`` and ``quantity`` name the figure that fails.
    ``device`` is cpu or cuda if it fails on only one of them."""

    case: str
    measure: str
    quantity: str
    reason: str
    versions: str
    expires: datetime.date
    device: str = ""

    def matches(self, case: str) -> bool:
        return fnmatch.fnmatchcase(case, self.case)

    def about(self, case: str, measurement: Measurement) -> bool:
        """Whether the waiver covers this figure."""
        same = self.measure == measurement.measure and fnmatch.fnmatchcase(measurement.quantity, self.quantity)
        return same and self.matches(case)

    @property
    def expired(self) -> bool:
        return datetime.date.today() > self.expires


def read(path: Path) -> tuple[Waiver, ...]:
    """Reads the ``[[waiver]]`` tables of a TOML file. A ValueError names the table and field that is wrong."""
    if not path.exists():
        return ()
    fields = dict(Waiver.__annotations__)
    found = []
    for number, table in enumerate(tomllib.loads(path.read_text("utf-8")).get("waiver", []), start=1):
        if wrong := fields.keys() ^ (table.keys() | {"device"}):
            raise ValueError(f"{path.name}: waiver {number} has a missing or unknown field {sorted(wrong)[0]!r}")
        waiver = Waiver(**table)
        if waiver.device not in DEVICES:
            known = " or ".join(filter(None, DEVICES))
            raise ValueError(f"{path.name}: waiver {number} has device {waiver.device!r}, which is not {known}")
        found.append(waiver)
    return tuple(found)
