"""What bounds each timed step: a roofline of all cases, the parts of a step by engine, and a sentence a case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports import draw, palette, units
from reports.figures import Figure, stacked
from reports.tidy import CaseView, Record, RunView, TopicView, measured

PARTS = ("arithmetic", "memory", "communication", "idle", "host")
NAMES = {
    "arithmetic": "arithmetic",
    "memory": "memory traffic",
    "communication": "communication",
    "idle": "idle ranks",
    "host": "host",
}
UNDECIDED = "the parts do not add up"


@dataclass(frozen=True)
class Sentence:
    case: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Bottlenecks:
    """``sentences`` by topic; ``ceilings``: in words, the most that the machine attained in this run."""

    roofline: Figure | None
    sentences: Mapping[str, Sequence[Sentence]]
    ceilings: Mapping[str, str]


def bottlenecks(view: RunView) -> Bottlenecks | None:
    """None if no step was profiled."""
    found = [(topic, case, record) for topic in view.topics for case in topic.cases if (record := _parts(case))]
    if not found:
        return None
    sentences: dict[str, list[Sentence]] = {}
    for topic, case, record in found:
        sentences.setdefault(topic.name, []).append(Sentence(case.id, record["verdict"], record["reason"]))
    return Bottlenecks(_roofline([record for _, _, record in found]), sentences, _ceilings(found))


def shares(topic: TopicView) -> Figure | None:
    """The parts of a step by engine, stacked."""

    def parts(case: CaseView) -> dict[str, float]:
        record = _parts(case)
        found = record["detail"]["shares"] if record else {}
        return {name: 100 * found[name] for name in PARTS if name in found}

    drawn = stacked(topic, parts, _colour, "% of a step", f"{topic.title}: parts of a step by engine")
    if drawn is None:
        return None
    caption, svg, used = drawn
    return Figure(
        "Where a step goes", caption, svg, tuple(("box", _colour(name), NAMES[name]) for name in PARTS if name in used)
    )


def _parts(case: CaseView) -> Record | None:
    return next(
        (record for record in case.of("bottleneck") if measured(record) and record["detail"].get("shares")), None
    )


def _colour(name: str) -> str:
    return palette.shade(PARTS.index(name)) if name in PARTS else "var(--skipped)"


def _ceilings(found: Sequence[tuple[TopicView, CaseView, Record]]) -> dict[str, str]:
    """By precision and number of ranks, the fastest that some block of this run measured."""
    best: dict[str, tuple[float, str]] = {}

    def note(name: str, value: float, text: str) -> None:
        if value > best.get(name, (0.0, ""))[0]:
            best[name] = value, text

    for _, case, record in found:
        detail, place = record["detail"], f"{case.setting.topology}"
        flops, bandwidth = detail["flops_ceiling"], detail["bandwidth_ceiling"]
        note(f"products, {case.setting.dtype}, {place}", flops, f"{flops / 1e9:,.1f} GFLOP/s")
        note(f"copies, {place}", bandwidth, f"{bandwidth / 1e9:,.1f} GB/s")
        for name, (seconds, speed) in detail["collectives"].items():
            note(f"{name}, {place}", speed, f"{units.figure(seconds, 's')} and {speed / 1e9:,.2f} GB/s a rank")
    return {name: text for name, (_, text) in sorted(best.items())}


def _roofline(records: Sequence[Record]) -> Figure | None:
    """Attained FLOP/s against FLOPs per byte that operators touch, below the ceilings of products and of copies."""
    drawn = [r for r in records if r["detail"]["flops"] and r["detail"]["bytes"]]
    details = [r["detail"] for r in drawn]
    if not details:
        return None
    bounds = [r["detail"]["bound"] if r["verdict"] == "pass" else UNDECIDED for r in drawn]
    points = [
        (d["flops"] / d["bytes"], d["flops"] / d["step"], _colour(bound))
        for d, bound in zip(details, bounds, strict=True)
    ]
    flops, bandwidth = (max(d[name] for d in details) for name in ("flops_ceiling", "bandwidth_ceiling"))
    ridge = flops / bandwidth
    ends = draw.powers([ridge, *(x for x, _, _ in points)])
    xs = (10.0 ** ends[0], ridge, 10.0 ** ends[-1])
    roof = [(x, min(flops, bandwidth * x)) for x in xs]
    label = "Attained FLOP/s against FLOPs a byte, by what bounds the step"
    return Figure(
        "Roofline",
        f"{len(points)} cases with matrix products; the line is what copies and products attained at best",
        draw.roofline(points, roof, ("FLOPs a byte", "FLOP/s"), label),
        tuple(("box", _colour(name), f"bound by {NAMES[name]}") for name in PARTS if name in bounds)
        + ((("box", _colour(UNDECIDED), UNDECIDED),) if UNDECIDED in bounds else ()),
    )
