"""Timelines of each rank's actions. Below a pipeline's timeline is the same schedule with equal times and no waiting;
below the timeline of ranks that overlap communication is the communication in flight."""

from collections.abc import Iterator, Sequence
from html import escape

from reports import palette, units
from reports.figures import Figure
from reports.tidy import CaseView, Record, TopicView

Spans = Sequence[Sequence[Sequence[float]]]  # by rank: (kind, stage, micro-batch, start, end) in microseconds

WIDTH, LINE, GAP, HEAD = 360.0, 9.0, 7.0, 15.0  # px
OPACITY = ' opacity="0.45"'
KINDS = {"F": "forward", "B": "backward", "W": "weights' gradients", "C": "communication in flight"}


def timelines(topic: TopicView) -> list[Figure]:
    """One figure per variant, with a strip for each engine and topology."""
    strips: dict[str, list[tuple[CaseView, Record]]] = {}
    for case in topic.cases:
        for record in (*case.of("timeline", "bubble"), *case.of("timeline", "hidden")):
            if _longest(record["detail"].get("measured") or ()):
                strips.setdefault(case.setting.variant, []).append((case, record))
    return [_figure(variant, found) for variant, found in strips.items()]


def _figure(variant: str, found: list[tuple[CaseView, Record]]) -> Figure:
    parts, top = [], 0.0
    alike = any(record["detail"].get("alike") for _, record in found)
    kinds: set[str] = set()
    for case, record in found:
        every, ideal = record["detail"]["measured"], record["detail"].get("ideal")
        measured, flights = ([[s for s in spans if s[0] in some] for spans in every] for some in ("FBW", "C"))
        lower = ideal or flights
        kinds |= {str(span[0]) for spans in (*measured, *lower) for span in spans}
        scale = WIDTH / _longest((*measured, *lower))
        what = f"{record['quantity']} {units.figure(record['value'], '')}"
        text = f"{case.engine}, {case.setting.topology}: {what}"
        text += f", promised {units.figure(record['law'], '')}" if record["law"] is not None else ""
        if record["detail"].get("replayed"):
            text += ", replayed"
        if "drawn" in record["detail"]:
            text += f"; drawn {units.figure(record['detail']['drawn'], '')}"
        parts.append(f'<text x="0" y="{top + 11:.0f}" font-size="11" fill="currentColor">{escape(text)}</text>')
        top += HEAD
        for spans, pale in ((measured, False), (lower, bool(ideal))):
            parts += _strip(spans, top, scale, pale)
            top += len(spans) * LINE + 3
        top += GAP
    svg = (
        f'<svg role="img" aria-label="{escape(variant)}: timeline of each rank" viewBox="0 0 {WIDTH:.0f} {top:.0f}"'
        f' style="max-width:{WIDTH * 1.2:.0f}px">{"".join(parts)}</svg>'
    )
    legend = tuple(("box", _colour(kind), name) for kind, name in KINDS.items() if kind in kinds)
    below = "the communication in flight" if "C" in kinds else "(pale) the same actions with equal times and no waiting"
    caption = f"one line per rank; above as measured, below {below}"
    if alike:
        caption += "; the bubble also uses equal times, and the measured waits unless it is replayed"
    return Figure(f"Timeline of {variant}", caption, svg, legend)


def _longest(every: Spans) -> float:
    """The end of the last action; 0 if no action was recorded."""
    return max((span[4] for spans in every for span in spans), default=0.0)


def _strip(spans: Spans, top: float, scale: float, pale: bool) -> Iterator[str]:
    """One line per rank. Actions are grouped by kind, and share one path if they are pale and need no times of their
    own: they make up most of a page of pipelines."""
    for rank, actions in enumerate(spans):
        yield f'<g transform="translate(0,{top + rank * LINE:.0f})"{OPACITY if pale else ""}>'
        yield f'<path d="M0,0h{WIDTH:.0f}v{LINE - 1:.0f}h-{WIDTH:.0f}z" fill="var(--grid)" opacity="0.5"/>'
        for kind in dict.fromkeys(str(action[0]) for action in actions):
            mine = [action for action in actions if str(action[0]) == kind]
            boxes = (
                f'<path d="{"".join(_box(action, scale) for action in mine)}"/>'
                if pale
                else "".join(f'<path d="{_box(a, scale)}"><title>{_title(a)}</title></path>' for a in mine)
            )
            yield f'<g fill="{_colour(kind)}">{boxes}</g>'
        yield "</g>"


def _box(action: Sequence[float], scale: float) -> str:
    *_, start, end = action
    width = max(0.4, (end - start) * scale - 0.4)
    return f"M{start * scale:.1f},0h{width:.1f}v{LINE - 1:.0f}h-{width:.1f}z"


def _title(action: Sequence[float]) -> str:
    kind, stage, micro, start, end = action
    return f"{KINDS[str(kind)]}, stage {stage:.0f}, micro-batch {micro:.0f}: {units.figure((end - start) / 1e6, 's')}"


def _colour(kind: str) -> str:
    return palette.shade(list(KINDS).index(kind))
