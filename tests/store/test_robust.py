"""Killed writers, many writers, damaged and foreign files, full disks, clocks that jump: a clear line, nothing lost."""

import os
import random
import resource
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from harness.store import Store, StoreError, Writer
from harness.store import store as module
from tests.store.examples import CASE, FINDING, FORK, refusal, write, write_on, written

KILLS, WRITERS, FUZZES = 50, 10, 60


def test_a_writer_killed_at_any_moment_loses_at_most_the_record_it_was_writing(url: str) -> None:
    moments = random.Random(29)
    Store.open(url)
    for _ in range(KILLS):
        reading, told = os.pipe()
        writer = FORK.Process(target=write_on, args=(url, told))
        writer.start()
        os.close(told)
        stored = len(os.read(reading, 1))  # its first record; then a random moment
        time.sleep(moments.uniform(0, 0.02))
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        while part := os.read(reading, 4096):
            stored += len(part)
        os.close(reading)
        found = [record["quantity"] for record in Store.open(url, create=False).records()]
        assert found == [str(number) for number in range(len(found))]
        assert len(found) - stored in (0, 1)
    store = Store.open(url, create=False)
    killed = store.runs()
    assert [run["status"] for run in killed] == ["killed"] * KILLS
    run = store.begin({}, "pytest")
    (line,) = store.notes
    assert f"killed before the end: {killed[0]['run']}; its process ended" in line  # each start told of the one before
    store.finish(run, "finished")
    store.begin({}, "pytest")
    assert store.notes == []  # it is told once


def test_ten_writers_at_once_lose_nothing(url: str) -> None:
    quantities = 40
    started = FORK.Barrier(WRITERS)
    sessions = [FORK.Process(target=write, args=(url, started, quantities)) for _ in range(WRITERS)]
    for session in sessions:
        session.start()
    for session in sessions:
        session.join(120)
    assert [session.exitcode for session in sessions] == [0] * WRITERS
    store = Store.open(url, create=False)
    assert [(run["status"], run["records"]) for run in store.runs()] == [("finished", quantities)] * WRITERS
    for run in store.runs():
        assert [record["quantity"] for record in store.records(run["run"])] == [str(n) for n in range(quantities)]


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    with sqlite3.connect(file) as connection:
        for name in "abcde":
            connection.execute(f"CREATE TABLE {name} (x)")
    connection.close()
    before = file.read_bytes()
    assert "another program's database, with the tables a, b, c and 2 more; give another path" in refusal(str(file))
    assert file.read_bytes() == before


def refused(url: str) -> StoreError | None:
    """The error of a session and its readers; None if they did what they do."""
    try:
        store = Store.open(url)
        written(store, FINDING)
        store.runs()
        store.records("*")
        list(store.series_rows(samples=True))
    except StoreError as error:
        return error
    return None


def test_a_file_damaged_anywhere_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    for _ in range(4):
        store = Store.open(str(whole))
        run = store.begin({"cpu": "x" * 3000}, "pytest")
        store.add(run, CASE, "cpu", [FINDING.but(quantity=str(number)) for number in range(40)])
        store.finish(run, "finished")
    content, places, lines = whole.read_bytes(), random.Random(29), set()
    for number in range(FUZZES):
        damaged = bytearray(content)
        if number % 2:
            start, length = places.randrange(len(content)), places.choice([1, 30, 4096])
            damaged[start : start + length] = places.randbytes(min(length, len(content) - start))
        else:
            del damaged[places.randrange(1, len(content)) :]
        file = tmp_path / f"{number}.db"
        file.write_bytes(damaged)
        error = refused(str(file))
        assert error is None or error.__cause__ is None
        lines.add(str(error or ""))
    assert not any("\n" in line for line in lines)
    assert any("the file is damaged; restore a copy" in line for line in lines)


def test_a_value_that_is_no_json_is_damage_in_one_line(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store.db"))
    written(store, FINDING)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE plumbline_records SET detail = '{'"))
    with pytest.raises(StoreError, match=r"a value in it cannot be read \(.*\); the file is damaged; restore a copy"):
        store.records()


def fill(engine: Engine) -> None:
    """From now on the database has no free page, as on a full disk."""

    def limit(raw: Any, _: object) -> None:
        raw.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead

    event.listen(engine, "connect", limit)


def test_a_full_disk_is_one_line_and_measurements_wait_until_there_is_space(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store.db"))
    run = store.begin({}, "pytest")
    writer = Writer(store, run)
    assert writer.add(CASE, "cpu", [FINDING]) == ""
    full = Store.open(str(tmp_path / "store.db"))
    fill(full.engine)
    writer._store = full
    large = [FINDING.but(quantity=name, reason="x" * 5000) for name in ("first", "second", "third")]
    line = writer.add(CASE, "cpu", large[:1])
    assert "database or disk is full; free some space and try again; until then, measurements are held" in line
    assert writer.add(CASE, "cpu", large[1:2]) == ""  # the line is told once
    with pytest.raises(StoreError, match=r"^2 measurements are not stored: store .*full"):
        writer.flush()
    assert [record["quantity"] for record in store.records()] == ["peak"]
    writer._store = store
    assert writer.add(CASE, "cpu", large[2:]) == ""
    writer.flush()
    assert [record["quantity"] for record in store.records()] == ["peak", "first", "second", "third"]


def limited(url: str, size: int, lines: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    lines.put(str(refused(url) or ""))


@pytest.mark.parametrize("size", [0, 5000, 30_000])
def test_a_disk_without_space_for_a_new_store_is_one_line(tmp_path: Path, size: int) -> None:
    lines = FORK.SimpleQueue()
    session = FORK.Process(target=limited, args=(str(tmp_path / "store.db"), size, lines))
    session.start()
    session.join(60)
    line = lines.get()
    assert session.exitcode == 0
    assert "check the disk and its free space" in line or "free some space" in line
    assert "\n" not in line


def test_a_measurement_that_cannot_be_stored_does_not_keep_the_next_ones_from_it(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store.db"))
    writer = Writer(store, store.begin({}, "pytest"))
    with pytest.raises(TypeError, match="a set cannot be stored"):
        writer.add(CASE, "cpu", [FINDING.but(detail={"x": {1}})])
    assert writer.add(CASE, "cpu", [FINDING]) == ""
    assert len(store.records()) == 1


def test_a_clock_that_jumps_back_changes_no_order_and_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([f"2026-11-{day}T06:00:00.000000+00:00" for day in ("20", "19", "18", "21")])
    monkeypatch.setattr(module, "now", lambda: next(times))
    first = store.begin({}, "pytest")
    assert store.notes == []
    second = store.begin({}, "pytest")
    (line,) = store.notes
    assert f"the clock is behind: it says 2026-11-19T06:00:00, but run {first} began at 2026-11-20T06:00:00" in line
    store.finish(second, "finished")  # on the 18th
    later = store.begin({}, "pytest")
    assert store.notes == []
    assert [run["run"] for run in store.runs()] == [later, second, first]
    run = store.runs(second)[0]
    assert run["started"] == "2026-11-20T06:00:00.000001+00:00"
    assert run["environment"]["clock"] == "2026-11-19T06:00:00.000000+00:00"
    assert run["finished"] == run["started"]


def test_an_id_that_another_run_has_is_not_used_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: next(ends))
    monkeypatch.setattr(module, "now", lambda: "2026-11-20T06:00:00.000000+00:00")
    runs = [store.begin({}, "pytest") for _ in range(2)]
    assert runs == ["20261120-060000-aaaaaa", "20261120-060000-bbbbbb"]
    for run in runs:
        store.add(run, CASE, "cpu", [FINDING])
    assert [run["records"] for run in store.runs()] == [1, 1]


def test_a_run_without_records_is_read_as_one(store: Store) -> None:
    run = store.begin({}, "pytest")
    assert store.records() == []
    assert store.runs()[0]["records"] == 0
    assert list(store.series_rows(run=run)) == []
    assert len(store.frame()) == 0
