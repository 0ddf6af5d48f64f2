"""Opening a store: versions, and every reason why a store cannot be used."""

import os
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from harness.store import Store, StoreError
from tests.store.examples import CASE, FINDING, PASSWORD, refusal, written


def test_a_path_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("100% a?b #1.db")
    monkeypatch.chdir("/")  # later uses do not depend on the working directory
    assert len(written(store, FINDING)) == 1
    names = {file.name.removesuffix("-shm").removesuffix("-wal") for file in tmp_path.iterdir()}
    assert names == {"100% a?b #1.db"}  # its log is beside it


def test_a_sqlite_store_is_one_file_when_its_run_has_ended(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store.db"))
    run = store.begin({}, "pytest suites/")
    assert (tmp_path / "store.db-wal").exists()  # without a permanent connection, the log would be merged each time
    store.finish(run, "finished")
    assert [file.name for file in tmp_path.iterdir()] == ["store.db"]


def test_a_sqlite_store_keeps_a_write_ahead_log(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "store.db"))
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_the_log_is_switched_on_even_while_another_session_writes(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "store.db", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    end = threading.Timer(0.2, other.rollback)
    end.start()
    store = Store.open(str(tmp_path / "store.db"))
    end.join()
    other.close()
    assert len(written(store, FINDING)) == 1


def test_without_create_a_file_must_exist_and_hold_a_store(tmp_path: Path) -> None:
    assert "no such file" in refusal(str(tmp_path / "none.db"), create=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    assert "has no Plumbline tables" in refusal(str(tmp_path / "empty.db"), create=False)


def test_without_create_a_server_must_hold_a_store(postgresql: str) -> None:
    assert "has no Plumbline tables" in refusal(postgresql, create=False)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    for url in (str(folder / "store.db"), f"sqlite:///{folder}/store.db"):
        assert f"folder {folder} does not exist; create it" in refusal(url)


def test_a_folder_is_not_a_store(tmp_path: Path) -> None:
    assert "this is a folder" in refusal(str(tmp_path))


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("just text, long enough to look like a header" * 50)
    for create in (True, False):
        assert "not a database; this file has another format" in refusal(str(file), create)
    assert file.read_text().startswith("just text")


@pytest.fixture
def unprivileged(public_folder: Path) -> Iterator[Path]:
    """A folder to write in, and from then on not to be written in: root may write anywhere, so it steps down."""
    folder = public_folder / "unprivileged"
    folder.mkdir()
    store = Store.open(str(folder / "store.db"))
    written(store, FINDING)
    (folder / "store.db").chmod(0o444)
    folder.chmod(0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield folder
    if was == 0:
        os.seteuid(0)
    folder.chmod(0o755)


def test_a_folder_or_file_that_may_not_be_written_is_refused(unprivileged: Path) -> None:
    assert "allow writing to the file and its folder" in refusal(str(unprivileged / "new.db"))
    with pytest.raises(StoreError, match="allow writing to the file and its folder"):
        written(Store.open(str(unprivileged / "store.db")), FINDING)


def test_a_bad_url_says_what_to_give() -> None:
    for scheme in ("postgresql:/", "postgresql//", "postgresql:", "user:"):
        assert "give a path, sqlite:///FILE or postgresql://" in refusal(f"{scheme}u:{PASSWORD}@host/db")
    assert "cannot be read" in refusal("postgresql://u:hidden@host:port/db")
    for password in (PASSWORD, "hid@den", "hid@?den"):
        message = refusal(f"postgresql://u:{password}@host/db")
        assert "more than one @; write %40" in message
        assert "den" not in message
    for url in ("sqlite://store.db", "sqlite://", "sqlite:///:memory:"):
        assert "names no file; write sqlite:///FILE" in refusal(url)


@pytest.mark.parametrize("driver", ["nosuch", "postgresql+nosuch", "mysql", "postgresql+psycopg2"])
def test_an_unknown_driver_gets_the_known_ones(driver: str) -> None:
    message = refusal(f"{driver}://u:pw@host/db")
    assert f"driver '{driver}' of the store is none of sqlite, sqlite+pysqlite, postgresql" in message


def test_a_driver_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "driver not installed" in refusal("postgresql://u@127.0.0.1/db")
    assert "pip install 'plumbline[postgresql]'" in refusal("postgresql://u@127.0.0.1/db")


def test_a_postgresql_server_out_of_reach_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="needs the driver: pip install 'plumbline[postgresql]'")
    with socket.socket() as bound:  # bound but not listening: the port is closed, and nobody else can take it
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        message = refusal(f"postgresql://u:hidden1@127.0.0.1:{port}/db?password=hidden2")
    assert f"store postgresql://***@127.0.0.1:{port}/db: " in message
    assert "check that the server runs" in message
    assert "hidden" not in message


def test_a_wrong_password_or_database_is_refused_in_one_line(postgresql: str) -> None:
    url = make_url(postgresql)
    wrong = refusal(url.set(password="hidden").render_as_string(hide_password=False))
    assert "password authentication failed" in wrong
    assert "hidden" not in wrong
    assert 'database "none" does not exist' in refusal(url.set(database="none").render_as_string(hide_password=False))


def test_a_server_error_while_writing_is_one_line_without_the_values(url: str) -> None:
    store = Store.open(url)
    run = store.begin({}, "pytest")
    with store.engine.begin() as connection:
        connection.execute(text("DROP TABLE plumbline_records"))
    with pytest.raises(StoreError) as caught:
        store.add(run, CASE, "cpu", [FINDING])
    assert "plumbline_records" in str(caught.value)
    assert FINDING.reason not in str(caught.value)
    assert "\n" not in str(caught.value)
