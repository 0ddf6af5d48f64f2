"""A run's records in order: its topics, engines, cases and settings. The rest of the report reads this."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from harness.spec import DTYPES, VERDICTS
from harness.store import published

Record = Mapping[str, Any]
FIRST_MEASURES = ("parity", "memory", "traffic", "timeline", "throughput", "quality")  # in this order; then others
NOT_JUDGED = ("skipped", "error")
REFERENCE = "reference"
FIRST_ENGINES = (REFERENCE, "torch")  # references come first


class Setting(NamedTuple):
    """The fields that must be equal before two engines' figures may be compared."""

    variant: str
    topology: str
    workload: str
    dtype: str
    device: str


@dataclass(frozen=True)
class CaseView:
    topic: str
    id: str
    engine: str
    setting: Setting
    records: tuple[Record, ...]

    def of(self, measure: str, *quantities: str) -> list[Record]:
        """This case's records of a measure, in the order of ``quantities`` (all if none is named)."""
        mine = self._by_measure.get(measure, [])
        if not quantities:
            return mine
        return [record for name in quantities for record in mine if record["quantity"] == name]

    @cached_property
    def _by_measure(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.records:
            found[record["measure"]].append(record)
        return found

    def verdict(self, measure: str) -> str:
        """The worst verdict of a measure; empty if nothing was recorded."""
        return worst(record["verdict"] for record in self.of(measure))

    @cached_property
    def ran(self) -> str:
        """Where it ran: one of :data:`PLACES`; the last one if nothing was judged."""
        if all(record["verdict"] in NOT_JUDGED for record in self.records):
            return "broke" if any(record["verdict"] == "error" for record in self.records) else "not run"
        if any(record["detail"].get("device_note") for record in self.records):
            return "shared GPU"
        device = self.setting.device.lower()
        if device.startswith("cpu"):
            return "CPU ranks"
        return "simulated" if device.startswith(("simulated", "meta")) else "GPU"


PLACES = ("GPU", "shared GPU", "CPU ranks", "simulated", "broke", "not run")


@dataclass(frozen=True)
class TopicView:
    name: str
    title: str
    sources: tuple[str, ...]
    variants: tuple[str, ...]
    adapters: tuple[str, ...]
    unavailable: Mapping[str, str]  # engines that can no longer be installed, with the reason
    engines: tuple[str, ...]
    cases: tuple[CaseView, ...]

    @cached_property
    def settings(self) -> dict[Setting, dict[str, CaseView]]:
        """Engines' cases by setting, in the card's order of variants, then by world size and dtype."""
        table: dict[Setting, dict[str, CaseView]] = defaultdict(dict)
        for case in self.cases:
            table[case.setting][case.engine] = case
        return dict(sorted(table.items(), key=lambda item: self._order(item[0])))

    def _order(self, setting: Setting) -> tuple[Any, ...]:
        place = self.variants.index(setting.variant) if setting.variant in self.variants else len(self.variants)
        precision = list(DTYPES).index(setting.dtype) if setting.dtype in DTYPES else len(DTYPES)
        return place, setting.variant, setting.workload, world_size(setting.topology), setting.topology, precision


@dataclass(frozen=True)
class RunView:
    run: Mapping[str, Any]
    topics: tuple[TopicView, ...]
    engines: tuple[str, ...]
    claims: tuple[Record, ...]
    measurements: tuple[Record, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)  # of parity's margin: see harness.judge.calibration
    findings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by id: the fields of harness.spec.Finding

    @cached_property
    def measures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*FIRST_MEASURES, *sorted({record["measure"] for record in self.measurements}))))

    def tally(self) -> dict[str, int]:
        return tally(record["verdict"] for record in self.measurements)


def view(records: Sequence[Record], run: Mapping[str, Any], titles: Mapping[str, Mapping[str, Any]]) -> RunView:
    """Sorts a run's records; if a figure was recorded twice (a retried block), the last one counts."""
    latest = {(r["topic"], r["case"], r["measure"], r["quantity"]): _known(r) for r in published(list(records))}
    kept = [latest.pop(key) for key in list(latest) if key[2] == "calibration"]
    findings = {key[3]: latest.pop(key)["detail"] for key in list(latest) if key[2] == "finding"}
    cards = {r["topic"]: r["detail"] for r in latest.values() if r["measure"] == "card"}
    claims = tuple(r for r in latest.values() if r["measure"] == "claim")
    measurements = tuple(r for r in latest.values() if r["measure"] not in ("card", "claim"))
    grouped: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in measurements:
        grouped[record["topic"], record["case"]].append(record)
    cases: dict[str, list[CaseView]] = {record["topic"]: [] for record in latest.values()}
    for (topic, case), group in grouped.items():
        first = group[0]
        setting = Setting(*(first[name] for name in Setting._fields))
        cases[topic].append(CaseView(topic, case, first["engine"], setting, tuple(group)))
    topics = tuple(_topic(name, mine, {**cards.get(name, {}), **titles.get(name, {})}) for name, mine in cases.items())
    breadth: dict[str, int] = defaultdict(int)
    for entry in topics:
        for engine in entry.engines:
            breadth[engine] += 1
    engines = tuple(sorted(breadth, key=lambda name: (_yardstick(name), -breadth[name], name)))
    run = published(dict(run))
    return RunView(
        run=run,
        topics=topics,
        engines=engines,
        claims=claims,
        measurements=measurements,
        environment=run.get("environment") or {},
        calibration=kept[0]["detail"] if kept else {},
        findings=findings,
    )


def _known(record: Record) -> Record:
    """A figure that is not a number was not measured: it becomes None, and is removed from the detail."""
    figures = {name: _named(record[name]) for name in ("value", "law", "bound")}
    return {**record, **figures, "detail": _named(record["detail"] or {})}


def _named(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is dict:
        return {name: named for name, item in value.items() if (named := _named(item)) is not None}
    return [_named(item) for item in value] if kind is list else value


def _topic(name: str, cases: list[CaseView], card: Mapping[str, Any]) -> TopicView:
    adapters = tuple(card.get("engines", ()))
    unavailable = card.get("unavailable", {})
    seen = {case.engine for case in cases} | {*adapters, *unavailable}
    return TopicView(
        name=name,
        title=card.get("title") or name.replace("_", " ").capitalize(),
        sources=tuple(card.get("sources", ())),
        variants=tuple(card.get("variants", ())) or tuple(dict.fromkeys(case.setting.variant for case in cases)),
        adapters=adapters,
        unavailable=unavailable,
        engines=tuple(sorted(seen, key=lambda engine: (_yardstick(engine), engine))),
        cases=tuple(cases),
    )


def _yardstick(engine: str) -> int:
    return FIRST_ENGINES.index(engine) if engine in FIRST_ENGINES else len(FIRST_ENGINES)


def world_size(topology: str) -> int:
    """The number of ranks of ``dp2tp2``; experts (``ep``) add none."""
    size = 1
    for axis, number in re.findall(r"([a-z]+)(\d+)", topology):
        size *= int(number) if axis != "ep" else 1
    return size


def worst(verdicts: Iterable[str]) -> str:
    return min(verdicts, key=VERDICTS.index, default="")


def tally(verdicts: Iterable[str]) -> dict[str, int]:
    """Counts by verdict, best first, for all six verdicts."""
    counts = dict.fromkeys(reversed(VERDICTS), 0)
    for verdict in verdicts:
        counts[verdict] += 1
    return counts


def measured(record: Record) -> bool:
    """Whether there is a figure to show: judged, and not invalid."""
    return record["value"] is not None and record["verdict"] not in (*NOT_JUDGED, "invalid")


def parity(case: CaseView) -> Record | None:
    """The record that decides a case's parity: among those with the worst verdict, the largest error over its bound."""
    found = case.of("parity")
    if not found:
        return None
    return min(found, key=lambda r: (VERDICTS.index(r["verdict"]), -((r["value"] or 0.0) / (r["bound"] or 1.0))))


def lean(case: CaseView) -> Record | None:
    """The figure for comparing memory: the peak, otherwise the states, otherwise the memory saved for the backward
    pass."""
    return next((r for r in case.of("memory", "peak", "states", "saved") if measured(r)), None)


def fast(case: CaseView) -> Record | None:
    return next((r for r in case.of("throughput", "step_time") if measured(r)), None)


Ratios = Mapping[tuple[Any, ...], Mapping[str, float]]


def memory_ratios(topic: TopicView) -> Ratios:
    """Engines' memory over the leanest engine's, for each setting with at least two measured engines.

    Only figures of one quantity from one meter are compared.
    """
    groups: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for setting, row in topic.settings.items():
        for engine, case in row.items():
            if (record := lean(case)) and record["value"] > 0:
                groups[setting, record["quantity"], record["detail"].get("meter")][engine] = record["value"]
    return {key: _over_least(group) for key, group in groups.items() if len(group) > 1}


def time_ratios(topic: TopicView) -> Ratios:
    """Engines' step times over the fastest engine's: the judge's paired ratios, or ratios of the medians."""
    groups: dict[tuple[Any, ...], dict[str, float]] = {}
    for setting, row in topic.settings.items():
        timed = {engine: record for engine, case in row.items() if (record := fast(case)) and record["value"] > 0}
        if len(timed) < 2:
            continue
        paired = {engine: record["detail"].get("ratio_to_fastest") for engine, record in timed.items()}
        plain = _over_least({engine: record["value"] for engine, record in timed.items()})
        groups[(setting,)] = {engine: ratio or plain[engine] for engine, ratio in paired.items()}
    return groups


def _over_least(group: Mapping[str, float]) -> dict[str, float]:
    least = min(group.values())
    return {engine: value / least for engine, value in group.items()}
