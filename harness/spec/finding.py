"""A finding: one understood cause of wrong results, costs or other departures of an engine; and its symptoms."""

import datetime
import fnmatch
import math
from dataclasses import dataclass

from harness.spec.measurement import Measurement

KINDS = (  # in the order in which they are shown
    "wrong result",
    "more memory",
    "more traffic",
    "more messages",
    "slower",
    "by design",
    "not comparable",
    "intended",
)
DEVICES = ("", "cpu", "cuda")


@dataclass(frozen=True)
class Symptom:
    """Figures that show a finding: of the cases that match a pattern (``*``, ``?`` and ``[…]``), where the size of the
    figure is within ``band``, both ends included, or, without a size, where the reason contains ``says``. ``device`` is
    cpu or cuda if they fail on only one of them."""

    case: str
    measure: str
    quantity: str
    band: tuple[float, float] | None = None  # of Measurement.size
    says: str = ""
    device: str = ""

    def matches(self, case: str) -> bool:
        return fnmatch.fnmatchcase(case, self.case)

    def about(self, case: str, measurement: Measurement) -> bool:
        """Whether it speaks of this figure, whatever its size."""
        same = (self.measure, self.quantity) == (measurement.measure, measurement.quantity)
        return same and self.matches(case)

    def covers(self, case: str, measurement: Measurement) -> bool:
        return measurement.verdict == "fail" and self.shown_by(case, measurement)

    def shown_by(self, case: str, measurement: Measurement) -> bool:
        """Whether the figure has the size, on whichever side of its bound: a cost near the bound is there before and
        after it moves a little."""
        if not self.about(case, measurement):
            return False
        size = measurement.size
        if size is None or not math.isfinite(size):
            return bool(self.says) and self.says in measurement.reason
        return self.band is not None and self.band[0] <= size <= self.band[1]

    def __str__(self) -> str:
        limits = [f"between {self.band[0]:g} and {self.band[1]:g}"] if self.band else []
        limits += [f"without a figure, where the reason says {self.says!r}"] if self.says else []
        return f"{self.measure} {self.quantity} of {self.case} ({', or '.join(limits)})"


@dataclass(frozen=True)
class Finding:
    """``id`` is the stem of its files. ``seen`` and ``right`` name versions, as ``deepspeed 0.19.8``; ``issue`` is a
    public thread, as ``owner/name#number``; ``needs``: what its script requires beside torch, as pip writes it."""

    id: str
    engine: str
    kind: str
    title: str
    consequence: str
    cause: str
    silent: bool
    default: bool
    seen: tuple[str, ...]
    review: datetime.date
    right: tuple[str, ...] = ()
    since: str = ""
    issue: str = ""
    public: str = ""
    needs: tuple[str, ...] = ()
    symptoms: tuple[Symptom, ...] = ()

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return datetime.date.today() > self.review

    @property
    def link(self) -> str:
        """The address of the public thread; empty if there is none."""
        repository, _, number = self.issue.partition("#")
        return f"https://github.com/{repository}/issues/{number}" if number else ""
