"""The cases of a session: the cards combined with the request, in the best order for running."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness import catalog
from harness.measures import MEASURES
from harness.plan import depth
from harness.spec import DTYPES, Card, Case, Occasion, Row, Topology, Trainers, Workload
from harness.spec.inputs import asked as asked_work
from harness.spec.named import load


@dataclass(frozen=True)
class Request:
    """The request from the command line; an empty field means everything that is sensible here."""

    topics: Sequence[str] = ()
    engines: Sequence[str] = ()
    workloads: Sequence[str] = ()
    topologies: Sequence[str] = ()
    measures: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    add_engines: Sequence[str] = ()
    depth: str = "full"
    gpus: int = 0
    ranks: int = 0  # the most CPU ranks
    cores: int = 2  # cores that ranks do not share with others


def cards(request: Request) -> dict[str, Card]:
    """The requested cards by name. A ValueError names anything unknown."""
    every = catalog.topics(request.add_engines)
    names = {name for card in every.values() for name in card.adapted}
    gone = {name: why for card in every.values() for name, why in card.unavailable.items()}
    for name in request.engines:
        if name in gone.keys() - names:
            raise ValueError(f"engine {name!r} can no longer be installed: {gone[name]}")
        catalog.known(name, names, "engine")
    for name in request.measures:
        catalog.known(name, MEASURES, "measure")
    for name in request.dtypes:
        catalog.known(name, DTYPES, "dtype")
    wanted = [catalog.known(name, every, "topic") for name in request.topics] or list(every)
    chosen = {name: every[name] for name in wanted}
    for card in chosen.values():
        check_laws(card)
    return chosen


def check_laws(card: Card) -> None:
    """Raises a ValueError if a law names a quantity that no measure finds, or two laws share one quantity."""
    seen = set()
    for law in card.laws:
        measure = catalog.known(law.measure, MEASURES, f"measure in a law of {card.name}")
        catalog.known(law.quantity, MEASURES[measure].QUANTITIES, f"quantity of {measure} in a law of {card.name}")
        if (law.measure, law.quantity) in seen:
            raise ValueError(f"topic {card.name} has two laws of {law.measure} {law.quantity}")
        seen.add((law.measure, law.quantity))


def cases(request: Request, chosen: dict[str, Card]) -> list[Case]:
    """The cases of the chosen cards at the requested depth, in a stable order."""
    return at_depth(every(request, chosen), request, chosen)


def every(request: Request, chosen: dict[str, Card]) -> list[Case]:
    """The cases at full depth. Raises a ValueError if the work does not fit the request."""
    reads: dict[str, list[str]] = {}
    for card in chosen.values():
        if isinstance(card.contract, Trainers):
            reads.setdefault(card.contract.reads, []).append(card.name)
    named = asked_work(request.workloads, request.gpus, reads)
    topologies = [Topology.parse(text) for text in request.topologies]
    for topology in topologies:
        if not any(_has_axes(card, topology) for card in chosen.values()):
            known = "; ".join(f"{card.name}: {', '.join(card.topologies)}" for card in chosen.values())
            raise ValueError(f"no topic asked for has the axes of {topology}: {known}")
    found: list[Case] = []
    for card in chosen.values():
        asked = [topology for topology in topologies if _has_axes(card, topology)]
        for topology in asked if topologies else [Topology.parse(text) for text in card.topologies]:
            for workload, variants in _work(request, card, topology, named):
                # Work must fit the topologies that the user asked for.
                if topologies and (reason := workload.check(topology)):
                    raise ValueError(f"workload {workload.name} on {topology}: {reason}")
                found += _variants(card, topology, workload, request.engines, variants)
    for work in named:  # otherwise every case of it would be skipped
        reasons = [case.workload.check(case.topology) for case in found if case.workload.name == work.name]
        if reasons and all(reasons):
            raise ValueError(f"workload {work.name} fits no topology of the topics asked for: {reasons[0]}")
    return found


def at_depth(cases: list[Case], request: Request, chosen: dict[str, Card]) -> list[Case]:
    """The cases that the depth leaves. Requested work, topologies or precisions run completely, except at quick
    depth."""
    if request.depth == "quick":
        return depth.once(cases)
    if request.depth == "full" or request.workloads or request.topologies or request.dtypes:
        return cases
    # Timed and watched cases are compared with all of their peers, so pairs of choices are not enough; poisoned work
    # shows nothing of what the other cases of its pairs do.
    able = [case for case in cases if not _full(case, chosen[case.topic])]
    healthy = [case for case in able if not case.workload.poisoned]
    kept = set(depth.pairwise(healthy, lambda case: _is_timed(case, request, chosen[case.topic])))
    return [case for case in able if case in kept or case.workload.poisoned]


def _full(case: Case, card: Card) -> bool:
    """Whether the case runs at the full depth alone."""
    grid, mine = card.work, (case.workload.name, case.workload.dtype)
    rows = [row for row in (*grid.rows, *grid.watched) if (_named(row).name, row.dtype) == mine]
    return bool(rows) and all(row.full for row in rows)


def _has_axes(card: Card, topology: Topology) -> bool:
    """Whether the topology uses only axes of the card's own topologies; the user chooses their sizes."""
    mine = {axis for text in card.topologies for axis in Topology.parse(text).used}
    return set(topology.used) <= mine


def _work(
    request: Request, card: Card, topology: Topology, named: Sequence[Workload]
) -> list[tuple[Workload, tuple[str, ...]]]:
    """Workloads, each with the variants that compute it (empty: all). A workload that the user ``named`` runs in its
    own precision, unless the user also asked for precisions."""
    if named:
        return [(work.with_(dtype=dtype), ()) for work in named for dtype in request.dtypes or (work.dtype,)]
    grid = card.work
    large = [Row(name, load(name).dtype, True) for name in grid.large if request.gpus]
    rows = [
        (_named(row).with_(dtype=row.dtype), row.variants)
        for row in (*_on(topology, grid.rows), *_on(topology, grid.watched), *large)
        if row.dtype in (request.dtypes or DTYPES)
    ]
    return [row for row in rows if not row[0].check(topology)] or rows  # if none fits, the reason must be seen


def _on(topology: Topology, rows: Sequence[Row]) -> list[Row]:
    """The rows that run on this topology."""
    return [
        row
        for row in rows
        if (str(topology) in row.where if isinstance(row.where, tuple) else row.where or topology.world_size == 2)
    ]


def _named(row: Row) -> Workload:
    return load(row.work) if isinstance(row.work, str) else row.work


def _variants(
    card: Card, topology: Topology, workload: Workload, engines: Sequence[str], variants: Sequence[str]
) -> Iterable[Case]:
    for engine in card.adapted:
        if engines and engine not in engines:
            continue
        for variant in card.engines[engine].variants or card.variants:
            if not variants or variant in variants:
                yield Case(card.name, variant, engine, topology, workload)


def measures(case: Case, request: Request, card: Card) -> list[str]:
    """The measures of a case."""
    occasion = _occasion(case, request, card)
    offered = depth.QUICK if request.depth == "quick" else MEASURES
    wanted = [name for name in MEASURES if name in (request.measures or offered)]
    return [name for name in wanted if MEASURES[name].asked(occasion)]


def _is_timed(case: Case, request: Request, card: Card) -> bool:
    occasion = _occasion(case, request, card)
    return (occasion.timed or not occasion.judged) and case.topology.world_size <= occasion.cores


def _occasion(case: Case, request: Request, card: Card) -> Occasion:
    grid = card.work
    watched = [] if request.workloads else [_named(row).name for row in _on(case.topology, grid.watched)]
    large = grid.large if request.gpus and not request.workloads else ()
    everywhere = not grid.timed_on or request.gpus or request.topologies
    timed = grid.timed if everywhere or str(case.topology) in grid.timed_on else ()
    healthy = not case.workload.poisoned
    return Occasion(
        case,
        card,
        cores=request.gpus or request.cores,
        timed=healthy and _chosen(case, request, large or timed),
        traced=healthy and _chosen(case, request, watched or timed),
        judged=healthy and case.workload.name not in watched,
        large=case.workload.name in large,
    )


def _chosen(case: Case, request: Request, names: Sequence[str]) -> bool:
    """One workload of each grid is timed or watched; on a CPU only in fp32."""
    mine = case.workload.name in names and (bool(request.gpus) or case.workload.dtype == "fp32")
    return mine or bool(request.workloads)
