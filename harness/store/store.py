"""The store: runs and their records."""

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects import postgresql, sqlite

from harness.spec import Case, Measurement
from harness.store import query
from harness.store.liveness import process
from harness.store.record import now, plain, row, storable
from harness.store.resume import forget, resume
from harness.store.schema import StoreError, connect, place, reporting, shown, writing
from harness.store.tables import COLUMNS, KEY, RECORDS, RUNS

if TYPE_CHECKING:
    import pandas

ENDS = ("finished", "interrupted", "failed")
INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}  # those that know ON CONFLICT
SAME_TIME = timedelta(minutes=1)  # two machines' clocks may differ by that much without a word


class Store:
    """Every method may raise :class:`StoreError`. Several processes may write to one store at the same time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.notes: list[str] = []  # lines for the user about the state in which the latest run found the store
        self._held: Connection | None = None

    @classmethod
    def open(cls, url: str, create: bool = True) -> "Store":
        """``url``: a path, ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``. An older store is migrated in
        place; a missing one is created, or with ``create=False`` raises a :class:`StoreError`."""
        return cls(connect(url, create))

    @property
    def place(self) -> str:
        """The store's location, without user or password."""
        return place(self.engine.url)

    def begin(self, environment: Mapping[str, Any], command: str) -> str:
        """Begins a run. Its id sorts by time, to the second: ``20261123-063155-a1b2c3``. Runs whose process has ended
        without closing them are marked as killed, which ``notes`` tells.

        A run never begins before the one that began last: where the clock says so, it is dated just after that one, so
        that the order of runs is the true one, and the clock's time is in its environment."""
        clock = now()
        self.notes = []
        with writing(self.engine) as connection:
            killed = query.killed(connection)
            connection.execute(RUNS.update().where(RUNS.c.run.in_(killed)).values(status="killed"))
            self.notes += query.told(killed)
            newest = select(RUNS.c.run, RUNS.c.started).order_by(RUNS.c.started.desc()).limit(1)
            latest = connection.execute(newest).first()
            started = datetime.fromisoformat(clock)
            described = {**environment, "process": process()}
            if latest is not None and clock <= latest.started:
                started = datetime.fromisoformat(latest.started) + timedelta(microseconds=1)
                if started - datetime.fromisoformat(clock) > SAME_TIME:
                    described["clock"] = clock
                    self.notes.append(
                        f"the clock is behind: it says {clock[:19]}, but run {latest.run} began at "
                        f"{latest.started[:19]}; this run is dated just after it; set the clock"
                    )
            row = {"command": storable(command), "status": "running", "started": _iso(started)}
            insert = INSERTS[self.engine.dialect.name](RUNS).on_conflict_do_nothing().returning(RUNS.c.run)
            run = None
            while run is None:  # an id that another run has is tried only once
                name = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
                run = connection.execute(insert.values(run=name, **row, environment=plain(described))).scalar()
        self._hold()
        return str(run)

    def resume(self, run: str, environment: Mapping[str, Any], command: str) -> None:
        """Continues a run that ended early: it is running again, in this process, and keeps its command. Nothing else
        may have changed since: neither the environment nor the options."""
        resume(self.engine, run, environment, command)
        self._hold()

    def forget(self, run: str, case: Case, measure: str) -> None:
        """Removes a test's records, which will be taken again: perhaps other quantities than before."""
        forget(self.engine, run, case.id, measure)

    def _hold(self) -> None:
        """Keeps SQLite's file open during a run: the last connection to close merges the log into it, which is slow,
        and every use would do so."""
        if self.engine.dialect.name == "sqlite" and self._held is None:
            with reporting(self.engine):
                self._held = self.engine.connect()
                self._held.execute(select(RUNS.c.run).limit(1)).all()
                self._held.rollback()

    def finish(self, run: str, status: str) -> None:
        """Ends a run; ``status`` is finished, interrupted or failed."""
        if status not in ENDS:
            raise ValueError(f"status {status!r} is none of {', '.join(ENDS)}")
        with writing(self.engine) as connection:
            started = connection.execute(select(RUNS.c.started).where(RUNS.c.run == run)).scalar()
            if started is None:
                raise self._unknown(run)
            ended = {"status": status, "finished": max(now(), started)}  # the clock may have been set back
            connection.execute(RUNS.update().where(RUNS.c.run == run).values(**ended))
        if self._held is not None:
            self._held.close()
            self._held = None

    def add(self, run: str, case: Case, device: str, measurements: Sequence[Measurement]) -> None:
        """Commits the measurements of one case together and immediately. A later one of the same measure and quantity
        replaces an earlier one."""
        recorded = now()
        rows = [row(run, case, device, measurement, recorded) for measurement in measurements]
        with writing(self.engine) as connection:
            if connection.execute(select(RUNS.c.run).where(RUNS.c.run == run)).first() is None:
                raise self._unknown(run)
            if rows:
                insert = INSERTS[self.engine.dialect.name](RECORDS)
                new = {name: insert.excluded[name] for name in COLUMNS if name not in KEY}
                connection.execute(insert.on_conflict_do_update(index_elements=KEY, set_=new), rows)

    def records(self, run: str | None = None, **equals: object) -> list[dict[str, Any]]:
        """Records as dicts of :data:`query.COLUMNS`, the oldest first, and only the latest of each quantity; from the
        latest run, from the given ``run``, or from all runs (``"*"``). ``equals`` selects records by these columns'
        values."""
        return query.records(self.engine, run, equals)

    def series_rows(self, samples: bool = False, **equals: str | Collection[str]) -> Iterator[query.SeriesRow]:
        """The figures of all runs, read one by one and without the rest of their records, in no certain order.
        ``equals`` selects them by columns of text: one value, or several. ``samples``: with the repetitions that were
        kept behind a figure."""
        return query.series_rows(self.engine, samples, equals)

    def runs(self, run: str | None = None) -> list[dict[str, Any]]:
        """All runs, the newest first, or the given ``run``: run, command, status, started, finished, environment, and
        the number of its records. The status is running, finished, interrupted, failed, or killed (its process ended
        without closing it)."""
        return query.runs(self.engine, run)

    def frame(self, run: str | None = None) -> "pandas.DataFrame":
        """The records of ``run`` (as for :meth:`records`), one per row; missing figures are NaN."""
        return query.frame(self.records(run))

    def run_frame(self, run: str | None = None) -> "pandas.DataFrame":
        """The runs of :meth:`runs`, one per row."""
        return query.run_frame(self.runs(run))

    def _unknown(self, run: str) -> StoreError:
        return StoreError(f"{shown(self.engine.url)}: has no run {run!r}; Store.begin returns the id of a new one")


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="microseconds")
