"""The store's tables and their version; opens, creates and migrates a store."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import (
    JSON,
    URL,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from harness.store.redact import redact

# Step n - 1 migrates a store from version n to n + 1, in SQL that SQLite and PostgreSQL both understand. The tables
# below have the newest version. A released step is never edited.
STEPS: tuple[tuple[str, ...], ...] = ()

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
    "connection": "check that the server runs, and the host, port, user, password and database in the URL",
    "permission denied": "ask for the right to create and write tables in that database",
}

METADATA = MetaData()

# The prefix keeps a shared PostgreSQL database free of name conflicts.
VERSIONS = Table("plumbline_schema", METADATA, Column("version", Integer, nullable=False))

RUNS = Table(
    "plumbline_runs",
    METADATA,
    Column("run", Text, primary_key=True),
    Column("command", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("started", Text, nullable=False),  # times are UTC in ISO 8601, which sorts as text in both databases
    Column("finished", Text),
    Column("environment", JSON, nullable=False),
)

RECORDS = Table(
    "plumbline_records",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", Text, ForeignKey("plumbline_runs.run"), nullable=False, index=True),
    *(Column(name, Text, nullable=False) for name in ("case", "topic", "variant", "engine", "topology", "workload")),
    *(Column(name, Text, nullable=False) for name in ("dtype", "device", "measure", "quantity")),
    Column("value", Double),
    Column("unit", Text, nullable=False),
    Column("law", Double),
    Column("bound", Double),
    *(Column(name, Text, nullable=False) for name in ("verdict", "reason", "direction")),
    Column("detail", JSON, nullable=False),
    Column("recorded", Text, nullable=False),
    Index("plumbline_series", "case", "measure", "quantity"),
)


class StoreError(Exception):
    """A store that cannot be used; the message is one line with advice."""


def connect(url: str, create: bool = True, steps: Sequence[Sequence[str]] = STEPS) -> Engine:
    """An engine on a store of version ``1 + len(steps)``: created if allowed, migrated in place if older.

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
    _prepare(engine, create, steps)
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
    with _reporting(engine), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end; on SQLite it waits for the lock before it reads or writes anything."""
    with _reporting(engine), engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


@contextmanager
def _reporting(engine: Engine) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        cause = redact(_line(error.orig))
        advice = next((advice for words, advice in ADVICE.items() if words in cause), USAGE)
        # ``from None``: the chain would show the statement with all its values.
        raise StoreError(f"{shown(engine.url)}: {cause}; {advice}") from None
    except (ArgumentError, UnicodeError):  # from an invalid port or host
        raise StoreError(f"{shown(engine.url)}: its URL cannot be used; {USAGE}") from None


def _line(error: object) -> str:
    return " ".join(str(error).split())


def _check_file(path: Path, create: bool) -> None:
    if not path.parent.is_dir():
        raise StoreError(f"store {path}: folder {path.parent} does not exist; create it or give another path")
    if path.is_dir():
        raise StoreError(f"store {path}: this is a folder; give the path of a file in it")
    if not create and not path.exists():
        raise StoreError(f"store {path}: no such file; give the path of a store that a run has written")


def _prepare(engine: Engine, create: bool, steps: Sequence[Sequence[str]]) -> None:
    known = 1 + len(steps)
    with reading(engine) as connection:
        found = _version(connection)
    if found == known:
        return
    if found is None and not create:
        raise StoreError(f"{shown(engine.url)}: has no Plumbline tables; name a store that a run has written")
    if found is None and engine.dialect.name == "sqlite":
        _keep_write_ahead_log(engine)
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('plumbline'))"))
        found = _version(connection)  # checked again: another session may have created it meanwhile
        if found is None:
            METADATA.create_all(connection)
            connection.execute(VERSIONS.insert().values(version=known))
        elif found > known:
            raise StoreError(
                f"{shown(engine.url)}: written by a newer Plumbline (schema version {found}; this one knows {known}); "
                "upgrade Plumbline or name another store"
            )
        else:
            for statement in (statement for step in steps[found - 1 :] for statement in step):
                connection.execute(text(statement))
            connection.execute(VERSIONS.update().values(version=known))


def _version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(VERSIONS.name):
        return None
    version: int = connection.execute(select(VERSIONS.c.version)).scalar_one()
    return version


def _keep_write_ahead_log(engine: Engine) -> None:
    """Lets readers work while a writer does. The mode stays in the file. SQLite's busy timeout does not cover this
    switch, so it retries while another session creates the same file."""
    deadline = time.monotonic() + BUSY_SECONDS
    with reading(engine) as connection:
        while True:
            try:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
