"""The report: one self-contained HTML file from a run's records."""

import itertools
import os
import traceback
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.store import Store, StoreError
from reports import bottlenecks, findings, overview, pages, palette, pivot, tidy, units

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


def render(
    records: Sequence[Mapping[str, Any]], run: Mapping[str, Any], titles: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The report of ``run`` as HTML.

    ``records`` and ``run`` are rows of :class:`harness.store.Store`. ``titles`` overrides a topic's facts from its
    card: ``title`` (text), ``sources`` and ``engines`` (lists of text), ``variants`` (by name).
    """
    view = tidy.view(records, run, titles or {})
    if not view.topics:
        raise ReportError(f"run {run.get('run')!r} has no records; run pytest suites/ again, or name another run")
    number = itertools.count(1).__next__

    def numbered(rows: Sequence[pivot.Row]) -> dict[str, str]:
        """An id for each note of a table; a note that many cells share is stored once."""
        notes = dict.fromkeys(cell.note for row in rows for cell in row.cells if cell and cell.note)
        return {note: f"n{number()}" for note in notes}

    slots = palette.slots(view.engines)
    rows = overview.matrix(view)
    environment = Environment(
        loader=PackageLoader("reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": Markup, "figure": units.figure}
    return environment.get_template("page.html").render(
        view=view,
        summary=pages.summary(view, rows),
        tally=view.tally(),
        meanings=MEANINGS,
        first_issues=FIRST_ISSUES,
        number=number,
        numbered=numbered,
        slots=slots,
        rows=rows,
        columns=overview.shared(view),
        sections=[pages.section(view, row, slots) for row in rows],
        coverage=overview.coverage(view),
        places=tidy.PLACES,
        measures=view.measures,
        not_tested=overview.not_tested(view),
        parity_bound=overview.parity_bound(view),
        cpu_only=overview.timed_on_cpu_only(view),
        fault_measures=tuple(dict.fromkeys(m for row in view.calibration.get("faults", ()) for m in row["found"])),
        claims=pages.claims(view),
        bottlenecks=bottlenecks.bottlenecks(view),
        findings=findings.groups(view),
        shown=findings.shown(view),
        versions=pages.versions(view),
        style=Markup(_asset("style.css")),
        script=Markup(_asset("page.js")),
    )


def write(store: Store, run: str | None, folder: Path) -> Path:
    """Writes ``folder/index.html`` for ``run`` (None: the latest) and returns its path.

    Any problem with the store, a record, a template or the disk is a :class:`ReportError`. An existing file is replaced
    as a whole or left unchanged.
    """
    try:
        records = store.records(run)
        runs = {entry["run"]: entry for entry in store.runs()}
    except StoreError as error:
        raise ReportError(str(error)) from None
    if not records:
        which = f"run {run!r} has no records" if run else "the store's latest run has no records"
        raise ReportError(f"{which}: run pytest suites/ --store URL, or name a run with records")
    page = _encoded(records, runs[records[0]["run"]])
    path = folder / "index.html"
    partial = folder / f".index.html.{os.getpid()}"  # in the same folder, where a rename is atomic
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(page)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror}; free some space, allow writing there, or name another folder with "
            "--report (the records are stored: plumbline report makes the page from them)"
        ) from None
    return path


def _encoded(records: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> bytes:
    """The page in UTF-8. This is the last step of a run of hours, and one unexpected record must not end it in a
    traceback: here, and nowhere else, every error becomes one line."""
    try:
        return render(records, run).encode()
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
