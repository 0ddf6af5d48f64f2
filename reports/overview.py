"""The first screen: topics × engines, right, lean and fast; below it, the work that was not tested."""

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

MEMORY_RESOLUTION = 0.005  # allocators round sizes up; two engines closer than this are equally lean
MOST_COLUMNS = 5  # columns that fit a screen of 1440 px beside the topics and one column for all other engines
BASES = {"memory": "of the leanest engine's memory", "throughput": "of the fastest engine's step time"}


@dataclass(frozen=True)
class Mark:
    """One line of a cell: the verdict, a few characters of text, and the long form, which opens on demand."""

    verdict: str
    text: str
    note: str
    best: bool = False


@dataclass(frozen=True)
class MatrixCell:
    """``state`` is measured, skipped (the adapter did not run, or the engine cannot be installed; ``why`` gives the
    reason) or absent (no adapter)."""

    engine: str
    state: str
    why: str = ""
    right: Mark | None = None
    lean: Mark | None = None
    fast: Mark | None = None
    known: bool = False

    @property
    def notes(self) -> list[tuple[str, str]]:
        """The cell in words: pairs of (subject, text)."""
        if self.why:
            return [("not tested:", self.why)]
        marks = (("right", self.right), ("lean", self.lean), ("fast", self.fast))
        return [(name, mark.note if mark else "nothing recorded") for name, mark in marks]


@dataclass(frozen=True)
class Winners:
    """The engines that won ``wins`` of ``contests`` settings, the largest number."""

    engines: tuple[str, ...] = ()
    wins: int = 0
    contests: int = 0


@dataclass(frozen=True)
class MatrixRow:
    """``wrong`` holds (engine, verdict, count) for the engines that failed parity or broke."""

    topic: TopicView
    cells: tuple[MatrixCell, ...]
    fastest: Winners
    leanest: Winners
    wrong: tuple[tuple[str, str, str], ...]


def shared(view: RunView) -> tuple[str, ...]:
    """The engines with their own column: the reference, and the engines with the most topics in this run."""
    breadth = Counter(engine for topic in view.topics for engine in {*topic.engines, *topic.adapters})
    wide = [e for e in view.engines if e == REFERENCE or breadth[e] > 1 or len(view.topics) == 1]
    return tuple(wide[:MOST_COLUMNS])


def matrix(view: RunView) -> list[MatrixRow]:
    """One row per topic: the shared engines in the order of their columns, then the topic's other engines."""
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
                known=any(record["detail"].get("finding") for case in cases for record in case.records),
            )
        )
    marks = ((engine, right[engine]) for engine in topic.engines if engine in right)
    wrong = tuple((engine, mark.verdict, mark.text) for engine, mark in marks if mark.verdict in ("fail", "error"))
    return MatrixRow(topic, tuple(cells), fastest, leanest, wrong)


def _right(cases: list[CaseView]) -> Mark | None:
    """Parity over all of an engine's cases; the learning curves if the topic has no oracle."""
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
    """The engines with the lowest ratio in most settings. A wrong result never wins, and neither does the reference; an
    engine measured alone has no competitor; engines closer than the resolution both win."""
    settings = topic.settings
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
    """A reason why cases were not tested, with all cases that share it."""

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
    """Reasons for skipped cases, the most frequent first."""
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
    """The bound of an error in floors, as the judges used it."""
    bounds = {record["bound"] for record in view.measurements if record["measure"] == "parity" and record["bound"]}
    return " or ".join(units.significant(bound).removesuffix(".00") for bound in sorted(bounds))


def timed_on_cpu_only(view: RunView) -> bool:
    timed = [case for topic in view.topics for case in topic.cases if fast(case)]
    return bool(timed) and all(case.setting.device.lower().startswith("cpu") for case in timed)


def case_tally(topic: TopicView) -> dict[str, int]:
    return tally(record["verdict"] for case in topic.cases for record in case.records)
