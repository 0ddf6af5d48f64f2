"""A SQLite file and a real PostgreSQL server, so that both test every promise of the store."""

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from harness.store import Store
from tests.store.examples import PASSWORD


@pytest.fixture(scope="session")
def public_folder() -> Iterator[Path]:
    """A folder that other users may enter; they may not enter pytest's own."""
    with tempfile.TemporaryDirectory(prefix="plumbline-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def postgresql_server(public_folder: Path) -> Iterator[URL]:
    """A throwaway cluster on a free port of 127.0.0.1, with one user ``plumbline``, who has a password."""
    pytest.importorskip("psycopg", reason="needs the driver: pip install 'plumbline[postgresql]'")
    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if found is None:
        pytest.skip("no PostgreSQL server here: install the Debian package postgresql")
    programs = Path(found).parent
    # PostgreSQL refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    home = public_folder / "postgresql"
    home.mkdir()
    (home / "password").write_text(PASSWORD)
    if user:
        shutil.chown(home, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(program: str, *arguments: str) -> None:
        command = [*user, str(programs / program), "-D", str(home / "data"), *arguments]
        done = subprocess.run(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, f"{program}: {done.stderr}"

    call(
        "initdb", "-U", "plumbline", f"--pwfile={home / 'password'}", "--auth=scram-sha-256", "--no-sync",
        "--no-locale", "--encoding=UTF8",
    )  # fmt: skip
    call("pg_ctl", "start", "-w", "-l", str(home / "log"), "-o", f"-p {port} -k {home} -h 127.0.0.1 -F")
    try:
        yield URL.create("postgresql", "plumbline", PASSWORD, "127.0.0.1", port, "postgres")
    finally:
        call("pg_ctl", "stop", "-w", "-m", "immediate")


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return count()


@pytest.fixture
def postgresql(postgresql_server: URL, numbers: Iterator[int]) -> str:
    """The URL of a new, empty database."""
    name = f"plumbline{next(numbers)}"
    engine = create_engine(postgresql_server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgresql_server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    found = request.getfixturevalue("postgresql")
    assert make_url(found).password == PASSWORD
    return str(found)


@pytest.fixture
def store(url: str) -> Store:
    return Store.open(url)
