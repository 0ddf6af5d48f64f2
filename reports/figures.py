"""Charts as SVG without colours of their own: Altair draws, and every colour is a custom property of the page's style.

Each chart is one column of small panels, one per variant, all at one topology, workload, dtype and device: the setting
with the most measured cases. The tables show the other settings.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import vl_convert

from reports import palette, units
from reports.tidy import CaseView, Record, Setting, TopicView, fast, measured, world_size

REST = "not told apart"
BESIDES = "padding, control"
PARTS = ("parameters", "gradients", "optimizer", "other", REST)
PLOT, LABELS, NUMBERS = 230, 92, 46  # widths in px: the plot, the names on its left, the numbers on the left of a curve
MAX_POINTS = 120  # points of one curve; longer ones are thinned evenly
MAX_SAMPLES = 40
ORACLE = "float64 oracle"
LIMITS = ((math.floor, min), (math.ceil, max))  # values of a logarithmic axis: the powers of ten around all values
STYLE: dict[str, Any] = {
    "aria": False,
    "font": "Helvetica",  # for measuring labels; the page sets its own font
    "padding": {"left": 0, "right": 8, "top": 0, "bottom": 0},
    "view": {"stroke": None},
    "header": {"labelFontSize": 11, "labelColor": "currentColor"},
    "axis": {
        "domain": False,
        "ticks": False,
        "gridColor": "var(--grid)",
        "labelColor": "var(--muted)",
        "labelFontSize": 11,
        "labelLimit": LABELS - 6,
        "labelPadding": 5,
        "titleColor": "var(--muted)",
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 4,
    },
    "axisY": {"labelColor": "currentColor", "grid": False},
}
Row = dict[str, Any]


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
    rows: list[Row] = []
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
    kinds = {row["kind"] for row in rows}
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
    rows: list[Row] = []
    for case, record in chosen:
        sizes = ((name, split[case.id].get(name, 0) / scale) for name in names)
        rows += _stack(case, sizes, lambda name: palette.shade(names.index(name)))
        rows += _law(case, record, scale)
    if not rows:
        return None
    legend = [("box", palette.shade(place), name) for place, name in enumerate(names)]
    legend += [("law", "", "law")] if any(row["kind"] == "law" for row in rows) else []
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
    rows: list[Row] = []
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
    rows: list[Row] = []
    for case in panel.cases:
        losses, oracle = _losses(case)
        if not any(row["variant"] == case.setting.variant for row in rows):
            rows += _curve(case, ORACLE, oracle, "var(--oracle)")
        rows += _curve(case, case.engine, losses, palette.engine_colour(slots[case.engine]))
    svg = _curves_chart(panel, rows, f"{topic.title}: loss by step")
    return Figure("Loss", panel.caption, svg, _curve_legend(rows))


def loss_error(topic: TopicView, slots: Mapping[str, int]) -> Figure | None:
    """|loss − oracle's loss|; an exact zero cannot be drawn on a logarithmic axis and is left out."""

    def errors(case: CaseView) -> list[float | None]:
        losses, oracle = _losses(case)
        pairs = zip(losses, oracle, strict=False)
        return [abs(a - b) or None if a is not None and b is not None else None for a, b in pairs]

    panel = _panel(topic, lambda case: any(errors(case)))
    if panel is None:
        return None
    rows: list[Row] = []
    for case in panel.cases:
        rows += _curve(case, case.engine, errors(case), palette.engine_colour(slots[case.engine]))
    svg = _curves_chart(panel, rows, f"{topic.title}: error of the loss by step", log=True)
    return Figure("Error of the loss", f"{panel.caption}; |loss − float64 oracle's|", svg, _curve_legend(rows))


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
    cases = [case for row in topic.settings().values() for case in row.values() if has(case)]
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


def _row(case: CaseView, kind: str, x: float, x2: float | None = None, colour: str = "") -> Row:
    names = {"variant": case.setting.variant, "engine": case.engine}
    return names | {"kind": kind, "x": x, "x2": x if x2 is None else x2, "colour": colour}


def _stack(case: CaseView, sizes: Any, colour: Callable[[str], str]) -> Iterator[Row]:
    at = 0.0
    for name, size in sizes:
        if size:
            yield _row(case, "bar", at, at + size, colour(name))
            at += size


def _law(case: CaseView, record: Record, scale: float) -> list[Row]:
    return [] if record["law"] is None else [_row(case, "law", record["law"] / scale, colour="var(--law)")]


def _curve(case: CaseView, series: str, values: Sequence[float | None], colour: str) -> list[Row]:
    points = _thin([(step, y) for step, y in enumerate(values, 1) if y is not None], MAX_POINTS)
    names = {"variant": case.setting.variant, "series": series, "colour": colour}
    return [names | {"step": step, "y": y} for step, y in points]


def _thin(points: list[Any], most: int) -> list[Any]:
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _rows_chart(panel: Panel, rows: list[Row], title: str, label: str) -> str:
    """One line per engine: bars, marks, intervals or dots, according to the rows."""
    order = list(dict.fromkeys(case.engine for case in panel.cases))
    base = alt.Chart().encode(
        x=alt.X("x:Q", title=title, axis=alt.Axis(tickCount=5)),
        y=alt.Y("engine:N", title=None, sort=order, axis=alt.Axis(minExtent=LABELS, maxExtent=LABELS)),
        color=alt.Color("colour:N", scale=None),
    )
    shapes = {
        "bar": base.mark_bar(height=10, stroke="var(--paper)", strokeWidth=0.5).encode(x2="x2:Q"),
        "sample": base.mark_tick(thickness=1, size=8, opacity=0.3),
        "interval": base.mark_rule(strokeWidth=3, opacity=0.75).encode(x2="x2:Q"),
        "dot": base.mark_point(filled=True, size=36, opacity=1),
        "law": base.mark_tick(thickness=2, size=16),
        "ring": base.mark_point(size=30, strokeWidth=1.4, opacity=0.8),
    }
    kinds = {row["kind"] for row in rows}
    layers = [shape.transform_filter(f"datum.kind == '{kind}'") for kind, shape in shapes.items() if kind in kinds]
    layered = alt.layer(*layers).properties(width=PLOT, height={"step": 16})
    return _svg(layered, panel, rows, label)


def _curves_chart(panel: Panel, rows: list[Row], label: str, log: bool = False) -> str:
    steps = max(row["step"] for row in rows)
    series = _dashes(rows)
    dashes = [palette.DASHES[dash] for dash in series.values()]
    axis, scale = alt.Axis(minExtent=NUMBERS, maxExtent=NUMBERS, tickCount=4), alt.Scale(zero=False)
    if log:
        low, high = (round_(math.log10(pick(row["y"] for row in rows))) for round_, pick in LIMITS)
        powers = [10.0**power for power in range(low, high + 1, max(1, (high - low + 2) // 3))]
        scale = alt.Scale(type="log", domain=[10.0**low, 10.0**high], nice=False)
        axis = alt.Axis(minExtent=NUMBERS, maxExtent=NUMBERS, values=powers, format=".0e")
    base = alt.Chart().encode(
        x=alt.X(
            "step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=6), scale=alt.Scale(zero=False, nice=False)
        ),
        y=alt.Y("y:Q", title=None, scale=scale, axis=axis),
        color=alt.Color("colour:N", scale=None),
        detail="series:N",
    )
    oracle = base.mark_line(strokeWidth=7).transform_filter(f"datum.series == '{ORACLE}'")
    lines = (
        base.transform_filter(f"datum.series != '{ORACLE}'")
        .mark_line(strokeWidth=1.6)
        .encode(
            strokeDash=alt.StrokeDash("series:N", scale=alt.Scale(domain=list(series), range=dashes), legend=None),
        )
    )
    layers = [oracle, lines] if any(row["series"] == ORACLE for row in rows) else [lines]
    if steps <= 12:
        layers.append(base.mark_point(filled=True, size=14, opacity=1))
    layered = alt.layer(*layers).properties(width=PLOT + LABELS - NUMBERS, height=84)
    return _svg(layered, panel, rows, label)


def _dashes(rows: list[Row]) -> dict[str, str]:
    """The dash of each curve by name: neighbours differ, so that curves can be distinguished without their colours."""
    names = list(palette.DASHES)
    series = dict.fromkeys(row["series"] for row in rows if row["series"] != ORACLE)
    return {ORACLE: "solid"} | {name: names[place % len(names)] for place, name in enumerate(series)}


def _curve_legend(rows: list[Row]) -> tuple[tuple[str, str, str], ...]:
    colours = {row["series"]: row["colour"] for row in rows}
    return tuple((dash, colours[name], name) for name, dash in _dashes(rows).items() if name in colours)


def _svg(layered: Any, panel: Panel, rows: list[Row], label: str) -> str:
    """One panel per variant. Rows and style are added to the finished specification, which Altair would copy many
    times."""
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start", labelPadding=3)
    row = alt.Row("variant:N", sort=list(panel.variants), header=header)
    chart = layered.facet(data=alt.NamedData("rows"), row=row, spacing=8).resolve_scale(y="independent")
    drawn = {"datasets": {"rows": rows}, "config": STYLE, "background": "transparent"}
    specification = chart.to_dict(validate=False) | drawn  # valid by our tests; checking it takes longer than drawing
    return inline(vl_convert.vegalite_to_svg(specification), label)


def inline(svg: str, label: str) -> str:
    """Adapts a stand-alone SVG for use inside an HTML page: adds a name, and removes attributes only for Vega's
    runtime."""
    svg = re.sub(r'<path class="(?:background|foreground)"[^>]*/>', "", svg)
    svg = re.sub(r'<text [^>]*opacity="0"[^>]*>[^<]*</text>', "", svg)
    attributes = r' (?:class|role|aria-[a-z]+|pointer-events|font-family|stroke-miterlimit|opacity="1)(?:="[^"]*"|")'
    svg = re.sub(r"<[a-z][^>]*>", lambda tag: _rounded(re.sub(attributes, "", tag[0])), svg)
    for _ in range(4):  # nested groups are emptied from the inside
        svg = re.sub(r"<g(?: [^>]*)?></g>", "", svg)
    size = re.search(r'viewBox="[^"]*"', svg)
    if size is None:
        raise ValueError(f"the chart {label!r} was drawn without a viewBox: {svg[:80]!r}")
    width = re.search(r' width="([\d.]+)"', svg)
    style = f' style="max-width:{float(width[1]) * 1.2:.0f}px"' if width else ""
    head = f'<svg role="img" aria-label="{escape(label)}" {size[0]}{style}>'
    return re.sub(r"<svg [^>]*>", lambda _: head, svg, count=1)


def _rounded(tag: str) -> str:
    return re.sub(r"(\d\.\d)\d+", r"\1", tag)
