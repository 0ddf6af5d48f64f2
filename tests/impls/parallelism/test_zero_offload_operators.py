"""DeepSpeed's operators: the engines that need them, the recorded outcome of a build, and the remains of a killed
one."""

import fcntl
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import catalog
from impls.parallelism.zero_offload import CARD, operators

MODULE = operators.__name__


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


def built(folder: Path, why: str = "") -> None:
    """Both operators, as if this environment had built them, or had failed for this reason."""
    for name in operators.OPERATORS:
        (folder / name).mkdir()
        (folder / name / f"{name}.so").touch()
        (folder / name / "outcome.json").write_text(json.dumps({"of": operators._key(), "why": why}))


def run() -> str:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", MODULE], capture_output=True, text=True, check=True
    )
    assert "deepspeed" not in done.stderr
    assert "torch" not in done.stderr
    return done.stdout


def test_only_zenflow_and_files_need_one() -> None:
    needing = {(v, e) for v in CARD.variants for e in CARD.adapted if catalog.operators(CARD, e, v) == MODULE}
    assert needing & {(variant, "zenflow") for variant in CARD.engines["zenflow"].variants}
    files = {(variant, "deepspeed") for variant in CARD.variants if variant.startswith("nvme")}
    assert {pair for pair in needing if pair[1] == "deepspeed"} == files
    assert not any(engine in ("reference", "torch") for _, engine in needing)


def test_nothing_is_loaded_or_said_where_all_is_built(folder: Path) -> None:
    built(folder)
    assert run() == ""
    assert not any(map(operators.missing, operators.OPERATORS))


def test_one_that_is_not_built_says_how(folder: Path) -> None:
    assert operators.missing("async_io") == f"DeepSpeed's async_io is not built; once: python -m {MODULE}"


def test_one_that_was_built_for_something_else_is_built_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(folder)
    monkeypatch.setattr(operators, "version", lambda name: "another")
    assert all("is not built" in operators.missing(name) for name in operators.OPERATORS)


def test_one_whose_library_is_gone_is_built_anew(folder: Path) -> None:
    built(folder)
    (folder / "cpu_adam" / "cpu_adam.so").unlink()
    assert "is not built" in operators.missing("cpu_adam")


def test_the_reason_why_one_cannot_be_built_is_remembered(folder: Path) -> None:
    built(folder, "no header")
    assert operators.missing("cpu_adam") == "DeepSpeed's cpu_adam cannot be built here: no header"


class Compiler:
    """DeepSpeed's builder."""

    error: Exception | None = None

    def is_compatible(self, verbose: bool) -> bool:
        return True

    def load(self, verbose: bool) -> None:
        if self.error:
            raise self.error


def build(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setitem(sys.modules, "impls.engines.deepspeed.engine", SimpleNamespace(builder=lambda name: compiler))
    said = io.StringIO()
    return operators._build("cpu_adam", said), said.getvalue()


def test_a_build_says_what_why_and_how_long_and_removes_the_lock_of_a_killed_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cpu_adam").mkdir()
    (folder / "cpu_adam" / "lock").touch()
    why, said = build(Compiler(), monkeypatch)
    assert why == ""
    assert said.startswith("DeepSpeed's cpu_adam, which ZenFlow needs, is compiled once, for one to four minutes")
    assert not (folder / "cpu_adam" / "lock").exists()


def test_a_build_that_fails_gives_the_compilers_own_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    compiler.error = RuntimeError("Error building extension\nninja: 1/2\n  a.cpp:3: error: no such header\nstopped.")
    why, _ = build(compiler, monkeypatch)
    assert why == "a.cpp:3: error: no such header"
    assert operators.missing("cpu_adam") == f"DeepSpeed's cpu_adam cannot be built here: {why}"


def test_two_do_not_build_at_once(folder: Path) -> None:
    with (folder / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting: Any = subprocess.Popen([sys.executable, "-m", MODULE], stdout=subprocess.PIPE, text=True)
        with waiting:
            said = waiting.stdout.readline()
            built(folder)  # by the other process
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert waiting.stdout.read() == ""
    assert said == "DeepSpeed's operators: another process builds them; waiting for it\n"


def test_a_folder_that_cannot_be_written_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "file"))
    done = subprocess.run([sys.executable, "-m", MODULE], capture_output=True, text=True)
    assert done.stdout.startswith("DeepSpeed's operators are not built: File exists: TORCH_EXTENSIONS_DIR may name")
    assert done.stderr == ""
