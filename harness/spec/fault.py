"""A planted fault, as a topic's ``faults.py`` lists it beside its reference: what runs it, and which figures show it.

``FAULTS`` there maps a function's name to a :class:`Fault`. The function has the signature of ``build`` and returns the
reference with exactly one thing broken. It is called in fresh ranks, so it may alter a module for good.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from harness.spec.named import load
from harness.spec.workload import Workload

# Figures of parity, in the order in which a run goes wrong; a norm is less sensitive to scale than its slope.
OUTPUT = frozenset({"output", "output slope"})
EXACT = frozenset({"exact"})  # texts and integers; a count of those that differ
GRADIENT = frozenset({"gradient", "gradient slope"})  # of the first step
REPLAYED = frozenset({"replayed update"})  # what the optimizer makes of the engine's own gradients
LATER_GRADIENT = frozenset({"later gradients", "later gradients slope"})
UPDATE = frozenset({"update", "update slope"})
LOSS = frozenset({"loss"})
REPLICAS = frozenset({"replicas"})  # bits that differ from rank to rank
FROZEN = frozenset({"frozen"})  # tensors that a step changed and no step may
MERGED = frozenset({"merged"})  # a base with adapters folded in
UNMERGED = frozenset({"unmerged"})  # and taken out again
TRAINED = UPDATE | LOSS


@dataclass(frozen=True)
class Fault:
    """``finds``: measure → precision → the figures that must fail, those of parity at twice their bound at least.
    ``where``: what parity names as the first divergence. ``workload``: by name, or one of its own."""

    variant: str
    topology: str
    finds: Mapping[str, Mapping[str, Set[str]]]
    where: str = ""
    workload: str | Workload = "tiny"

    def work(self, dtype: str) -> Workload:
        work = load(self.workload) if isinstance(self.workload, str) else self.workload
        return work.with_(dtype=dtype)
