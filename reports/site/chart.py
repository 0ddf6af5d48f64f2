"""The history of one figure as a small SVG: one line per machine, the verdict of each run as the shape of its point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from reports import palette, units

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 118, 62, 6, 8, 20
NEAR = 3.0  # a law or bound further away than this many times the figures would flatten them
LOGARITHMIC = 30.0  # largest over smallest value from which on the axis is logarithmic
CROSS = "m-3-3 6 6m0-6-6 6"


@dataclass(frozen=True)
class Spot:
    """``place``: of its run among those on the page, the oldest first."""

    place: int
    value: float
    verdict: str
    run: str
    line: int  # the number of its machine


@dataclass(frozen=True)
class Mark:
    """A change point at a run."""

    place: int
    text: str


def colour(line: int) -> str:
    return palette.engine_colour(1 + line % (palette.SLOTS - 1))


def dash(line: int) -> str:
    return list(palette.DASHES)[line % len(palette.DASHES)]


def draw(
    spots: Sequence[Spot],
    places: int,
    unit: str,
    label: str,
    law: float | None,
    bound: float | None,
    marks: Sequence[Mark],
) -> str:
    """``places``: the number of runs on the horizontal axis. ``label`` names the chart for those who do not see it."""
    values = [spot.value for spot in spots]
    low, high = min(values), max(values)
    limits = {name: value for name, value in (("law", law), ("bound", bound)) if value is not None}
    limits = {n: v for n, v in limits.items() if low / NEAR <= v <= high * NEAR} if low > 0 else {}
    low, high = min([low, *limits.values()]), max([high, *limits.values()])
    logarithmic = low > 0 and high / low > LOGARITHMIC

    def height(value: float) -> float:
        first, last, here = (math.log(v) if logarithmic else v for v in (low, high, value))
        share = (here - first) / (last - first) if last > first else 0.5
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    def across(place: int) -> float:
        share = place / (places - 1) if places > 1 else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    parts = [f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">']
    for value in dict.fromkeys((low, high)):
        y = height(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(units.figure(value, unit))}</text>'
        )
    for name, value in limits.items():
        parts.append(
            f'<path class="{name}" d="M{LEFT} {height(value):.1f}H{WIDTH - RIGHT}"><title>{name}</title></path>'
        )
    for mark in marks:
        x = across(mark.place)
        parts.append(
            f'<path class="change" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"><title>{escape(mark.text)}</title></path>'
        )
    for line in sorted({spot.line for spot in spots}):
        mine = [spot for spot in spots if spot.line == line]
        way = "L".join(f"{across(spot.place):.1f} {height(spot.value):.1f}" for spot in mine)
        dashes = " ".join(map(str, palette.DASHES[dash(line)]))
        parts.append(f'<g style="color:{colour(line)}"><path class="line" stroke-dasharray="{dashes}" d="M{way}"/>')
        parts += [_point(spot, across(spot.place), height(spot.value), unit) for spot in mine]
        parts.append("</g>")
    first, last = min(spots, key=lambda s: s.place), max(spots, key=lambda s: s.place)
    ends = ((LEFT, "start", first), (WIDTH - RIGHT, "end", last))
    for x, anchor, spot in ends if first.place != last.place else ends[:1]:
        parts.append(f'<text x="{x}" y="{HEIGHT - 5}" text-anchor="{anchor}">{escape(_day(spot.run))}</text>')
    return "".join(parts) + "</svg>"


def _point(spot: Spot, x: float, y: float, unit: str) -> str:
    title = f"<title>{escape(f'{spot.run}: {units.figure(spot.value, unit)}, {spot.verdict}')}</title>"
    if spot.verdict == "fail":
        return f'<path class="cross" d="M{x:.1f} {y:.1f}{CROSS}">{title}</path>'
    hollow = "" if spot.verdict == "pass" else ' class="hollow"'
    return f'<circle{hollow} cx="{x:.1f}" cy="{y:.1f}" r="2.4">{title}</circle>'


def _day(run: str) -> str:
    """The day in a run's id; another id as it is."""
    day = run.partition("-")[0]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 and day.isdigit() else run[:16]
