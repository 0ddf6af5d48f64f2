"""Charts as SVG for the inside of a page: every colour is a custom property of the page's style.

They are drawn here, since a report has some two hundred: Vega and Altair, which drew them before, took most of the time
of a report.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from reports import palette, units

PLOT, LABELS, NUMBERS, RIGHT = 230, 92, 46, 8  # widths in px: the plot, names and numbers on its left, the margin
LINE, HEAD, GAP, CURVES = 16, 17, 8, 84  # heights in px: an engine, a heading, the space between panels, curves
SIDE = 2 * PLOT  # px, the width of the roofline
LONGEST = 15  # characters of a name that fit on the left of a plot
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
FEW = 12  # steps up to which a curve shows its points


class Mark(NamedTuple):
    """A shape at ``x``, or from ``x`` to ``x2``, on the line of an engine. ``kind`` is one of :func:`_shape`'s."""

    variant: str
    engine: str
    kind: str
    x: float
    x2: float
    colour: str


class Point(NamedTuple):
    variant: str
    series: str
    colour: str
    step: int
    y: float


class Scale(NamedTuple):
    """Maps ``low`` … ``high`` to 0 … ``size`` px."""

    low: float
    high: float
    size: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high, here = (math.log10(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.size * ((here - low) / (high - low) if high > low else 0.5)


def ticks(low: float, high: float, about: int) -> list[float]:
    """``about`` round numbers at equal distances, from one at or below ``low`` to one at or above ``high``."""
    size = high / about - low / about
    if not 1e-300 < size < math.inf:
        return [low, high] if high > low else [low - (abs(low) / 10 or 1), low + (abs(low) / 10 or 1)]
    power = 10.0 ** math.floor(math.log10(size))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power > 0.99 * size)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def powers(values: Sequence[float]) -> list[int]:
    """Of ten, around all ``values``: two at least."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return list(range(low, max(high, low + 1) + 1))


def rows(marks: Sequence[Mark], variants: Sequence[str], engines: Sequence[str], title: str, label: str) -> str:
    """A panel for each variant, and in it a line for each engine."""
    lines = ticks(min(0.0, *(mark.x for mark in marks)), max(mark.x2 for mark in marks), 5)
    scale = Scale(lines[0], lines[-1], PLOT)
    found: dict[tuple[str, str], list[Mark]] = defaultdict(list)
    for mark in marks:
        found[mark.variant, mark.engine].append(mark)
    parts, top = [], 0
    for variant in variants:
        mine = [engine for engine in engines if (variant, engine) in found]
        parts.append(_text(LABELS, top + 11, variant))
        top += HEAD
        parts.append(_grid(LABELS, top, (f"M{scale.at(line):.1f},0v{LINE * len(mine)}" for line in lines)))
        for engine in mine:
            name = engine if len(engine) <= LONGEST else f"{engine[: LONGEST - 1]}…"
            parts.append(_text(LABELS - 5, top + 12, name, "end"))
            parts.append(f'<g transform="translate({LABELS},{top})">{_line(found[variant, engine], scale)}</g>')
            top += LINE
        top += GAP
    return _svg(label, LABELS + PLOT + RIGHT, top + 26, parts, _below(lines, scale, LABELS, top - GAP, title))


def _line(marks: Sequence[Mark], scale: Scale) -> str:
    """An engine's shapes; its samples, which are many, share a path."""
    samples = [mark for mark in marks if mark.kind == "sample"]
    ticked = "".join(f"M{scale.at(mark.x):.1f},4v8" for mark in samples)
    drawn = f'<path d="{ticked}" stroke="{samples[0].colour}" opacity="0.3"/>' if samples else ""
    return drawn + "".join(_shape(mark, scale) for mark in marks if mark.kind != "sample")


def _shape(mark: Mark, scale: Scale) -> str:
    x, x2, colour = scale.at(mark.x), scale.at(mark.x2), mark.colour
    width = x2 - x
    return {
        "bar": f'<path d="M{x:.1f},3h{width:.1f}v10h-{width:.1f}z" fill="{colour}" stroke="var(--paper)" '
        'stroke-width="0.5"/>',
        "interval": f'<path d="M{x:.1f},8h{width:.1f}" stroke="{colour}" stroke-width="3" opacity="0.75"/>',
        "dot": f'<circle cx="{x:.1f}" cy="8" r="3.4" fill="{colour}"/>',
        "law": f'<path d="M{x:.1f},0v{LINE}" stroke="{colour}" stroke-width="2"/>',
        "ring": f'<circle cx="{x:.1f}" cy="8" r="3.1" fill="none" stroke="{colour}" stroke-width="1.4" opacity="0.8"/>',
    }[mark.kind]


def curves(
    points: Sequence[Point], variants: Sequence[str], dashes: Mapping[str, str], broad: str, label: str, log: bool
) -> str:
    """A panel for each variant, and in it a curve for each series. The one named ``broad`` lies below the others."""
    steps, width = max(point.step for point in points), PLOT + LABELS - NUMBERS
    across = Scale(1, steps, width)
    upright = _heights([point.y for point in points], log)
    parts, top = [], 0
    for variant in variants:
        series: dict[str, list[Point]] = defaultdict(list)
        for point in points:
            if point.variant == variant:
                series[point.series].append(point)
        parts.append(_text(NUMBERS, top + 11, variant))
        top += HEAD
        heights = {upright.at(value): text for value, text in _levels(upright)}
        parts.append(_grid(NUMBERS, top, (f"M0,{CURVES - y:.1f}h{width}" for y in heights)))
        parts += [_text(NUMBERS - 5, top + CURVES - y + 4, text, "end", True) for y, text in heights.items()]
        drawn = [
            _curve(series[name], across, upright, dashes[name], name == broad, steps <= FEW)
            for name in sorted(series, key=lambda name: name != broad)
        ]
        parts.append(f'<g transform="translate({NUMBERS},{top})" fill="none">{"".join(drawn)}</g>')
        top += CURVES + GAP
    lines = [line for line in ticks(1, steps, 6) if line == round(line) and 1 <= line <= steps] or [1.0]
    return _svg(label, NUMBERS + width + RIGHT, top + 26, parts, _below(lines, across, NUMBERS, top - GAP, "step"))


def _heights(values: Sequence[float], log: bool) -> Scale:
    if log:
        found = powers(values)
        return Scale(10.0 ** found[0], 10.0 ** found[-1], CURVES, logarithmic=True)
    lines = ticks(min(values), max(values), 4)
    return Scale(lines[0], lines[-1], CURVES)


def _levels(scale: Scale) -> list[tuple[float, str]]:
    """The values that have a line and a number."""
    if not scale.logarithmic:
        return [(line, f"{line:.6g}") for line in ticks(scale.low, scale.high, 4)]
    low, high = round(math.log10(scale.low)), round(math.log10(scale.high))
    return [(10.0**power, f"1e{power}") for power in range(low, high + 1, max(1, (high - low + 2) // 3))]


def _curve(points: Sequence[Point], across: Scale, upright: Scale, dash: str, broad: bool, dotted: bool) -> str:
    places = [(across.at(point.step), CURVES - upright.at(point.y)) for point in points]
    way = "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashes = " ".join(map(str, palette.DASHES[dash]))
    look = 'stroke-width="7"' if broad else f'stroke-width="1.6" stroke-dasharray="{dashes}"'
    line = f'<path d="M{way}" stroke="{points[0].colour}" {look}/>'
    if not dotted:
        return line
    return line + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.1" fill="{points[0].colour}"/>' for x, y in places)


def roofline(
    points: Sequence[tuple[float, float, str]], roof: Sequence[tuple[float, float]], titles: tuple[str, str], label: str
) -> str:
    """``points``: (x, y, colour) below the line ``roof``, on logarithmic axes."""
    wide = [*(x for x, _, _ in points), *(x for x, _ in roof)]
    high = [*(y for _, y, _ in points), *(y for _, y in roof)]
    width, height = SIDE - NUMBERS, PLOT
    across, upright = (
        Scale(10.0 ** some[0], 10.0 ** some[-1], size, logarithmic=True)
        for some, size in ((powers(wide), width), (powers(high), height))
    )
    lines, levels = ([10.0**power for power in powers(values)] for values in (wide, high))
    parts = [_grid(NUMBERS, LINE, (f"M{across.at(line):.1f},0v{height}" for line in lines))]
    parts.append(_grid(NUMBERS, LINE, (f"M0,{height - upright.at(level):.1f}h{width}" for level in levels)))
    for level in levels:
        parts.append(_text(NUMBERS - 5, LINE + height - upright.at(level) + 4, _powered(level), "end", True))
    parts.append(_text(NUMBERS, 11, titles[1], muted=True))
    way = "L".join(f"{across.at(x):.1f},{height - upright.at(y):.1f}" for x, y in roof)
    dots = (
        f'<circle cx="{across.at(x):.1f}" cy="{height - upright.at(y):.1f}" r="3.3" fill="{colour}" opacity="0.85"/>'
        for x, y, colour in points
    )
    roofed = f'<path d="M{way}" stroke="currentColor" stroke-width="1.4" fill="none"/>'
    parts.append(f'<g transform="translate({NUMBERS},{LINE})">{roofed}{"".join(dots)}</g>')
    below = _below(lines, across, NUMBERS, LINE + height, titles[0])
    return _svg(label, SIDE + RIGHT, LINE + height + 34, parts, below)


def _below(lines: Sequence[float], scale: Scale, left: float, top: float, title: str) -> Iterator[str]:
    """The numbers of a horizontal axis, and its title."""
    for line in lines:
        text = _powered(line) if scale.logarithmic else f"{line:.6g}"
        yield _text(left + scale.at(line), top + 13, text, "middle", True)
    yield _text(left + scale.size / 2, top + 28, title, "middle", True)


def _powered(value: float) -> str:
    """``1 G`` or ``100 k``, of a power of ten."""
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if value > 0.99 * size), (1.0, ""))
    return f"{value / size:.6g}{units.SPACE}{prefix}".rstrip()


def _grid(left: float, top: float, lines: Iterator[str]) -> str:
    return f'<path transform="translate({left},{top})" d="{"".join(lines)}" stroke="var(--grid)"/>'


def _text(x: float, y: float, text: str, anchor: str = "", muted: bool = False) -> str:
    aligned = f' text-anchor="{anchor}"' if anchor else ""
    colour = "var(--muted)" if muted else "currentColor"
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{colour}"{aligned}>{escape(text)}</text>'


def _svg(label: str, width: float, height: float, *parts: Sequence[str] | Iterator[str]) -> str:
    drawn = "".join(part for some in parts for part in some)
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}"'
        f' style="max-width:{width * 1.2:.0f}px">{drawn}</svg>'
    )
