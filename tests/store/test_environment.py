"""Provenance, and the key that distinguishes hardware."""

import getpass
import json
import platform
import shutil
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from harness import catalog
from harness.spec.requires import distributions
from harness.store import environment, hardware_key

GIT = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org")
SOURCE = sys.modules["harness.store.environment"].__file__ or ""


def put_program(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A substitute for ``name``, first on the search path."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def checkout_of(source: Path) -> tuple[object, object]:
    """Commit and dirty flag in the view of the copy ``source`` of the module."""
    code = f"import runpy, json; e = runpy.run_path({str(source)!r})['environment'](); print(json.dumps(e))"
    found = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    return found["commit"], found["dirty"]


def test_the_environment_tells_hardware_and_versions() -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["memory"] == psutil.virtual_memory().total
    assert 1 <= found["cores"] <= (psutil.cpu_count() or 0)
    assert found["cpu"]
    assert found["packages"]["numpy"] == version("numpy")
    assert [*found["packages"]] == ["plumbline", "torch", "transformers", "triton", "numpy"]


def test_the_environment_tells_the_version_of_every_engine() -> None:
    engines = distributions(engine for card in catalog.topics().values() for engine in card.engines.values())
    assert {"deepspeed", "megatron-core", "trl", "torchgpipe", "horovod"} <= {*engines}
    packages = environment(engines=engines)["packages"]
    assert {*engines} <= packages.keys()
    assert packages["deepspeed"] == version("deepspeed")


def test_the_environment_tells_the_variables_that_may_change_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ATEN_CPU_CAPABILITY": "avx2", "CUDA_HOME": "/home/me/cuda", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    found = environment()["variables"]
    assert found["ATEN_CPU_CAPABILITY"] == "avx2"
    assert found["CUDA_HOME"] == "(not recorded)"
    assert "SLURM_JOB_ID" not in found


def test_a_package_that_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["harness.store.environment"], "PACKAGES", ("no-such-package",))
    assert environment()["packages"] == {"no-such-package": None}


def test_the_environment_names_no_host_user_or_path() -> None:
    text = json.dumps(environment())
    words = text.replace('"', " ").replace(",", " ").split()
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words
    assert str(Path.home()) not in text
    assert str(Path(SOURCE).parent) not in text


def test_neither_the_environment_nor_a_store_needs_torch_or_loads_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; from harness.store import Store, environment; "
        f"store = Store.open({str(tmp_path / 'store.db')!r}); store.begin(environment(), 'x'); store.records(); "
        "print(sorted({'torch', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gpus_are_those_that_the_run_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_program(tmp_path / "bin", "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 570.86.15'", monkeypatch)
    found = environment()
    assert (found["gpus"], found["driver"]) == ([], None)
    found = environment(["NVIDIA A100"], "570.86.15")
    assert (found["gpus"], found["driver"]) == (["NVIDIA A100"], "570.86.15")


def test_a_git_that_fails_leaves_the_commit_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_program(tmp_path / "bin", "git", "exit 1", monkeypatch)
    found = environment()
    assert (found["commit"], found["dirty"]) == (None, None)


def test_the_commit_is_that_of_the_source_and_says_if_files_differ(tmp_path: Path) -> None:
    source = tmp_path / "environment.py"
    shutil.copy(SOURCE, source)
    assert checkout_of(source) == (None, None)
    git = (*GIT, "-C", str(tmp_path))
    subprocess.run([*git, "init", "-q"], check=True)
    # the checkout of another project, with the source inside
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert checkout_of(source) == (None, None)
    subprocess.run([*git, "add", source.name], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert checkout_of(source) == (head, False)
    with source.open("a") as file:
        file.write("# changed\n")
    assert checkout_of(source) == (head, True)


def test_the_hardware_key_tells_hardware_apart_and_nothing_else() -> None:
    machine = {"cpu": "EPYC", "cores": 8, "memory": 64 * 2**30, "gpus": ["H100", "H100"], "driver": "1", "python": "3"}
    key = hardware_key(machine)
    assert key == "8 x EPYC, 64 GiB; 2 x H100"
    assert hardware_key({**machine, "driver": "2", "python": "4", "memory": 64 * 2**30 - 5000}) == key
    fewer, other = {"gpus": ["H100"]}, {"gpus": ["H100", "H200"]}
    for change in ({"cpu": "Xeon"}, {"cores": 16}, {"memory": 2**35}, fewer, other, {"nodes": 2}):
        assert hardware_key({**machine, **change}) != key
    assert hardware_key({**machine, "gpus": []}) == "8 x EPYC, 64 GiB"


def test_an_environment_without_hardware_has_no_key() -> None:
    with pytest.raises(ValueError, match="environment has no memory, gpus"):
        hardware_key({"cpu": "EPYC", "cores": 8})
