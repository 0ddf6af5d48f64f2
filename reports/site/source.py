"""What the site reads from a store of a million records: no statement loads all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from packaging.version import InvalidVersion, Version
from sqlalchemy import func, select

from harness.store import Store, hardware_key, published
from harness.store.query import killed
from harness.store.record import ALIASES
from harness.store.schema import reading
from harness.store.tables import RECORDS, RUNS

NOT_FIGURES = ("card", "claim", "calibration", "finding")  # measures that describe the run
HISTORY = ("run", "measure", "quantity", "value", "unit", "law", "bound", "verdict", "direction")
UNKNOWN = "unknown hardware"
CHUNK = 500  # values of one statement


@dataclass(frozen=True)
class Run:
    """A row of the runs. ``head`` changes with every record of it."""

    run: str
    command: str
    status: str
    started: str
    finished: str | None
    environment: Mapping[str, Any]
    head: str

    @cached_property
    def machine(self) -> str:
        try:
            return hardware_key(self.environment)
        except (ValueError, TypeError):  # written by hand, or by another program
            return UNKNOWN

    @cached_property
    def packages(self) -> dict[str, str]:
        """Python and the installed packages."""
        found = {"python": self.environment["python"]} if self.environment.get("python") else {}
        return found | {n: v for n, v in (self.environment.get("packages") or {}).items() if v}

    @cached_property
    def torch(self) -> str:
        return self.packages.get("torch", "")

    @cached_property
    def software(self) -> str:
        """Equal for runs of which the one is the other again."""
        return f"{sorted(self.packages.items())} {self.environment.get('commit')} {self.environment.get('variables')}"


class Head(NamedTuple):
    """``text`` changes with every record of the case; ``run`` wrote the last one."""

    text: str
    run: str


def runs(store: Store) -> list[Run]:
    """The newest first."""
    heads = select(RECORDS.c.run, func.count(), func.max(RECORDS.c.id)).group_by(RECORDS.c.run)
    with reading(store.engine) as connection:
        rows = connection.execute(select(RUNS).order_by(RUNS.c.started.desc(), RUNS.c.run.desc())).mappings().all()
        counts = {run: f"{count} records to {last}" for run, count, last in connection.execute(heads)}
        dead = set(killed(connection))
    found = []
    for row in published([dict(row) for row in rows]):
        status = "killed" if row["run"] in dead else row["status"]
        environment = {name: value for name, value in row["environment"].items() if name != "process"}
        head = f"{counts.get(row['run'], 'no records')}, {status} {row['finished']}"
        found.append(Run(row["run"], row["command"], status, row["started"], row["finished"], environment, head))
    return found


def cases(store: Store) -> dict[str, Head]:
    last = func.max(RECORDS.c.id)
    heads = (
        select(RECORDS.c.case, func.count(), last).where(RECORDS.c.measure.not_in(NOT_FIGURES)).group_by(RECORDS.c.case)
    )
    found: dict[str, Head] = {}
    with reading(store.engine) as connection:
        rows = connection.execute(heads).all()
        written: dict[int, str] = {}
        ids = [last for _, _, last in rows]
        for start in range(0, len(ids), CHUNK):
            some = select(RECORDS.c.id, RECORDS.c.run).where(RECORDS.c.id.in_(ids[start : start + CHUNK]))
            written.update((number, run) for number, run in connection.execute(some))
    for case, count, last_id in sorted(rows, key=lambda row: row[2]):
        name = ALIASES.get(case, case)
        before = f"{found[name].text}, " if name in found else ""
        found[name] = Head(f"{before}{count} records to {last_id}", written[last_id])
    return found


def records(store: Store, run: str, **equals: object) -> list[dict[str, Any]]:
    """A run's records, as everybody may read them."""
    found: list[dict[str, Any]] = published(store.records(run, **equals))
    return found


def history(store: Store, case: str) -> list[dict[str, Any]]:
    """The figures of a case in all runs without their details, the oldest record first, the latest of each run."""
    columns = [RECORDS.c[name] for name in HISTORY]
    statement = select(*columns).where(RECORDS.c.case.in_(_spellings(case))).order_by(RECORDS.c.id)
    with reading(store.engine) as connection:
        rows = [dict(zip(HISTORY, row, strict=True)) for row in connection.execute(statement)]
    latest = {(row["run"], row["measure"], row["quantity"]): row for row in rows}
    return [row for row in latest.values() if row["measure"] not in NOT_FIGURES]


def verdicts(store: Store, run: str) -> dict[tuple[str, str, str], str]:
    """(case, measure, quantity) → verdict in a run."""
    columns = [RECORDS.c[name] for name in ("case", "measure", "quantity", "verdict")]
    statement = select(*columns).where(RECORDS.c.run == run).order_by(RECORDS.c.id)
    with reading(store.engine) as connection:
        rows = connection.execute(statement).all()
    return {(ALIASES.get(case, case), measure, quantity): verdict for case, measure, quantity, verdict in rows}


def newest(versions: Sequence[str]) -> str:
    """The highest version; empty if there is none."""
    known = []
    for text in set(versions):
        try:
            known.append((Version(text), text))
        except InvalidVersion:  # a build of one's own
            continue
    return max(known)[1] if known else max(versions, default="")


def _spellings(case: str) -> list[str]:
    return [case, *(old for old, new in ALIASES.items() if new == case)]
