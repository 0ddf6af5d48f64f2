"""A measure's description of itself, and the facts about a case that it receives."""

from dataclasses import dataclass
from enum import Enum

from harness.spec.case import Case
from harness.spec.contract import Flows, Functions
from harness.spec.topic import Card


class Needs(Enum):
    """The source of a measure's figures; it decides when the measure is taken."""

    ORACLE = "the checked run of the case, and its oracle"
    CHECKED = "the checked run of the case"
    PEERS = "the checked runs of all engines in its setting, and their parity"
    RUN = "a run of its own"
    QUIET = "exclusive use of the machine"


@dataclass(frozen=True)
class Occasion:
    """A case and its role in the session.

    cores     the number of cores or GPUs that ranks do not share
    timed     its workload is one whose steps are timed
    traced    its workload is one whose timeline is watched
    judged    it runs for more than its timeline, or than the way of a NaN
    large     it keeps GPUs busy, and is too large for an oracle
    """

    case: Case
    card: Card
    cores: int
    timed: bool
    traced: bool
    judged: bool
    large: bool = False

    @property
    def weighed(self) -> bool:
        """Whether its memory is compared."""
        contract = self.card.contract
        return contract.weighed if isinstance(contract, Functions) else not isinstance(contract, Flows)
