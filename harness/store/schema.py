"""Opens, creates and migrates a store, and says in one line why one cannot be used."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from harness.store.redact import redact
from harness.store.tables import BASELINE, HEAD, METADATA, NOT_FOR_OLD_RELEASES, REVISIONS, VERSIONS

BUSY_SECONDS = 60  # time a writer waits for another one's transaction; each takes a few milliseconds
CONNECT_SECONDS = 10

DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
USAGE = "give a path, sqlite:///FILE or postgresql://USER@HOST/DATABASE, with the password in PGPASSWORD or ~/.pgpass"

# Part of a database's error message → advice.
ADVICE = {
    "not a database": "this file has another format; give another path",
    "malformed": "the file is damaged; restore a copy or give another path",
    "readonly": "allow writing to the file and its folder, or give another path",
    "unable to open": "allow writing to the file and its folder, or give another path",
    "locked": "another program has locked it; end that program and try again",
    "full": "free some space and try again",
    "disk I/O error": "check the disk and its free space, and try again",
    "no space left": "free some space on the server and try again",
    "connection": "check that the server runs, and the host, port, user, password and database in the URL",
    "permission denied": "ask for the right to create and write tables in that database",
}


class StoreError(Exception):
    """A store that cannot be used; the message is one line with advice."""


def connect(url: str, create: bool = True, head: str = HEAD, folder: Path | None = None) -> Engine:
    """An engine on a store of revision ``head``: created if allowed, migrated in place if older. ``folder``: other
    migrations than our own.

    Every use opens and closes its own connection, so an engine survives a fork and a server's restart.
    """
    address = parse(url)
    if address.database and address.drivername == "sqlite":
        _check_file(Path(address.database), create)
        options: dict[str, object] = {"timeout": BUSY_SECONDS}
    else:
        options = {} if "connect_timeout" in address.query else {"connect_timeout": CONNECT_SECONDS}
    try:
        engine = create_engine(address, poolclass=NullPool, connect_args=options)
    except ImportError as error:
        message = f"{shown(address)}: driver not installed ({_line(error)}); pip install 'plumbline[postgresql]'"
        raise StoreError(message) from None
    except SQLAlchemyError:  # the message may repeat a part of the URL
        raise StoreError(f"{shown(address)}: its URL cannot be used; {USAGE}") from None
    if address.drivername == "sqlite":
        # A commit reaches the write-ahead log but not yet the disk: it outlives this process, which is enough.
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = NORMAL"))
    _prepare(engine, create, head, folder)
    return engine


def parse(url: str) -> URL:
    """A path or URL as an SQLAlchemy URL of a supported driver. Messages repeat only the scheme of a bad URL, since a
    password may be anywhere in it."""
    scheme = re.match(r"([A-Za-z][\w+.-]+)(:|//)", url)
    if scheme is None and re.search(r"\bpassword\s*=", url):
        raise StoreError(f"the store is given as libpq's keywords, not as a URL; {USAGE}")
    if scheme is None:
        return URL.create("sqlite", database=str(Path(url).expanduser()))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError(f"the {scheme[1]} URL of the store cannot be read; {USAGE}") from None
    if parsed.drivername not in DRIVERS:
        raise StoreError(f"driver {parsed.drivername!r} of the store is none of {', '.join(DRIVERS)}; {USAGE}")
    if parsed.drivername.startswith("sqlite") and (parsed.host or parsed.database in (None, "", ":memory:")):
        raise StoreError("the sqlite URL of the store names no file; write sqlite:///FILE, with three slashes")
    if not parsed.drivername.startswith("sqlite") and url.count("@") > 1:
        raise StoreError(
            f"the {scheme[1]} URL of the store has more than one @; write %40 for one in a user or password"
        )
    # SQLAlchemy hides the password here, also in a traceback.
    password = parsed.normalized_query.get("password", (None,))[-1]
    return parsed.difference_update_query(["password"]).set(drivername=DRIVERS[parsed.drivername], password=password)


def shown(url: URL) -> str:
    """The name of a store in messages."""
    return f"store {place(url)}"


def place(url: URL) -> str:
    """A path, or a URL without its query, in which user and password are ``***``."""
    if url.drivername == "sqlite":
        return str(url.database)
    bare = URL.create("postgresql", host=url.host, port=url.port, database=url.database).render_as_string()
    return bare.replace("://", "://***@", 1) if url.username or url.password else bare


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """All that is read in it is of one moment, whatever other sessions commit meanwhile."""
    with reporting(engine), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end; on SQLite it waits for the lock before it reads or writes anything."""
    with reporting(engine), engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


@contextmanager
def reporting(engine: Engine) -> Iterator[None]:
    """Every error of the database becomes a :class:`StoreError`."""
    try:
        yield
    except DBAPIError as error:
        cause = redact(_line(error.orig))
        advice = next((advice for words, advice in ADVICE.items() if words in cause), USAGE)
        # ``from None``: the chain would show the statement with all its values.
        raise StoreError(f"{shown(engine.url)}: {cause}; {advice}") from None
    except (ArgumentError, UnicodeError):  # from an invalid port or host
        raise StoreError(f"{shown(engine.url)}: its URL cannot be used; {USAGE}") from None
    except ValueError as error:  # a text that is no JSON or no time
        reason = f"a value in it cannot be read ({redact(_line(error))})"
        raise StoreError(f"{shown(engine.url)}: {reason}; {ADVICE['malformed']}") from None


def _line(error: object) -> str:
    return " ".join(str(error).split())


def _check_file(path: Path, create: bool) -> None:
    if not path.parent.is_dir():
        raise StoreError(f"store {path}: folder {path.parent} does not exist; create it or give another path")
    if path.is_dir():
        raise StoreError(f"store {path}: this is a folder; give the path of a file in it")
    if not create and not path.exists():
        raise StoreError(f"store {path}: no such file; give the path of a store that a run has written")


def _prepare(engine: Engine, create: bool, head: str, folder: Path | None) -> None:
    with reading(engine) as connection:
        found = _revision(connection)
        if found is None:
            _check_tables(connection, create)
    if found == head:
        return
    if found is None and engine.dialect.name == "sqlite":
        _keep_write_ahead_log(engine)
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('plumbline'))"))
        found = _revision(connection)  # checked again: another session may have created it meanwhile
        if found is None:
            METADATA.create_all(connection)
            connection.execute(REVISIONS.insert().values(version_num=HEAD))
            connection.execute(VERSIONS.insert().values(version=NOT_FOR_OLD_RELEASES))
            found = HEAD
        if found != head:
            _migrate(connection, found, head, folder)


def _revision(connection: Connection) -> str | None:
    """The revision of the store's tables; None without tables of ours."""
    tables = inspect(connection)
    if tables.has_table(REVISIONS.name):
        found: list[str] = list(connection.execute(select(REVISIONS.c.version_num)).scalars())
    elif tables.has_table(VERSIONS.name):
        numbers = connection.execute(select(VERSIONS.c.version)).scalars()
        found = [BASELINE for number in numbers if number == 1]
    else:
        return None
    if len(found) != 1:
        damaged = "its tables name no version, or more than one, so it is damaged; restore a copy or name another store"
        raise StoreError(f"{shown(connection.engine.url)}: {damaged}")
    return found[0]


def _check_tables(connection: Connection, create: bool) -> None:
    """A server's database may be shared; a file with other tables belongs to another program."""
    if not create:
        raise StoreError(
            f"{shown(connection.engine.url)}: has no Plumbline tables; name a store that a run has written"
        )
    names = inspect(connection).get_table_names() if connection.dialect.name == "sqlite" else []
    others = sorted({*names} - {*METADATA.tables})  # ours may have been created just now
    if others:
        some = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        reason = f"is another program's database, with the tables {some}; give another path"
        raise StoreError(f"{shown(connection.engine.url)}: {redact(_line(reason))}")


def _migrate(connection: Connection, found: str, head: str, folder: Path | None) -> None:
    from harness.store import migrate  # it imports Alembic, which a store of today does not need

    folder = folder or migrate.MIGRATIONS
    if not migrate.known(found, folder):
        raise StoreError(
            f"{shown(connection.engine.url)}: written by a newer Plumbline (schema revision {found}; this one knows "
            f"{head}); upgrade Plumbline or name another store"
        )
    if not inspect(connection).has_table(REVISIONS.name):
        migrate.stamp(connection, found, folder)
    migrate.upgrade(connection, head, folder)


def _keep_write_ahead_log(engine: Engine) -> None:
    """Lets readers work while a writer does. The mode stays in the file. SQLite's busy timeout does not cover this
    switch, so it retries while another session creates the same file."""
    deadline = time.monotonic() + BUSY_SECONDS
    with reporting(engine), engine.connect() as connection:
        while True:
            try:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
