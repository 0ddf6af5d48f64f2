"""Times the store with a long history and prints the figures: ``python -m tests.bench.store_size [RUNS] [RECORDS]``.

1,000 runs of 1,000 records by default, in a SQLite file of a temporary folder.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store, environment
from harness.store.record import plain, row
from harness.store.schema import writing
from harness.store.tables import RECORDS, RUNS

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
FIGURES_A_CASE = 10
REASON = "within 3 % of the law: parameters, gradients and optimizer state of one rank, and the buckets in flight"


def fill(store: Store, runs: int, records: int) -> None:
    described = plain(environment())
    rows = []
    for number in range(records):
        case = Case("zero", f"zero{number // FIGURES_A_CASE}", "deepspeed", Topology(dp=2), Workload())
        part = number % FIGURES_A_CASE
        detail = {"rank": part} if part else {"samples": [0.1] * 20}
        figure = Measurement("memory", f"part {part}", 0.0, "B", "pass", REASON, 1.0, 2.0, detail=detail)
        rows.append(row("", case, "cpu", figure, ""))
    for night in range(runs):
        started = (FIRST + timedelta(days=night)).isoformat(timespec="microseconds")
        own = {"run": f"{night:06d}", "recorded": started}
        about = {"run": own["run"], "command": "pytest suites", "status": "finished", "started": started}
        with writing(store.engine) as connection:
            connection.execute(RUNS.insert().values(**about, finished=started, environment=described))
            connection.execute(RECORDS.insert(), [{**each, **own, "value": float(night)} for each in rows])


def timed(what: str, call: Callable[[], object]) -> None:
    clock, processor = time.perf_counter(), time.process_time()
    call()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    print(f"{clock:8.3f} s {processor:8.3f} s of a core  {what}", flush=True)


def main(runs: int = 1000, records: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "store.db"
        store = Store.open(str(file))
        timed(f"written: {runs:,} runs of {records:,} records", lambda: fill(store, runs, records))
        print(f"{file.stat().st_size / 2**20:8.0f} MiB")
        case = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload()).id
        timed("opened", lambda: Store.open(str(file)))
        timed("the list of runs", store.runs)
        timed("the records of the latest run", store.records)
        one = {"case": case, "measure": "memory", "quantity": "part 0"}
        timed("one series: records", lambda: store.records("*", **one))
        timed("one series: rows", lambda: list(store.series_rows(**one)))
        timed("one series: rows with samples", lambda: list(store.series_rows(samples=True, **one)))
        timed("one case: rows", lambda: list(store.series_rows(case=case)))
        timed("all rows", lambda: sum(1 for _ in store.series_rows()))
        timed("all rows with samples", lambda: sum(1 for _ in store.series_rows(samples=True)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
