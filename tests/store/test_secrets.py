"""A password on the command line is nowhere in what a session leaves or prints."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from harness.store import Store
from tests.sessions import SKIPPED, SUITES
from tests.store.conftest import PASSWORD


def forms(url: str) -> dict[str, list[str]]:
    """The ways to give a store, each with the password in it."""
    bare = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
    query = f"{bare}?user=plumbline&password={quote(PASSWORD, safe='')}"
    return {"two words": ["--store", url], "one": [f"--store={url}"], "query": [f"--store={query}"]}


@pytest.mark.parametrize("form", ["two words", "one", "query"])
def test_a_password_is_in_neither_store_report_output_nor_records(
    postgresql: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = (PASSWORD, quote(PASSWORD, safe=""), "s3cret")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    store = forms(postgresql)[form]
    report = home / "report"

    def call(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "400"})
        assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
        return done.stdout + done.stderr

    seen = [call("pytest", SUITES, "-p", "no:cacheprovider", *SKIPPED, *store, "--report", str(report), "-vv", "-rA")]
    seen += [
        call("harness.cli", "records", *store, *more) for more in ((), ("--runs",), ("--runs", "--format", "json"))
    ]
    seen += [call("harness.cli", "report", *store, "--report", "later")]
    seen += [file.read_text() for folder in (report, Path("later")) for file in folder.rglob("*.*")]
    engine = Store.open(postgresql, create=False).engine
    with engine.connect() as connection:
        for table in ("plumbline_runs", "plumbline_records"):
            seen.append(str(connection.exec_driver_sql(f"SELECT * FROM {table}").all()))
    for text in seen:
        assert not any(secret in text for secret in secrets)
    (command,) = {run["command"] for run in Store.open(postgresql, create=False).runs()}
    assert "--report ~/report" in command
    assert "://" in command
    assert str(home) not in "".join(seen[1:])
