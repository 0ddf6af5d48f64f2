"""What a measure says of itself, and what it is told about a case."""

from dataclasses import dataclass
from enum import Enum

from harness.spec.case import Case
from harness.spec.topic import Card


class Needs(Enum):
    """What a measure takes its figures from; it decides when it is taken."""

    ORACLE = "the checked run of the case, and what is right"
    CHECKED = "the checked run of the case"
    RUN = "a run of its own"
    QUIET = "the machine to itself"


@dataclass(frozen=True)
class Occasion:
    """A case, and what the session asks of it.

    cores     ranks that have a core, or a GPU, to themselves
    timed     it is of the work whose steps are timed
    traced    it is of the work whose timeline is watched
    judged    it is not there for its timeline alone
    large     it is there for what GPUs do when they are busy, and too large for an oracle
    """

    case: Case
    card: Card
    cores: int
    timed: bool
    traced: bool
    judged: bool
    large: bool = False
