"""Reads a store: records, runs, a pandas frame, and its export."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, func, select

from harness.store.liveness import gone
from harness.store.record import ALIASES
from harness.store.schema import RECORDS, RUNS, StoreError, reading, shown

if TYPE_CHECKING:
    import pandas  # imported below where it is used: loading it takes longer than running a case

COLUMNS = tuple(column.name for column in RECORDS.columns if column.name != "id")
FIGURES = ("value", "law", "bound")
KEY = ("run", "case", "measure", "quantity")
OBJECTS = ("detail", "environment")
FORMATS = ("csv", "json", "parquet")


def records(engine: Engine, run: str | None, equals: Mapping[str, object]) -> list[dict[str, Any]]:
    """Implements :meth:`Store.records`."""
    for name in equals:
        if name not in COLUMNS:
            raise StoreError(f"records have no column {name!r}{_nearest(name, COLUMNS)}; known: {', '.join(COLUMNS)}")
    wanted = dict(equals)
    if run != "*":
        wanted["run"] = _run(engine, run)
    if "case" in wanted:
        wanted["case"] = ALIASES.get(str(wanted["case"]), wanted["case"])
    statement = select(*(RECORDS.c[name] for name in COLUMNS)).order_by(RECORDS.c.id)
    # SQL may filter only by the key: a filter by verdict, for example, would return a superseded row as the latest.
    for name in set(KEY) & set(wanted):
        spellings = [wanted[name]]
        if name == "case":
            spellings += [old for old, new in ALIASES.items() if new == wanted[name]]
        statement = statement.where(RECORDS.c[name].in_(spellings))
    with reading(engine) as connection:
        rows = connection.execute(statement).mappings().all()
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        record = {**row, "case": ALIASES.get(row["case"], row["case"])}
        latest[tuple(record[name] for name in KEY)] = record
    return [record for record in latest.values() if all(record[name] == value for name, value in wanted.items())]


def runs(engine: Engine, run: str | None = None) -> list[dict[str, Any]]:
    """Implements :meth:`Store.runs`."""
    distinct = select(*(RECORDS.c[name] for name in KEY)).distinct().subquery()
    counts = select(distinct.c.run, func.count().label("records")).group_by(distinct.c.run).subquery()
    statement = (
        select(RUNS, func.coalesce(counts.c.records, 0).label("records"))
        .outerjoin(counts, RUNS.c.run == counts.c.run)
        .order_by(RUNS.c.started.desc(), RUNS.c.run.desc())
    )
    if run not in (None, "*"):
        statement = statement.where(RUNS.c.run == _run(engine, run))
    with reading(engine) as connection:
        found = [dict(row) for row in connection.execute(statement).mappings()]
        dead = killed(connection)
    for row in found:
        hidden = {name: value for name, value in row["environment"].items() if name != "process"}
        row |= {"environment": hidden, "status": "killed" if row["run"] in dead else row["status"]}
    return found


def killed(connection: Connection) -> list[str]:
    """The runs marked as running whose process has ended."""
    statement = select(RUNS.c.run, RUNS.c.environment).where(RUNS.c.status == "running")
    one_machine = connection.dialect.name == "sqlite"
    rows = connection.execute(statement).all()
    return [run for run, environment in rows if gone(environment.get("process") or {}, one_machine)]


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
    with reading(engine) as connection:
        known = connection.execute(select(RUNS.c.run).order_by(RUNS.c.started, RUNS.c.run)).scalars().all()
    if run is None:
        return known[-1] if known else None
    if run not in known:
        raise StoreError(f"{shown(engine.url)}: has no run {run!r}{_nearest(run, known)}; * means all runs")
    return run


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
