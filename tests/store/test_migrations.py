"""Older stores are migrated in place, newer ones refused, and a new one equals one that went through every step."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from harness.store import COLUMNS, Store, StoreError, migrate
from harness.store.schema import connect, reading, writing
from harness.store.tables import HEAD, METADATA, REVISIONS
from tests.store.examples import FINDING, refusal, written

BEFORE = Path(__file__).parent / "before_alembic.sql"  # a store that a release without Alembic wrote, as SQLite's dump
NEXT = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "next", "{before}"

def upgrade():
    op.add_column("plumbline_records", sa.Column("note", sa.Text))
    op.execute("UPDATE plumbline_records SET note = unit")
    {more}
"""


def folder(home: Path, more: str = "") -> Path:
    """Our migrations and a next one."""
    copy = home / f"migrations {len(list(home.iterdir()))} %s"
    shutil.copytree(migrate.MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "versions" / "next.py").write_text(NEXT.format(before=HEAD, more=more))
    return copy


def select(url: str, statement: str) -> list[object]:
    with reading(connect(url, create=False)) as connection:
        return list(connection.execute(text(statement)).scalars())


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"version_table": REVISIONS.name})
    return list(compare_metadata(context, METADATA))


def before_alembic(url: str) -> None:
    """Makes a store of a release without Alembic: with a superseded record, which such a release kept."""
    engine = Store.open(url).engine
    with writing(engine) as connection:
        for table in ("alembic", "schema", "records", "runs"):
            connection.execute(text(f"DROP TABLE plumbline_{table}"))
        migrate.upgrade(connection, "0001")
        connection.execute(text(f"DROP TABLE {REVISIONS.name}"))
        add = "INSERT INTO plumbline_runs VALUES ('r', 'pytest', 'finished', '2026-01-01', NULL, '{\"cpu\": \"x\"}')"
        connection.exec_driver_sql(add)
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        rest = "'t', 'v', 'e', 'dp2', 'tiny', 'fp32', 'cpu'"
        for value, quantity in ((1, "peak"), (2, "other"), (3, "peak")):
            row = f"'r', 'c', {rest}, 'memory', '{quantity}', {value}, 'B', 1, 1, 'pass', '', 'lower', '{{}}', 'now'"
            connection.exec_driver_sql(f"INSERT INTO plumbline_records ({names}) VALUES ({row})")


def test_a_store_of_a_release_without_alembic_is_recognised_and_migrated(url: str) -> None:
    before_alembic(url)
    store = Store.open(url, create=False)
    assert [(r["quantity"], r["value"]) for r in store.records("r")] == [("other", 2.0), ("peak", 3.0)]
    (run,) = store.runs()
    assert (run["records"], run["environment"]) == (2, {"cpu": "x"})
    assert select(url, f"SELECT version_num FROM {REVISIONS.name}") == [HEAD]
    assert len(written(store, FINDING, FINDING)) == 1
    with reading(store.engine) as connection:
        assert differences(connection) == []


def test_a_file_that_such_a_release_wrote_keeps_its_records(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.executescript(BEFORE.read_text())
    connection.close()
    store = Store.open(str(tmp_path / "store.db"))
    assert [(r["quantity"], r["value"]) for r in store.records()] == [("other", 0.1 + 0.2), ("peak", 2.0)]
    assert store.records()[1]["detail"] == FINDING.detail
    assert store.runs()[0]["status"] == "finished"


def test_such_a_release_refuses_a_store_of_today(url: str) -> None:
    Store.open(url)
    assert select(url, "SELECT version FROM plumbline_schema") == [2]  # it knows 1, and compares


def test_a_new_store_equals_one_that_went_through_every_step(url: str) -> None:
    engine = Store.open(url).engine
    with reading(engine) as connection:
        assert differences(connection) == []
    with writing(engine) as connection:
        METADATA.drop_all(connection)
        migrate.upgrade(connection, HEAD)
        assert differences(connection) == []
    assert select(url, "SELECT version FROM plumbline_schema") == [2]
    assert len(written(Store.open(url), FINDING)) == 1


def test_the_newest_step_is_that_of_the_tables() -> None:
    assert ScriptDirectory(str(migrate.MIGRATIONS)).get_heads() == [HEAD]


def test_an_older_store_is_migrated_in_place_and_once(url: str, tmp_path: Path) -> None:
    written(Store.open(url), FINDING)
    steps = folder(tmp_path)
    for _ in range(2):
        engine = connect(url, create=False, head="next", folder=steps)
        with reading(engine) as connection:
            assert connection.execute(text("SELECT note FROM plumbline_records")).scalars().all() == ["B"]
            assert connection.execute(text(f"SELECT * FROM {REVISIONS.name}")).scalars().all() == ["next"]
    assert len(Store(engine).records()) == 1


def test_a_store_of_a_newer_plumbline_is_refused_with_both_revisions(url: str, tmp_path: Path) -> None:
    connect(url, head="next", folder=folder(tmp_path))
    assert f"newer Plumbline (schema revision next; this one knows {HEAD}); upgrade Plumbline" in refusal(url)


def test_a_migration_that_fails_leaves_the_store_as_it_was(url: str, tmp_path: Path) -> None:
    written(Store.open(url), FINDING)
    steps = folder(tmp_path, more='op.execute("INSERT INTO nowhere VALUES (1)")')
    with pytest.raises(StoreError, match="nowhere"):
        connect(url, head="next", folder=steps)
    assert len(written(Store.open(url), FINDING)) == 1
    connect(url, head="next", folder=folder(tmp_path))


@pytest.mark.parametrize("change", ["DELETE FROM plumbline_alembic", "INSERT INTO plumbline_alembic VALUES ('0003')"])
def test_a_store_that_names_no_revision_or_two_is_damaged(url: str, change: str) -> None:
    with writing(Store.open(url).engine) as connection:
        connection.execute(text(change))
    assert "its tables name no version, or more than one, so it is damaged" in refusal(url)


def test_a_store_of_today_is_made_and_opened_without_the_import_of_alembic(tmp_path: Path) -> None:
    opened = f"Store.open({str(tmp_path / 'store.db')!r})"
    script = f"import sys; from harness.store import Store; {opened}; {opened}; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
