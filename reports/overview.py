"""The first screen: topics × engines, right, lean and fast; and below it, what was not tested."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from reports import units
from reports.tidy import (
    NOT_JUDGED,
    PLACES,
    REFERENCE,
    CaseView,
    Ratios,
    RunView,
    TopicView,
    fast,
    memory_ratios,
    parity,
    tally,
    time_ratios,
    worst,
)

MEMORY_RESOLUTION = 0.005  # allocators round sizes up; closer than this, two engines are equally lean
MOST_COLUMNS = 6  # that fit a screen of 1440 px beside the topics and one column for all other engines
BASES = {"memory": "of the leanest engine's memory", "throughput": "of the fastest engine's step time"}


@dataclass(frozen=True)
class Mark:
    """One line of a cell: the verdict, a few characters of text, and the long form for those who point at it."""

    verdict: str
    text: str
    note: str
    best: bool = False


@dataclass(frozen=True)
class MatrixCell:
    """``state`` is measured, skipped (an adapter that did not run, an engine that nobody can install; ``why`` says
    so) or absent (no adapter)."""

    engine: str
    state: str
    why: str = ""
    right: Mark | None = None
    lean: Mark | None = None
    fast: Mark | None = None
    known: bool = False

    @property
    def notes(self) -> list[tuple[str, str]]:
        """The cell in words: (what, words)."""
        if self.why:
            return [("not tested:", self.why)]
        marks = (("right", self.right), ("lean", self.lean), ("fast", self.fast))
        return [(name, mark.note if mark else "nothing recorded") for name, mark in marks]


@dataclass(frozen=True)
class Winners:
    """The engines that won ``wins`` of ``contests`` settings, the most of all."""

    engines: tuple[str, ...] = ()
    wins: int = 0
    contests: int = 0


@dataclass(frozen=True)
class MatrixRow:
    """``wrong`` holds (engine, verdict, how often) for those that failed parity or broke somewhere."""

    topic: TopicView
    cells: tuple[MatrixCell, ...]
    fastest: Winners
    leanest: Winners
    wrong: tuple[tuple[str, str, str], ...]


def shared(view: RunView) -> tuple[str, ...]:
    """The engines that have a column of their own: the reference, and those that serve the most topics of this run."""
    breadth = Counter(engine for topic in view.topics for engine in {*topic.engines, *topic.adapters})
    wide = [e for e in view.engines if e == REFERENCE or breadth[e] > 1 or len(view.topics) == 1]
    return tuple(wide[:MOST_COLUMNS])


def matrix(view: RunView) -> list[MatrixRow]:
    """A row a topic: the shared engines in the order of their columns, then the topic's others."""
    columns = shared(view)
    own = {
        t.name: [e for e in view.engines if e in {*t.engines, *t.adapters} and e not in columns] for t in view.topics
    }
    return [_row(topic, (*columns, *own[topic.name])) for topic in view.topics]


def _row(topic: TopicView, engines: tuple[str, ...]) -> MatrixRow:
    by_engine: dict[str, list[CaseView]] = defaultdict(list)
    for case in topic.cases:
        by_engine[case.engine].append(case)
    right = {engine: mark for engine, cases in by_engine.items() if (mark := _right(cases))}
    memory, time = memory_ratios(topic), time_ratios(topic)
    leanest = _winners(topic, memory, lambda row: MEMORY_RESOLUTION)
    fastest = _winners(topic, time, _detectable)
    cells = []
    for engine in engines:
        cases = by_engine[engine]
        if not cases or all(case.ran == "not run" for case in cases):
            adapter = bool(cases) or engine in topic.adapters
            why = topic.unavailable.get(engine) or _why(cases, adapter)
            cells.append(MatrixCell(engine, "skipped" if adapter or engine in topic.unavailable else "absent", why))
            continue
        cells.append(
            MatrixCell(
                engine,
                "measured",
                right=right.get(engine),
                lean=_ratio("memory", memory, engine, engine in leanest.engines, cases),
                fast=_ratio("throughput", time, engine, engine in fastest.engines, cases),
                known=any(record["detail"].get("waiver") for case in cases for record in case.records),
            )
        )
    marks = ((engine, right[engine]) for engine in topic.engines if engine in right)
    wrong = tuple((engine, mark.verdict, mark.text) for engine, mark in marks if mark.verdict in ("fail", "error"))
    return MatrixRow(topic, tuple(cells), fastest, leanest, wrong)


def _right(cases: list[CaseView]) -> Mark | None:
    """Parity over all of an engine's cases; where a topic has no oracle, its learning curves."""
    decided = [record for case in cases if (record := parity(case))]
    word = "parity"
    if not decided:
        decided = [record for case in cases for record in case.of("quality")]
        word = "quality"
    if not decided:
        return None
    judged = [record for record in decided if record["verdict"] != "skipped"]
    verdict = worst(record["verdict"] for record in judged) or "skipped"
    same = sum(record["verdict"] == verdict for record in decided)
    if verdict != "pass":
        first = next(record for record in decided if record["verdict"] == verdict)
        note = f"{word} {verdict} in {same} of {len(decided)} cases, first {first['case']}: "
        return Mark(verdict, f"{same} of {len(decided)}", note + units.first_line(first["reason"]))
    top = max(judged, key=lambda record: record["value"] or 0.0)
    text = units.figure(top["value"], top["unit"]) if word == "parity" else "learns"
    note = f"{word} passes in all {len(judged)} judged cases; worst {units.figure(top['value'], top['unit'])} floor"
    return Mark("pass", text, f"{note}, in {top['case']}" if word == "parity" else f"{word} passes")


def _ratio(measure: str, ratios: Ratios, engine: str, best: bool, cases: list[CaseView]) -> Mark | None:
    values = [group[engine] for group in ratios.values() if engine in group]
    if not values:
        verdict = worst(case.verdict(measure) for case in cases if case.verdict(measure))
        if not verdict:
            return None
        if verdict not in NOT_JUDGED:
            return Mark("", "no peer", "measured, but no other engine was measured in the same setting")
        reason = next((r["reason"] for case in cases for r in case.of(measure) if r["reason"]), "")
        return Mark(verdict, "not measured", units.first_line(reason))
    middle = units.ratio(statistics.median(values))
    note = f"{middle} {BASES[measure]}: median over {len(values)} settings"
    if len(values) > 1:
        note += f", from {units.ratio(min(values))} to {units.ratio(max(values))}"
    marked = [
        record["detail"]["marked"] for case in cases for record in case.of(measure) if record["detail"].get("marked")
    ]
    note += f"; {marked[0]}" if marked else ""
    failed = [case for case in cases if case.verdict(measure) in ("fail", "error")]
    if failed:
        note += f"; {measure} fails in {len(failed)} of {len(cases)} cases, first {failed[0].id}"
    return Mark("fail" if failed else "", middle, note, best)


def _winners(topic: TopicView, ratios: Ratios, resolution: Callable[[list[CaseView]], float]) -> Winners:
    """Who has the least ratio in most settings. A wrong result wins nothing, nor does the yardstick; one engine alone
    has nobody to win against; engines closer than the resolution both win."""
    settings = topic.settings()
    wins: Counter[str] = Counter()
    contests = 0
    for key, group in ratios.items():
        row = settings[key[0]]
        right = {engine: ratio for engine, ratio in group.items() if engine != REFERENCE and _passes(row[engine])}
        if len(right) < 2:
            continue
        contests += 1
        least = min(right.values()) * (1 + resolution(list(row.values())))
        wins.update(engine for engine, ratio in right.items() if ratio <= least)
    most = max(wins.values(), default=0)
    return Winners(tuple(sorted(engine for engine, count in wins.items() if count == most)), most, contests)


def _passes(case: CaseView) -> bool:
    return (case.verdict("parity") or case.verdict("quality")) == "pass"


def _detectable(row: list[CaseView]) -> float:
    """The minimum detectable effect of a timed block."""
    effects = [record["detail"].get("minimum_detectable_effect") for case in row if (record := fast(case))]
    return max((effect for effect in effects if effect), default=0.0)


def _why(cases: list[CaseView], adapter: bool) -> str:
    reasons = dict.fromkeys(units.first_line(record["reason"]) for case in cases for record in case.records)
    if reasons:
        return "; ".join(reasons)
    return "has an adapter, but no case of it was selected in this run" if adapter else "no adapter"


@dataclass
class Reason:
    """Why cases were not tested, all that share one reason."""

    text: str
    cases: list[CaseView] = field(default_factory=list)
    measures: Counter[str] = field(default_factory=Counter)

    @property
    def engines(self) -> list[str]:
        return sorted({case.engine for case in self.cases})

    @property
    def topics(self) -> list[str]:
        return list(dict.fromkeys(case.topic for case in self.cases))


def not_tested(view: RunView) -> list[Reason]:
    """Skips, the most frequent reason first."""
    reasons: dict[str, Reason] = {}
    for topic in view.topics:
        for case in topic.cases:
            for record in case.records:
                if record["verdict"] != "skipped":
                    continue
                text = units.first_line(record["reason"]) or "no reason was recorded"
                reason = reasons.setdefault(text, Reason(text))
                reason.measures[record["measure"]] += 1
                if not reason.cases or reason.cases[-1] is not case:
                    reason.cases.append(case)
    return sorted(reasons.values(), key=lambda reason: -len(reason.cases))


@dataclass(frozen=True)
class CoverageRow:
    """``places`` counts cases by where they ran; ``measures`` gives (judged, all) cases of each measure."""

    topic: TopicView
    places: Mapping[str, int]
    measures: Mapping[str, tuple[int, int]]


def coverage(view: RunView) -> list[CoverageRow]:
    rows = []
    for topic in view.topics:
        ran = Counter(case.ran for case in topic.cases)
        measures = {}
        for measure in view.measures:
            with_it = [case for case in topic.cases if case.of(measure)]
            judged = sum(any(r["verdict"] not in NOT_JUDGED for r in case.of(measure)) for case in with_it)
            measures[measure] = (judged, len(with_it))
        rows.append(CoverageRow(topic, {place: ran[place] for place in PLACES}, measures))
    return rows


def parity_bound(view: RunView) -> str:
    """How many times the floor an error may be, as the judges had it."""
    bounds = {record["bound"] for record in view.findings if record["measure"] == "parity" and record["bound"]}
    return " or ".join(units.significant(bound).removesuffix(".00") for bound in sorted(bounds))


def timed_on_cpu_only(view: RunView) -> bool:
    timed = [case for topic in view.topics for case in topic.cases if fast(case)]
    return bool(timed) and all(case.setting.device.lower().startswith("cpu") for case in timed)


def case_tally(topic: TopicView) -> dict[str, int]:
    return tally(record["verdict"] for case in topic.cases for record in case.records)
