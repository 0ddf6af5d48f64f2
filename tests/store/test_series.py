"""The history's way to read: all runs, without the rest of each record, and by an index."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import event

from harness.store import SeriesRow, Store, StoreError, query
from tests.store.examples import CASE, FINDING

OTHER = replace(CASE, engine="megatron")
TIMED = FINDING.but(measure="throughput", quantity="step", unit="s", value=0.2, detail={"samples": [0.1, 0.2, 0.3]})


@pytest.fixture
def runs(store: Store) -> list[str]:
    found = []
    for number in range(3):
        run = store.begin({"cpu": "x"}, "pytest")
        for case in (CASE, OTHER):
            store.add(run, case, "cpu", [FINDING.but(value=float(number)), TIMED, FINDING.but(value=number + 0.5)])
        store.finish(run, "finished")
        found.append(run)
    return found


def test_rows_of_all_runs_tell_when_their_run_began(store: Store, runs: list[str]) -> None:
    rows = sorted(store.series_rows(case=CASE.id, measure="memory"), key=lambda row: row.started)
    started = {run["run"]: run["started"] for run in store.runs()}
    assert rows == [
        SeriesRow(
            run, started[run], CASE.id, "memory", "peak", "B", "lower", number + 0.5, "pass", CASE.topic, CASE.engine
        )
        for number, run in enumerate(runs)
    ]
    assert len(list(store.series_rows())) == len(runs) * 2 * 2


def test_rows_are_chosen_by_one_text_or_by_several(store: Store, runs: list[str]) -> None:
    rows = list(store.series_rows(run=runs[:2], case=[CASE.id, OTHER.id], quantity="step"))
    assert {(row.run, row.case, row.quantity) for row in rows} == {
        (run, case.id, "step") for run in runs[:2] for case in (CASE, OTHER)
    }
    assert list(store.series_rows(case=[])) == []
    with pytest.raises(StoreError, match=r"no column of text 'value'"):
        list(store.series_rows(value="1"))


def test_samples_come_only_if_asked_for(store: Store, runs: list[str]) -> None:
    assert {row.samples for row in store.series_rows()} == {()}
    assert {(row.measure, row.samples) for row in store.series_rows(samples=True)} == {
        ("memory", ()),
        ("throughput", (0.1, 0.2, 0.3)),
    }


def test_a_renamed_case_is_one_series(store: Store, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "ALIASES", {OTHER.id: CASE.id})
    for name in (CASE.id, OTHER.id):
        assert [row.case for row in store.series_rows(case=name)] == [CASE.id] * len(runs) * 2 * 2


def explained(store: Store, read: Callable[[], object]) -> list[str]:
    """SQLite's plan of each query that ``read()`` makes."""
    statements: list[tuple[str, object]] = []

    def note(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", note)
    read()
    event.remove(store.engine, "before_cursor_execute", note)
    with store.engine.connect() as connection:
        return [
            row[-1]
            for statement, parameters in statements
            if re.search(r"FROM plumbline_(runs|records)", statement)
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_nothing_that_is_read_often_searches_all_records(store: Store, runs: list[str]) -> None:
    for read in (
        lambda: store.records(),
        lambda: store.records(runs[0], measure="memory"),
        lambda: store.records("*", case=CASE.id, measure="memory", quantity="peak"),
        lambda: list(store.series_rows(case=CASE.id)),
        lambda: store.runs(runs[0]),
        lambda: store.add(runs[0], CASE, "cpu", [FINDING]),
    ):
        plan = explained(store, read)
        assert not [step for step in plan if step.startswith("SCAN plumbline_records")], plan
    (scan,) = [step for step in explained(store, store.runs) if step.startswith("SCAN plumbline_records")]
    assert "USING COVERING INDEX" in scan
