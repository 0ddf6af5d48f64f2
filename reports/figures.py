"""The charts of a topic: what they show, and of which cases.

Each chart is one column of small panels, one per variant, all at one topology, workload, dtype and device: the setting
with the most measured cases. The tables show the other settings.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports import draw, palette, units
from reports.draw import Mark, Point
from reports.tidy import CaseView, Record, Setting, TopicView, fast, measured, world_size

REST = "not told apart"
BESIDES = "padding, control"
PARTS = ("parameters", "gradients", "optimizer", "other", REST)
MAX_POINTS = 120  # points of one curve; longer ones are thinned evenly
MAX_SAMPLES = 40
ORACLE = "float64 oracle"


@dataclass(frozen=True)
class Figure:
    """``legend`` holds (shape, colour, name); a shape is a class of the style sheet: box, law, ring, solid, dashed …"""

    title: str
    caption: str
    svg: str
    legend: tuple[tuple[str, str, str], ...] = ()


def figures(topic: TopicView, slots: Mapping[str, int]) -> list[Figure]:
    """The charts of a topic for which it has figures."""
    drawn = (memory(topic), traffic(topic), throughput(topic, slots), loss(topic, slots), loss_error(topic, slots))
    return [figure for figure in drawn if figure]


def memory(topic: TopicView) -> Figure | None:
    """States, divided into parts if the engine reports them; the law is a mark, the peak a ring."""

    def held(case: CaseView) -> Record | None:
        return next((r for r in case.of("memory", "states", "saved", "peak") if measured(r)), None)

    panel = _panel(topic, lambda case: held(case) is not None)
    if panel is None:
        return None
    chosen = [(case, record) for case in panel.cases if (record := held(case))]
    peaks = {case.id: record["value"] for case, _ in chosen for record in case.of("memory", "peak") if measured(record)}
    scale, unit = units.byte_unit(max([record["value"] for _, record in chosen] + list(peaks.values())))
    rows: list[Mark] = []
    used: set[str] = set()
    for case, record in chosen:
        parts = _parts(record)
        used |= set(parts)
        sizes = ((part, parts[part] / scale) for part in sorted(parts, key=_part))
        rows += _stack(case, sizes, _shade)
        rows += _law(case, record, scale)
        if record["quantity"] != "peak" and case.id in peaks:
            rows.append(_row(case, "ring", peaks[case.id] / scale, colour="currentColor"))
    if not rows:  # only zeros
        return None
    kinds = {row.kind for row in rows}
    legend = [("box", _shade(part), part) for part in sorted(used, key=_part)]
    legend += [(kind, "", name) for kind, name in (("law", "law"), ("ring", "peak")) if kind in kinds]
    svg = _rows_chart(panel, rows, unit, f"{topic.title}: memory by engine")
    return Figure("Memory held", panel.caption, svg, tuple(legend))


def _parts(record: Record) -> dict[str, float]:
    """Bytes by part; the measured bytes that no part explains form a part of their own."""
    parts = dict(record["detail"].get("parts") or {})
    if not parts:
        return {record["quantity"]: record["value"]}
    rest = record["value"] - sum(parts.values())
    return parts | ({REST: rest} if rest > 0.001 * record["value"] else {})


def traffic(topic: TopicView) -> Figure | None:
    """Bytes per rank and step by collective; the law is a mark."""

    def sent(case: CaseView) -> Record | None:
        return next((r for r in case.of("traffic", "bytes") if measured(r)), None)

    panel = _panel(topic, lambda case: sent(case) is not None)
    if panel is None:
        return None
    chosen = [(case, record) for case in panel.cases if (record := sent(case))]
    scale, unit = units.byte_unit(max(record["value"] for _, record in chosen))
    split = {case.id: _by_collective(record) for case, record in chosen}
    names = sorted({name for parts in split.values() for name in parts}, key=lambda name: (name == BESIDES, name))
    rows: list[Mark] = []
    for case, record in chosen:
        sizes = ((name, split[case.id].get(name, 0) / scale) for name in names)
        rows += _stack(case, sizes, lambda name: palette.shade(names.index(name)))
        rows += _law(case, record, scale)
    if not rows:
        return None
    legend = [("box", palette.shade(place), name) for place, name in enumerate(names)]
    legend += [("law", "", "law")] if any(row.kind == "law" for row in rows) else []
    svg = _rows_chart(panel, rows, f"{unit} per rank and step", f"{topic.title}: traffic by engine")
    return Figure("Traffic by collective", panel.caption, svg, tuple(legend))


def stacked(
    topic: TopicView,
    parts: Callable[[CaseView], Mapping[str, float]],
    colour: Callable[[str], str],
    axis: str,
    label: str,
) -> tuple[str, str, set[str]] | None:
    """A bar of ``parts`` for each engine: the caption, the chart and the names of the parts that it shows."""
    panel = _panel(topic, lambda case: bool(parts(case)))
    if panel is None:
        return None
    rows = [row for case in panel.cases for row in _stack(case, parts(case).items(), colour)]
    used = {name for case in panel.cases for name, size in parts(case).items() if size}
    return panel.caption, _rows_chart(panel, rows, axis, label), used


def _by_collective(record: Record) -> dict[str, float]:
    """Bytes by operator; the engine's other traffic (padding, control) is a part of its own."""
    detail = record["detail"]
    parts = {name: float(entry.get("bytes", 0)) for name, entry in (detail.get("by_op") or {}).items()}
    rest = record["value"] - sum(parts.values())
    return parts | ({BESIDES: rest} if rest > 0 and parts else {}) or {"all collectives": record["value"]}


def throughput(topic: TopicView, slots: Mapping[str, int]) -> Figure | None:
    """Median step time with its 95 % interval, above the single steps."""
    panel = _panel(topic, lambda case: fast(case) is not None)
    if panel is None:
        return None
    chosen = [(case, record) for case in panel.cases if (record := fast(case))]
    scale, unit = units.second_unit(max(record["value"] for _, record in chosen))
    rows: list[Mark] = []
    for case, record in chosen:
        colour, detail = palette.engine_colour(slots[case.engine]), record["detail"]
        samples = [sample for sample in detail.get("samples") or () if sample is not None]
        rows += [_row(case, "sample", sample / scale, colour=colour) for sample in _thin(samples, MAX_SAMPLES)]
        if detail.get("low") is not None and detail.get("high") is not None:
            rows.append(_row(case, "interval", detail["low"] / scale, detail["high"] / scale, colour=colour))
        rows.append(_row(case, "dot", record["value"] / scale, colour=colour))
    svg = _rows_chart(panel, rows, f"{unit} a step", f"{topic.title}: step time by engine")
    return Figure("Step time", f"{panel.caption}; dot: median, bar: 95 % interval, ticks: single steps", svg)


def loss(topic: TopicView, slots: Mapping[str, int]) -> Figure | None:
    panel = _panel(topic, lambda case: bool(_losses(case)[0]))
    if panel is None:
        return None
    points: list[Point] = []
    for case in panel.cases:
        losses, oracle = _losses(case)
        if not any(point.variant == case.setting.variant for point in points):
            points += _curve(case, ORACLE, oracle, "var(--oracle)")
        points += _curve(case, case.engine, losses, palette.engine_colour(slots[case.engine]))
    svg = _curves_chart(panel, points, f"{topic.title}: loss by step")
    return Figure("Loss", panel.caption, svg, _curve_legend(points))


def loss_error(topic: TopicView, slots: Mapping[str, int]) -> Figure | None:
    """|loss − oracle's loss|; an exact zero cannot be drawn on a logarithmic axis and is left out."""

    def errors(case: CaseView) -> list[float | None]:
        losses, oracle = _losses(case)
        pairs = zip(losses, oracle, strict=False)
        return [abs(a - b) or None if a is not None and b is not None else None for a, b in pairs]

    panel = _panel(topic, lambda case: any(errors(case)))
    if panel is None:
        return None
    points: list[Point] = []
    for case in panel.cases:
        points += _curve(case, case.engine, errors(case), palette.engine_colour(slots[case.engine]))
    svg = _curves_chart(panel, points, f"{topic.title}: error of the loss by step", log=True)
    return Figure("Error of the loss", f"{panel.caption}; |loss − float64 oracle's|", svg, _curve_legend(points))


def _losses(case: CaseView) -> tuple[list[float | None], list[float | None]]:
    """The longest recorded curve with a visible change, and the oracle's beside it. A loss that was not a number is
    None."""
    details = [record["detail"] for record in case.records if _shows(record["detail"].get("losses"))]
    longest: Mapping[str, Any] = max(details, key=lambda detail: len(detail["losses"]), default={})
    return list(longest.get("losses") or ()), list(longest.get("oracle_losses") or ())


def _shows(curve: Sequence[float | None] | None) -> bool:
    return any(value is not None for value in curve or ())


@dataclass(frozen=True)
class Panel:
    caption: str
    variants: tuple[str, ...]
    cases: tuple[CaseView, ...]


def _panel(topic: TopicView, has: Callable[[CaseView], bool]) -> Panel | None:
    """The cases that ``has`` selects, at the topology, workload, dtype and device that most of them share."""
    cases = [case for row in topic.settings.values() for case in row.values() if has(case)]
    counts = Counter(case.setting[1:] for case in cases)
    if not counts:
        return None
    bench = max(counts, key=lambda key: (counts[key], world_size(key[0]), key))
    chosen = tuple(case for case in cases if case.setting[1:] == bench)
    variants = tuple(dict.fromkeys(case.setting.variant for case in chosen))
    return Panel(bench_text(chosen[0].setting), variants, chosen)


def bench_text(setting: Setting) -> str:
    return " · ".join(part for part in setting[1:] if part)


def _part(name: str) -> int:
    return PARTS.index(name) if name in PARTS else len(PARTS)


def _shade(part: str) -> str:
    """A figure without parts is drawn in one shade, that of the second part."""
    return palette.shade(_part(part) if part in PARTS else 1)


def _row(case: CaseView, kind: str, x: float, x2: float | None = None, colour: str = "") -> Mark:
    return Mark(case.setting.variant, case.engine, kind, x, x if x2 is None else x2, colour)


def _stack(case: CaseView, sizes: Any, colour: Callable[[str], str]) -> Iterator[Mark]:
    at = 0.0
    for name, size in sizes:
        if size:
            yield _row(case, "bar", at, at + size, colour(name))
            at += size


def _law(case: CaseView, record: Record, scale: float) -> list[Mark]:
    return [] if record["law"] is None else [_row(case, "law", record["law"] / scale, colour="var(--law)")]


def _curve(case: CaseView, series: str, values: Sequence[float | None], colour: str) -> list[Point]:
    points = _thin([(step, y) for step, y in enumerate(values, 1) if y is not None], MAX_POINTS)
    return [Point(case.setting.variant, series, colour, step, y) for step, y in points]


def _thin(points: list[Any], most: int) -> list[Any]:
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _rows_chart(panel: Panel, rows: Sequence[Mark], title: str, label: str) -> str:
    """One line per engine: bars, marks, intervals or dots."""
    engines = list(dict.fromkeys(case.engine for case in panel.cases))
    return draw.rows(rows, panel.variants, engines, title, label)


def _curves_chart(panel: Panel, points: Sequence[Point], label: str, log: bool = False) -> str:
    return draw.curves(points, panel.variants, _dashes(points), ORACLE, label, log)


def _dashes(points: Sequence[Point]) -> dict[str, str]:
    """The dash of each curve by name: neighbours differ, so that curves can be distinguished without their colours."""
    names = list(palette.DASHES)
    series = dict.fromkeys(point.series for point in points if point.series != ORACLE)
    return {ORACLE: "solid"} | {name: names[place % len(names)] for place, name in enumerate(series)}


def _curve_legend(points: Sequence[Point]) -> tuple[tuple[str, str, str], ...]:
    colours = {point.series: point.colour for point in points}
    return tuple((dash, colours[name], name) for name, dash in _dashes(points).items() if name in colours)
