"""The depth of a session: every engine once, every pair of choices, or the whole grid."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from harness.spec import Case

DEPTHS = ("quick", "default", "full")
QUICK = ("parity", "memory")  # the measures of the quick depth

Pair = tuple[tuple[str, str], ...]


def once(cases: Iterable[Case]) -> list[Case]:
    """Each variant of each topic once by each engine: on the fewest ranks above one, if possible, and the first
    workload of the grid that runs there."""
    found: dict[tuple[str, str, str], Case] = {}
    for case in cases:
        key = case.topic, case.variant, case.engine
        if key not in found or _size(case) < _size(found[key]):
            found[key] = case
    return list(found.values())


def _size(case: Case) -> tuple[bool, int]:
    return case.topology.world_size == 1, case.topology.world_size


def pairwise(cases: Sequence[Case], given: Callable[[Case], bool]) -> list[Case]:
    """Cases that cover every pair of variant, engine, topology and work within each topic, in their original order. The
    ``given`` cases are included; further ones are added greedily, by the number of new pairs."""
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


# Seconds on two cores: imports before the first figure; a checked run, by rank; an oracle for a workload; timed rounds,
# and by engine in them; a timeline.
START, RANK, ORACLE, BLOCK, MEMBER, TIMELINE = 28.0, 0.3, 3.5, 5.0, 0.3, 1.1


def minutes(measures: Mapping[Case, Sequence[str]], cores: int) -> float:
    """The estimated time to measure these cases, each with its measures."""
    checked = {case for case, names in measures.items() if {"parity", "memory", "traffic", "nonfinite"} & {*names}}
    timed = [case for case, names in measures.items() if "throughput" in names]
    seconds = RANK * sum(case.topology.world_size for case in checked)
    seconds += ORACLE * len({(case.topic, case.workload) for case in checked if "parity" in measures[case]})
    seconds *= 2 / max(2, min(cores, 8))
    seconds += BLOCK * len({(case.topic, case.topology, case.workload) for case in timed}) + MEMBER * len(timed)
    seconds += TIMELINE * sum("timeline" in names for names in measures.values())
    return (START + seconds) / 60
