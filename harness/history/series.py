"""A store's runs as series: one figure of one case on one machine, the oldest run first."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from harness.history.model import Point, Series
from harness.store import Store, hardware_key

ABOUT_RUNS = ("card", "calibration", "finding", "claim")  # measures that say nothing about one case
Environments = Mapping[str, Mapping[str, Any]]  # run → its environment


def series(store: Store, **equals: str | Collection[str]) -> list[Series]:
    """Every series of the store, sorted by name; ``equals`` selects records by these columns' values. A record without
    a figure is no point. Raises :class:`harness.store.StoreError`."""
    runs = {found["run"]: found for found in store.runs()}
    return collect((row._asdict() for row in store.series_rows(samples=True, **equals)), runs)


def environments(store: Store) -> Environments:
    return {found["run"]: found["environment"] for found in store.runs()}


def collect(records: Iterable[Mapping[str, Any]], runs: Mapping[str, Mapping[str, Any]]) -> list[Series]:
    """``records`` in any order; ``runs``: run → its row, with ``started`` and ``environment``."""
    machines = {run: machine(run, found["environment"]) for run, found in runs.items()}
    points: dict[tuple[str, str, str, str], list[Point]] = {}
    newest: dict[
        tuple[str, str, str, str], tuple[str, Mapping[str, Any]]
    ] = {}  # a unit or direction may change: the last counts
    for record in records:
        run, value = record["run"], record["value"]
        if value is None or run not in runs:
            continue
        started = str(runs[run]["started"])
        key = (str(record["case"]), str(record["measure"]), str(record["quantity"]), machines[run])
        points.setdefault(key, []).append(Point(run, started, value, record["verdict"], tuple(record["samples"])))
        if key not in newest or newest[key][0] <= started:
            newest[key] = (started, record)
    found = []
    for key in sorted(points):
        case, measure, quantity, where = key
        _, last = newest[key]
        about = {name: last[name] for name in ("unit", "direction", "topic", "engine")}
        ordered = tuple(sorted(points[key], key=lambda point: (point.started, point.run)))
        found.append(Series(case, measure, quantity, machine=where, points=ordered, **about))
    return found


def machine(run: str, environment: Mapping[str, Any]) -> str:
    """The hardware in one line. A run that does not tell its hardware is comparable with no other one."""
    try:
        return hardware_key(environment)
    except ValueError:
        return f"unknown hardware of run {run}"
