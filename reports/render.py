"""The report from a run's records: a first screen, with the long sections in files beside it or all in one file."""

import hashlib
import itertools
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.store import Store, StoreError
from reports import bottlenecks, findings, folder, overview, pages, palette, pivot, tidy, units

FIRST_ISSUES = 5  # issues of a topic that are shown unfolded
MEANINGS = {
    "pass": "within its bound",
    "fail": "outside its bound",
    "error": "stopped before it could be judged",
    "invalid": "measured under disturbance, discarded",
    "inconclusive": "the difference cannot be distinguished from noise",
    "skipped": "not run",
}


class ReportError(Exception):
    """The report cannot be made; the message is one line with advice."""


@dataclass(frozen=True)
class Part:
    """A section's long content, which opens on demand. ``file`` is its file's name without ending; ``head`` stays on
    the first screen, in the section with the id ``anchor``."""

    file: str
    title: str
    anchor: str
    head: Markup
    body: Markup


@dataclass(frozen=True)
class Report:
    """``index``: the first screen. ``files``: the content of the files in the folder ``beside`` it, by name; none if
    the index holds everything."""

    index: str
    beside: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def render(
    records: Sequence[Mapping[str, Any]], run: Mapping[str, Any], titles: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The report of ``run`` as one HTML file.

    ``records`` and ``run`` are rows of :class:`harness.store.Store`. ``titles`` overrides a topic's facts from its
    card: ``title`` (text), ``sources`` and ``engines`` (lists of text), ``variants`` (by name).
    """
    return report(records, run, titles, single_file=True).index


def report(
    records: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    titles: Mapping[str, Mapping[str, Any]] | None = None,
    single_file: bool = False,
) -> Report:
    """The same, with each topic's tables, charts and cases in files beside the first screen unless ``single_file``."""
    view = tidy.view(records, run, titles or {})
    if not view.topics:
        raise ReportError(f"run {run.get('run')!r} has no records; run pytest suites/ again, or name another run")
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": Markup, "figure": units.figure}
    content = _content(view)

    def filled(name: str, **more: Any) -> Markup:
        return Markup(environment.get_template(name).render(content, **more))

    parts: dict[str, Part] = {}
    for section in content["sections"]:
        topic = section.topic
        head, body = (filled(name, section=section) for name in ("topic_head.html", "topic_body.html"))
        parts[topic.name] = Part(_file(topic.name, parts), topic.title, f"topic-{topic.name}", head, body)
    if content["bottlenecks"]:
        head, body = (filled(name) for name in ("bottlenecks_head.html", "bottlenecks_body.html"))
        parts["#bottlenecks"] = Part(_file("bottlenecks", parts), "What bounds a step", "bottlenecks", head, body)
    if single_file:
        return Report(str(filled("page.html", parts=parts, beside="")))
    contents = {f"{part.file}.js": _script(part) for part in parts.values()}
    contents |= {f"{part.file}.html": _alone(str(filled("alone.html", part=part))) for part in parts.values()}
    contents["style.css"] = _asset("style.css")
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    beside = folder.name(str(run.get("run")), digest)
    return Report(str(filled("page.html", parts=parts, beside=beside)), beside, contents)


def _content(view: tidy.RunView) -> dict[str, Any]:
    """The names that templates use."""
    number = itertools.count(1).__next__

    def numbered(rows: Sequence[pivot.Row]) -> dict[str, str]:
        """An id for each note of a table; a note that many cells share is stored once."""
        notes = dict.fromkeys(cell.note for row in rows for cell in row.cells if cell and cell.note)
        return {note: f"n{number()}" for note in notes}

    slots = palette.slots(view.engines)
    rows = overview.matrix(view)
    return {
        "view": view,
        "summary": pages.summary(view, rows),
        "tally": view.tally(),
        "meanings": MEANINGS,
        "first_issues": FIRST_ISSUES,
        "number": number,
        "numbered": numbered,
        "slots": slots,
        "rows": rows,
        "columns": overview.shared(view),
        "sections": [pages.section(view, row, slots) for row in rows],
        "coverage": overview.coverage(view),
        "places": tidy.PLACES,
        "measures": view.measures,
        "not_tested": overview.not_tested(view),
        "parity_bound": overview.parity_bound(view),
        "cpu_only": overview.timed_on_cpu_only(view),
        "fault_measures": tuple(dict.fromkeys(m for row in view.calibration.get("faults", ()) for m in row["found"])),
        "claims": pages.claims(view),
        "bottlenecks": bottlenecks.bottlenecks(view),
        "findings": findings.groups(view),
        "shown": findings.shown(view),
        "versions": pages.versions(view),
        "style": Markup(_asset("style.css")),
        "script": Markup(_asset("page.js")),
    }


def _file(name: str, parts: Mapping[str, Part]) -> str:
    """A file's name for a part; two parts never share one."""
    file = re.sub(r"[^\w-]", "_", name, flags=re.ASCII)
    while file in {part.file for part in parts.values()}:
        file += "_"
    return file


def _script(part: Part) -> str:
    """A page that was opened from a file may run other files, but it may not read them."""
    return f"plumbline({json.dumps(part.file)}, {json.dumps(part.body, ensure_ascii=False)});\n"


def _alone(page: str) -> str:
    """For readers without JavaScript: nothing is in a template, and links to other sections lead to the index."""
    plain = page.replace("<template>", "").replace("</template>", "")
    return plain.replace('href="#', 'href="../index.html#')


def write(store: Store, run: str | None, place: Path, single_file: bool = False) -> Path:
    """Writes ``place/index.html`` for ``run`` (None: the latest), and the folder of its sections unless
    ``single_file``; returns the path of ``index.html``.

    Any problem with the store, a record, a template or the disk is a :class:`ReportError`. A report that is already
    there is replaced as a whole or left unchanged.
    """
    try:
        records = store.records(run)
        about = store.runs(records[0]["run"]) if records else []
    except StoreError as error:
        raise ReportError(str(error)) from None
    if not records:
        which = f"run {run!r} has no records" if run else "the store's latest run has no records"
        raise ReportError(f"{which}: run pytest suites/ --store URL, or name a run with records")
    made = _made(records, about[0], single_file)
    try:
        return folder.replace(place, made.index, made.beside, made.files)
    except OSError as error:
        raise ReportError(
            f"cannot write {place / 'index.html'}: {error.strerror}; free some space, allow writing there, or name "
            "another folder with --report (the records are stored: plumbline report makes the page from them)"
        ) from None


def _made(records: Sequence[Mapping[str, Any]], run: Mapping[str, Any], single_file: bool) -> Report:
    """This is the last step of a run of hours, and one unexpected record must not end it in a traceback: here, and
    nowhere else, every error becomes one line."""
    try:
        return report(records, run, single_file=single_file)
    except ReportError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = [frame for frame in frames if Path(frame.filename).parent.name in ("reports", "templates")][-1]
        cause = units.first_line(str(error)) or "no message"
        raise ReportError(
            f"run {run['run']} could not be shown: {type(error).__name__}: {cause} "
            f"({Path(place.filename).name}, line {place.lineno}); the records are stored: plumbline records prints them"
        ) from error


def _asset(name: str) -> str:
    return files("reports").joinpath("assets", name).read_text(encoding="utf-8")
