"""No stored or shown text has passwords or home folders."""

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from harness.store import Store, StoreError, command, redact
from harness.store.schema import parse
from tests.store.conftest import PASSWORD
from tests.store.examples import CASE, FINDING, written

SECRETS = ("hidden", "hid/den", "hid?den", "hid den", "hid#den", "hid%40den", "hid@den", "hid:den", "'hidden'")


def leaks(text: str) -> bool:
    return "hid" in text or "den" in text or "me:" in text


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("words", [["--store"], ["--store="]], ids=["two words", "one"])
def test_a_command_shows_neither_user_nor_password(words: list[str], secret: str) -> None:
    url = f"postgresql://me:{secret}@host:5432/db"
    *before, last = [*words, ""] if words == ["--store"] else words
    shown = command(["pytest", *before, f"{last}{url}", "-k", "zero3"])
    assert not leaks(shown)
    assert shown.replace("'", "") == f"pytest --store{'=' if last else ' '}postgresql://***@host:5432/db -k zero3"


@pytest.mark.parametrize("name", ["password", "pass%77ord", "sslpassword", "user=me&password"])
def test_a_command_shows_no_query_of_a_url(name: str) -> None:
    shown = command(["pytest", f"--store=postgresql://host/db?{name}=hidden&sslmode=require"])
    assert not leaks(shown)
    assert "postgresql://host/db?***" in shown


def test_a_command_shows_no_keyword_that_is_a_password() -> None:
    assert not leaks(command(["pytest", "--store", "host=x password=hidden dbname=y"]))


def test_a_command_without_secrets_stays_as_it_was() -> None:
    words = ["pytest", "suites/", "-k", "zero3 and deepspeed", "--store", "sqlite:////tmp/my@store.db", "a@b"]
    assert command(words) == "pytest suites/ -k 'zero3 and deepspeed' --store sqlite:////tmp/my@store.db a@b"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["{home}/suites", "--report={home}/out"], "~/suites --report=~/out"),
        (["{home}/my work/suites", "{home}"], "~/'my work/suites' ~"),
        (["sqlite:///{home}/store.db"], "sqlite:///~/store.db"),
        (["{home}other/x", "/data{home}/x"], "{home}other/x /data{home}/x"),
    ],
)
def test_the_home_folder_is_a_tilde(
    arguments: list[str], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command([text.format(home=tmp_path) for text in arguments]) == shown.format(home=tmp_path)


def test_a_home_that_is_the_root_leaves_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert redact("/data/x: no such file") == "/data/x: no such file"


def test_a_home_behind_a_link_is_a_tilde_by_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert redact(f"{tmp_path}/real/x and {os.path.realpath(tmp_path)}/link/x") == "~/x and ~/x"


def test_an_engines_output_is_stored_without_passwords_and_home(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    said = f"OSError: {tmp_path}/cache/x; proxy http://me:hidden@proxy:80/, password=hidden 128 tokens=4 a@b"
    kept = "OSError: ~/cache/x; proxy http://***@proxy:80/, password=*** 128 tokens=4 a@b"
    (record,) = written(store, FINDING.but(reason=said, detail={"said": [said]}))
    assert (record["reason"], record["detail"]) == (kept, {"said": [kept]})


@pytest.mark.parametrize("secret", ["hidden", "hid%00den", "hid%40den", "hid/den", "hid den", "hid%25den"])
@pytest.mark.parametrize(
    "form",
    [
        "postgresql://me:{}@127.0.0.1:1/db",
        "postgresql://:{}@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?password={}",
        "postgresql://127.0.0.1:1/db?user=me&password={}&password={}",
        "postgresql://127.0.0.1:1/db?sslpassword={}",
        "postgresql://127.0.0.1:1/db?passwrd={}",
        "postgresql://127.0.0.1:1/db?plugin={}",
        "postgresql://127.0.0.1:1/db?port={}",
        "postgresql://me:{}@127.0.0.1:99999999/db",
        "postgresql://me:{}@[::1/db",
        "postgresql://me:{}@..a/db",
        "postgresql://me:{}@/db?host=127.0.0.1:1&host=127.0.0.1:2",
        "postgres://me:{}@127.0.0.1:1/db",
        "mysql://me:{}@127.0.0.1:1/db",
        "host=127.0.0.1 password={}",
        "me:{}@127.0.0.1/db",
    ],
)
def test_the_password_of_a_bad_url_is_never_repeated(
    form: str, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg", reason="needs the driver: pip install 'plumbline[postgresql]'")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError) as caught:
        Store.open(form.format(secret, secret))
    assert not leaks(str(caught.value))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_the_query_is_hidden_wherever_the_url_is_shown() -> None:
    url = parse("postgresql://host/db?password=hid%40den&sslmode=require")
    assert not leaks(repr(url))
    assert url.password == "hid@den"
    assert dict(url.query) == {"sslmode": "require"}


def test_a_store_is_reached_by_a_password_in_the_query(postgresql: str) -> None:
    parts = urlsplit(postgresql)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    store = Store.open(f"{bare}?user=plumbline&password={quote(PASSWORD, safe='')}")
    run = store.begin({}, command(["pytest", f"--store={postgresql}"]))
    store.add(run, CASE, "cpu", [FINDING])
    assert PASSWORD not in str(store.runs())
    assert "://***@" in store.runs()[0]["command"]
