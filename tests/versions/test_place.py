"""Releases in folders of their own."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from harness.versions import child, place
from harness.versions.place import Unusable, put
from tests.versions.processes import ended
from tests.versions.wheels import PACKAGE, factors, wheel

SAY = f"import {PACKAGE}; print({PACKAGE}.FACTOR)"


def said(found: place.Place, variables: dict[str, str]) -> str:
    return subprocess.run([found.python, "-P", "-c", SAY], env=variables, capture_output=True, text=True).stdout


def left() -> list[str]:
    return sorted(path.name for path in place.cache().glob("*") if not path.name.endswith(".extensions"))


def test_each_release_comes_first_in_its_own_processes(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors(index, _1=1, _2=2)
    (tmp_path / f"{PACKAGE}.py").write_text("FACTOR = 'the user’s own copy'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for version, factor in (("1.1", "1\n"), ("1.2", "2\n")):
        found = put(PACKAGE, version)
        assert said(found, found.alone()) == said(found, found.beside_plumbline()) == factor
    assert left() == [f"{PACKAGE}-1.1", f"{PACKAGE}-1.2"]


def test_an_installed_release_is_not_installed_again(index: Path) -> None:
    factors(index, _1=1)
    put(PACKAGE, "1.1")
    for file in index.iterdir():
        file.unlink()
    put(PACKAGE, "1.1")


def test_a_release_is_removed_from_nowhere_and_the_present_environment_stays(index: Path) -> None:
    factors(index, _1=1)
    put(PACKAGE, "1.1")
    assert subprocess.run([sys.executable, "-I", "-c", SAY], capture_output=True).returncode == 1


@pytest.mark.parametrize(
    ("version", "text", "reason"),
    [
        ("9.9", None, "pip does not install it: No matching distribution found for faultlib==9.9"),
        (
            "1.1",
            "from torch import no_such_name",
            "it cannot be imported beside the present environment: ImportError: cannot import name 'no_such_name'",
        ),
        ("1.1", "__file__ = '/elsewhere/faultlib.py'", "another copy is imported: /elsewhere/faultlib.py"),
        ("1.1", "import os; os._exit(0)", "it cannot be imported beside the present environment: no output"),
    ],
)
def test_a_release_that_cannot_be_used_says_why(version: str, text: str | None, reason: str, index: Path) -> None:
    if text is not None:
        wheel(index, version, text)
    with pytest.raises(Unusable) as told:
        put(PACKAGE, version)
    assert str(told.value).startswith(reason)


def test_a_failed_installation_leaves_nothing(index: Path) -> None:
    (index / f"{PACKAGE}-1.1-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(Unusable, match="pip does not install it"):
        put(PACKAGE, "1.1")
    assert left() == []


def test_an_interrupted_installation_leaves_nothing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors(index, _1=1)
    run = child.run

    def interrupted(*arguments: object) -> None:
        run(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(PACKAGE, "1.1")
    assert left() == []


def test_what_a_killed_process_left_is_removed_and_another_ones_stays(index: Path) -> None:
    factors(index, _1=1)
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [f"{place.PARTIAL}{pid}-abc" for pid in (dead.pid, os.getppid())]
    for name in names:
        (place.cache() / name / "half").mkdir(parents=True)
    put(PACKAGE, "1.1")
    assert left() == [names[1], f"{PACKAGE}-1.1"]


def test_a_whole_environment_also_has_what_the_release_requires(index: Path) -> None:
    """And sees the present environment's packages behind its own."""
    wheel(index, "3.0", "FACTOR = 30", package="partlib")
    wheel(index, "1.1", "import torch.version, partlib; FACTOR = partlib.FACTOR", requires="partlib==3.0")
    with pytest.raises(Unusable, match="No module named 'partlib'"):
        put(PACKAGE, "1.1")
    found = put(PACKAGE, "1.1", whole=True)
    assert found.python != sys.executable
    assert said(found, found.alone()) == said(found, found.beside_plumbline()) == "30\n"


def test_a_whole_environment_of_the_present_release_has_the_present_copy(index: Path) -> None:
    assert put("packaging", metadata.version("packaging"), whole=True).whole


def test_an_interrupted_command_ends_with_its_children(tmp_path: Path) -> None:
    script = "sleep 600 & echo $!; wait"

    def interrupt(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.run(["bash", "-c", script], dict(os.environ), tmp_path, interrupt)
    assert ended((tmp_path / "pid").read_text())
