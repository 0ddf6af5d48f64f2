"""How much of the grid a session runs: every engine once, every pair of choices, or all of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from harness.spec import Case

DEPTHS = ("quick", "default", "full")
QUICK = ("parity", "memory")  # the measures of the quick depth

Pair = tuple[tuple[str, str], ...]


def once(cases: Iterable[Case]) -> list[Case]:
    """Each topic's variants by each engine once: on the fewest ranks that are more than one, if there are such, by the
    first work of the grid that runs there."""
    found: dict[tuple[str, str, str], Case] = {}
    for case in cases:
        key = case.topic, case.variant, case.engine
        if key not in found or _size(case) < _size(found[key]):
            found[key] = case
    return list(found.values())


def _size(case: Case) -> tuple[bool, int]:
    return case.topology.world_size == 1, case.topology.world_size


def pairwise(cases: Sequence[Case], given: Callable[[Case], bool]) -> list[Case]:
    """Cases that cover every pair of variant, engine, topology and work that some case of their topic has, in their
    order. Those that are ``given`` are among them; further ones are added, the one that covers most first."""
    covered = {pair for case in cases if given(case) for pair in _pairs(case)}
    chosen = {case.id for case in cases if given(case)}
    left = {case.id: set(_pairs(case)) - covered for case in cases if case.id not in chosen}
    while left:
        best = max(left, key=lambda name: len(left[name]))
        new = left.pop(best)
        if not new:
            break
        chosen.add(best)
        for pairs in left.values():
            pairs -= new
    return [case for case in cases if case.id in chosen]


def _pairs(case: Case) -> Iterator[Pair]:
    choices = {
        "variant": case.variant,
        "engine": case.engine,
        "topology": str(case.topology),
        "work": f"{case.workload.name} {case.workload.dtype}",
    }
    for pair in combinations(choices.items(), 2):
        yield ("topic", case.topic), *pair


@dataclass(frozen=True)
class Costs:
    """Seconds on two cores, as measured: what a plan takes is about their sum."""

    start: float = 25.0  # what is imported and built before the first figure
    rank: float = 0.11  # of a checked run, by rank
    oracle: float = 0.6  # of a piece of work
    block: float = 9.0  # of timed rounds, and by engine in them
    member: float = 0.7
    timeline: float = 3.0
