"""One night at a time for each store."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text

from harness.store import Store

KEY = "hashtext('plumbline nightly')"
NAMED = 63  # bytes that PostgreSQL keeps of a session's name


class Locked(Exception):
    """Another night uses the store; the text is one line that names it."""


@contextmanager
def lock(store: Store) -> Iterator[None]:
    """Holds the store's lock, which ends with this process, however it ends."""
    mine = f"{socket.gethostname()} pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    held = _file(Path(str(store.engine.url.database)), mine) if _is_file(store) else _server(store, mine)
    with held:
        yield


def _is_file(store: Store) -> bool:
    return store.engine.dialect.name == "sqlite"


@contextmanager
def _file(database: Path, mine: str) -> Iterator[None]:
    path = database.with_name(f"{database.name}.nightly")
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _locked(str(database), file.read().strip()) from None
        file.truncate(0)
        file.write(mine)
        file.flush()
        yield
        file.truncate(0)


@contextmanager
def _server(store: Store, mine: str) -> Iterator[None]:
    """An advisory lock, whose session has the holder as its name."""
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        named = mine.encode()[:NAMED].decode(errors="ignore")
        connection.execute(text("SELECT set_config('application_name', :name, false)"), {"name": named})
        if not connection.execute(text(f"SELECT pg_try_advisory_lock({KEY})")).scalar_one():
            holder = connection.execute(
                text(
                    "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)"
                    " WHERE locktype = 'advisory'"
                    " AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                    f" AND ((classid::bigint << 32) | objid::bigint) = {KEY}::bigint"
                )
            ).scalar()
            raise _locked(store.place, str(holder or "unknown"))
        yield


def _locked(place: str, holder: str) -> Locked:
    return Locked(f"another nightly uses store {place}: {holder or 'it has just begun'}; wait for its end")
