"""The results of a checked run, rank by rank: one record for each contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.spec.workload import Workload

LEAST, MOST = 5, 10
COMPARED = 3  # the step after which a checked run's weights are compared with the oracle's


def steps(workload: Workload) -> int:
    """The number of steps of a checked run."""
    return min(max(workload.steps, LEAST), MOST)


Operations = Mapping[str, Mapping[str, float]]  # collective → {"calls", "bytes", "control"}


@dataclass(frozen=True)
class Traffic:
    """This rank's requested communication in a step. ``groups``: bytes by the ranks that take part."""

    by_op: Operations = field(default_factory=dict)
    groups: Mapping[tuple[int, ...], float] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        return sum(entry["bytes"] for entry in self.by_op.values())

    @property
    def control(self) -> float:
        """Bytes of losses, norms and flags."""
        return sum(entry["control"] for entry in self.by_op.values())


@dataclass(frozen=True)
class Memory:
    """Bytes of one step on one rank.

    states  held between the backward pass and the update of a Trainer; 0 for a Function
    kept    held for the backward pass: the amount when it begins, less the amount before the forward pass
    peak    the largest amount at any time
    """

    states: float = 0.0
    kept: float = 0.0
    peak: float = 0.0


class Anatomy(NamedTuple):
    """Seconds of a step on one rank, see :mod:`harness.meter.anatomy`. ``hidden`` lies within the first two."""

    arithmetic: float
    memory: float
    waiting: float
    host: float
    hidden: float = 0.0

    @property
    def seconds(self) -> float:
        return self.arithmetic + self.memory + self.waiting + self.host


@dataclass(frozen=True)
class Ceilings:
    """``flops``: FLOP/s of a large matrix product in the workload's dtype; ``bandwidth``: bytes/s read and written by a
    large copy; ``collectives``: name → (seconds of a small one, bytes/s that a rank sends in a large one). Of one rank,
    while all others do the same."""

    flops: float
    bandwidth: float
    collectives: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def wire(self, operations: Mapping[str, Mapping[str, float]]) -> float:
        """Seconds of these collectives (name → calls, bytes) at best, one after another; of an unmeasured one, those of
        the slowest."""
        slowest = max((seconds for seconds, _ in self.collectives.values()), default=0.0)
        least = min((speed for _, speed in self.collectives.values()), default=float("inf"))
        total = 0.0
        for name, entry in operations.items():
            seconds, speed = self.collectives.get(name, (slowest, least))
            total += entry["calls"] * seconds + entry["bytes"] / speed
        return total


class Profile(NamedTuple):
    """Some steps on one rank: seconds of each, the anatomy of as many others under the profiler, and what one step
    computes: ``flops`` of its products, ``bytes`` that its operators read and write."""

    seconds: Sequence[float]
    anatomies: Sequence[Anatomy]
    flops: float
    bytes: float


@dataclass(frozen=True)
class Checked:
    """``memory`` and ``traffic`` have the values of several steps, or of one call of a Function: traffic of all steps
    from the fourth on, memory of the third, the fourth and the last. ``meter`` names the memory meter; ``products``
    describes the computation of narrow products if this device has no instructions for them; ``fallback``,
    ``unmetered`` and ``configuration`` are the engine's texts. ``tensors`` of the first rank, if they are to be
    compared: kind → name → tensor, in the format of ``torch.save``."""

    memory: Sequence[Memory] = ()
    traffic: Sequence[Traffic] = ()
    meter: str = ""
    products: str = ""
    fallback: str = ""
    unmetered: str = ""
    configuration: str = ""
    padding: int = 0
    tensors: Mapping[str, bytes] | None = None


@dataclass(frozen=True)
class TrainerRun(Checked):
    """``losses``, ``observed`` and ``digests`` by step: the values of the engine's ``observe()``, and a digest of each
    of this rank's weights. ``changed`` names the tensors of ``frozen()`` that some step changed; ``nodes``: live
    autograd nodes after the fourth and the last step. The kinds of ``tensors`` are ``gradient 1``, ``parameters 1`` and
    so on, by step, and ``merged``."""

    losses: Sequence[float] = ()
    observed: Sequence[Mapping[str, float]] = ()
    digests: Sequence[Mapping[str, bytes]] = ()
    changed: Sequence[str] = ()
    nodes: Sequence[int] = ()


class Weight(NamedTuple):
    """One rank's copy of a weight after a step, without the poisoned row: the number of its elements, of those that are
    not finite, and of the finite ones that the step changed; a digest."""

    elements: int
    nonfinite: int
    changed: int
    digest: bytes


@dataclass(frozen=True)
class FunctionRun(Checked):
    """``exact`` holds texts, integers and booleans by their place in the outputs. The kinds of ``tensors`` are
    ``output`` and, if an input is differentiated, ``gradient``."""

    exact: Mapping[str, Any] = field(default_factory=dict)
