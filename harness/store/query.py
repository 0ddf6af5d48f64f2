"""Reads a store: records, runs, a pandas frame, and its export."""

import csv
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Text, func, select

from harness.store.liveness import gone
from harness.store.record import ALIASES
from harness.store.schema import StoreError, reading, shown
from harness.store.tables import COLUMNS, KEY, RECORDS, RUNS

if TYPE_CHECKING:
    import pandas  # imported below where it is used: loading it takes longer than running a case

FIGURES = ("value", "law", "bound")
TEXTS = tuple(name for name in COLUMNS if isinstance(RECORDS.c[name].type, Text))
OBJECTS = ("detail", "environment")
FORMATS = ("csv", "json", "parquet")
ROWS_AT_ONCE = 10_000


class SeriesRow(NamedTuple):
    """One figure of one run, without the rest of its record."""

    run: str
    started: str  # of the run
    case: str
    measure: str
    quantity: str
    unit: str
    direction: str
    value: float | None
    verdict: str
    topic: str
    engine: str
    samples: tuple[float, ...] = ()  # the repetitions behind the figure, if asked for and kept


def records(engine: Engine, run: str | None, equals: Mapping[str, object]) -> list[dict[str, Any]]:
    """Implements :meth:`Store.records`."""
    _check(equals, COLUMNS, "column")
    wanted = dict(equals)
    if run != "*":
        wanted["run"] = _run(engine, run)
    if "case" in wanted:
        wanted["case"] = ALIASES.get(str(wanted["case"]), wanted["case"])
    statement = select(*(RECORDS.c[name] for name in COLUMNS)).order_by(RECORDS.c.id)
    # A case that was renamed within a run may have a figure twice; a filter by its verdict, for example, would then
    # return the former as the latest.
    exact = KEY if ALIASES else TEXTS
    texts = {name: value for name, value in wanted.items() if name in exact and isinstance(value, str)}
    statement = statement.where(*_conditions(texts))
    with reading(engine) as connection:
        rows = connection.execute(statement).mappings().all() if wanted.get("run", "") is not None else []
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        record = {**row, "case": ALIASES.get(row["case"], row["case"])}
        latest[tuple(record[name] for name in KEY)] = record
    return [record for record in latest.values() if all(record[name] == value for name, value in wanted.items())]


def series_rows(engine: Engine, samples: bool, equals: Mapping[str, str | Collection[str]]) -> Iterator[SeriesRow]:
    """Implements :meth:`Store.series_rows`."""
    _check(equals, TEXTS, "column of text")
    names = ("run", "case", "measure", "quantity", "unit", "direction", "value", "verdict", "topic", "engine")
    chosen: list[Any] = [RECORDS.c[name] for name in names]
    if samples:
        chosen.append(RECORDS.c.detail["samples"])
    statement = select(*chosen).where(*_conditions(equals))
    with reading(engine) as connection:
        # read once, not by a join: the rows then share the texts of their run
        began = select(RUNS.c.run, RUNS.c.started)
        runs = {run: (run, started) for run, started in connection.execute(began)}
        streamed = connection.execution_options(yield_per=ROWS_AT_ONCE)
        for run, case, *rest in streamed.execute(statement):
            if run in runs:  # not one that began meanwhile
                repetitions = tuple(rest.pop() or ()) if samples else ()
                yield SeriesRow._make((*runs[run], ALIASES.get(case, case), *rest, repetitions))


def _conditions(equals: Mapping[str, str | Collection[str]]) -> Iterator[ColumnElement[bool]]:
    """SQL's conditions for columns of text that have one value, or one of several; a renamed case has all its names."""
    for name, value in equals.items():
        values = {value} if isinstance(value, str) else set(value)
        if name == "case":
            values = {ALIASES.get(case, case) for case in values}
            values |= {old for old, new in ALIASES.items() if new in values}
        yield RECORDS.c[name] == values.pop() if len(values) == 1 else RECORDS.c[name].in_(sorted(values))


def _check(equals: Mapping[str, object], known: Sequence[str], what: str) -> None:
    for name in equals:
        if name not in known:
            raise StoreError(f"records have no {what} {name!r}{_nearest(name, known)}; known: {', '.join(known)}")


def runs(engine: Engine, run: str | None = None) -> list[dict[str, Any]]:
    """Implements :meth:`Store.runs`."""
    statement = select(RUNS).order_by(RUNS.c.started.desc(), RUNS.c.run.desc())
    counted = select(RECORDS.c.run, func.count().label("records")).group_by(RECORDS.c.run)
    if run not in (None, "*"):
        name = _run(engine, run)
        statement, counted = statement.where(RUNS.c.run == name), counted.where(RECORDS.c.run == name)
    with reading(engine) as connection:
        found = [dict(row) for row in connection.execute(statement).mappings()]
        counts = {row.run: row.records for row in connection.execute(counted)}
        dead = killed(connection)
    for row in found:
        hidden = {name: value for name, value in row["environment"].items() if name != "process"}
        status = "killed" if row["run"] in dead else row["status"]
        row |= {"environment": hidden, "status": status, "records": counts.get(row["run"], 0)}
    return found


def killed(connection: Connection) -> list[str]:
    """The runs marked as running whose process has ended."""
    statement = select(RUNS.c.run, RUNS.c.environment).where(RUNS.c.status == "running")
    one_machine = connection.dialect.name == "sqlite"
    rows = connection.execute(statement).all()
    return [run for run, environment in rows if gone(environment.get("process") or {}, one_machine)]


def told(killed: Sequence[str]) -> list[str]:
    """A line about runs whose process ended without closing them; none if there are none."""
    if not killed:
        return []
    names = ", ".join(killed[:3]) + (f" and {len(killed) - 3} more" if len(killed) > 3 else "")
    ended = "its process" if len(killed) == 1 else "their processes"
    return [
        f"killed before the end: {names}; {ended} ended without closing the run: all records are kept but the one "
        "that was being written"
    ]


def frame(records: list[dict[str, Any]]) -> "pandas.DataFrame":
    """One row per record, or an empty frame with the same columns; the figures are float64."""
    import pandas

    table = pandas.DataFrame(records, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(FIGURES, "float64"))


def run_frame(runs: list[dict[str, Any]]) -> "pandas.DataFrame":
    """One row per run, or an empty frame with the same columns."""
    import pandas

    return pandas.DataFrame(runs, columns=[*(column.name for column in RUNS.columns), "records"])


def export(frame: "pandas.DataFrame", format: str, path: Path | None = None) -> None:
    """Writes ``frame`` as csv, json or parquet to ``path``, or to the standard output.

    ``detail`` and ``environment`` are objects in JSON. CSV and parquet need one type per column, so there they are JSON
    text. Missing figures are null; in CSV an empty field.
    """
    if format not in FORMATS:
        raise StoreError(f"format {format!r} is unknown{_nearest(format, FORMATS)}; known: {', '.join(FORMATS)}")
    content = _encoded(frame, format)
    if path is None:
        sys.stdout.flush()  # the bytes bypass its buffer
        sys.stdout.buffer.write(content)
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; give a file in a folder you may write to") from None


def _encoded(frame: "pandas.DataFrame", format: str) -> bytes:
    if format == "json":
        nullable = frame.astype(object).where(frame.notna(), None)
        return (json.dumps(nullable.to_dict("records"), indent=1, allow_nan=False) + "\n").encode()
    flat = frame.assign(**{name: frame[name].map(json.dumps) for name in OBJECTS if name in frame})
    if format == "csv":
        # All texts are quoted: otherwise csv leaves a lone carriage return unquoted, and readers end the line there.
        return flat.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").encode()
    content = BytesIO()
    flat.to_parquet(content, index=False)
    return content.getvalue()


def _run(engine: Engine, run: str | None) -> str | None:
    """The requested id if the store has it, or the latest run's; None in an empty store."""
    latest_first = select(RUNS.c.run).order_by(RUNS.c.started.desc(), RUNS.c.run.desc())
    with reading(engine) as connection:
        if run is None:
            return connection.execute(latest_first.limit(1)).scalar()
        if connection.execute(select(RUNS.c.run).where(RUNS.c.run == run)).first():
            return run
        known = connection.execute(latest_first).scalars().all()
    raise StoreError(f"{shown(engine.url)}: has no run {run!r}{_nearest(run, known)}; * means all runs")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
