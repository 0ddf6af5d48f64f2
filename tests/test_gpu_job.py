"""The script for a machine with one GPU, up to the check for a GPU; and the order of topics there."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from harness.store import Store

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "gpu"
NO_GPU = "print('|2.11.0')"


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def job() -> ModuleType:
    loader = SourceFileLoader("gpu_job", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_job", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, kept = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = kept
    return module


def wheel(folder: Path, name: str = "carried", size: int = 0) -> Path:
    """A package of one module, which prints its location."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"size = '{'x' * size}'\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def test_a_dry_run_prints_wheels_stages_and_their_time_and_leaves_nothing(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels")
    done = script("run", tmp_path / "out", "--wheels", tmp_path / "wheels", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    first, *stages = done.stdout.splitlines()
    assert first == "1 wheels, 0.0 MB"
    assert [line.partition(",")[0] for line in stages] == ["waits", "quick", "timed"]
    assert sum(int(line.split()[3]) for line in stages) == pytest.approx(480 - 45, abs=2)
    assert "--depth quick" in stages[1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "60"], "--seconds 60: 90 or more are needed"),
        (["--wheels", "none"], "no wheels in none; gather some with: .ci/gpu wheels none"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = script("run", tmp_path / "out", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f".ci/gpu: {message}")
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.txt").touch()
    assert "is not empty" in script("run", tmp_path, "--dry-run").stderr


def test_wheels_that_are_too_large_or_bring_a_pytorch_are_refused(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, size=4000)
    assert len(job.wheels(tmp_path)) == 1
    monkeypatch.setattr(job, "LIMIT", 1000)
    with pytest.raises(job.Problem, match="MB, more than"):
        job.wheels(tmp_path)
    wheel(tmp_path, "torch")
    with pytest.raises(job.Problem, match=r"torch-1.0-py3-none-any.whl: the machine's own PyTorch stays"):
        job.wheels(tmp_path)


def test_without_a_gpu_all_before_it_is_done_and_one_line_says_so(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path / "wheels")
    monkeypatch.setattr(job, "ASK", f"import carried; {NO_GPU}")  # the earlier steps have succeeded by then
    with pytest.raises(job.Problem, match=r"no GPU: PyTorch 2.11.0 sees none; run this on a machine with a GPU"):
        job.run(Namespace(out=tmp_path / "out", wheels=tmp_path / "wheels", seconds=480.0, dry_run=False))
    assert (tmp_path / "out" / "log.txt").read_text() == ""


def test_the_wheels_have_exact_versions_and_include_the_engines() -> None:
    lines = [Requirement(line) for line in (ROOT / ".ci" / "gpu-wheels.txt").read_text().splitlines() if line[0] != "#"]
    assert all(str(each.specifier).startswith("==") for each in lines)
    assert {"deepspeed", "megatron-core", "trl", "sqlalchemy"} <= {each.name for each in lines}
    assert "torch" not in {each.name for each in lines}


def suites(job: ModuleType, out: Path, *options: str) -> list[str]:
    command = job.stages(out)["quick"]
    command[command.index("--gpus") + 1] = "0"
    return [*command, "--topics", "preference,zero", "--engines", "reference", *options]


@pytest.fixture
def stand_in(job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The job with a simulated GPU, on CPU ranks: a first stage that fails, the suites, and a stage that hangs."""
    out = tmp_path / "out"
    stages = {
        "waits": [sys.executable, "-c", "raise SystemExit(1)"],
        "quick": suites(job, out, "--measures", "memory", "--ranks", "2"),
        "timed": [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"],
    }
    monkeypatch.setattr(job, "stages", lambda _: stages)
    monkeypatch.setattr(job, "ASK", "print('NVIDIA Stand-in|2.11.0')")
    monkeypatch.setattr(job, "LATE", 0)
    handler = signal.getsignal(signal.SIGTERM)
    yield job
    signal.signal(signal.SIGTERM, handler)


def test_store_parquet_report_log_and_summary_exist_whatever_the_stages_outcome(
    stand_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(stand_in, "SHARES", {"waits": 0.1, "quick": 0.98, "timed": 0.01})
    assert stand_in.run(Namespace(out=out, wheels=None, seconds=300.0, dry_run=False)) == 0
    assert {path.name for path in out.iterdir()} == {
        *("plumbline.db", "records.parquet", "quick", "timed", "log.txt", "summary.json"),
    }
    assert "begun" in (out / "log.txt").read_text()
    store = Store.open(str(out / "plumbline.db"), create=False)
    assert {record["topic"] for record in store.records(measure="memory")} == {"preference", "zero"}
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["gpu"], summary["torch"]) == ("NVIDIA Stand-in", "2.11.0")
    assert summary["stages"]["waits"]["exit"] == 1
    assert summary["stages"]["timed"]["exit"] < 0  # by a signal
    topics = summary["stages"]["quick"]["topics"]
    assert topics.keys() == {"preference", "zero"}
    assert all(found["reached"] == found["of"] > 0 for found in topics.values())
    assert "quick: exit 0" in capsys.readouterr().out


def test_a_job_that_is_terminated_ends_its_stage_and_leaves_a_summary(stand_in: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hangs = stand_in.stages(out).pop("timed")
    stand_in.stages(out).clear()
    stand_in.stages(out).update({"timed": hangs, "quick": hangs})

    def terminate() -> None:
        while not (out / "log.txt").exists() or "begun" not in (out / "log.txt").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=terminate)
    waiting.start()
    assert stand_in.run(Namespace(out=out, wheels=None, seconds=300.0, dry_run=False)) == 0
    waiting.join()
    stages = json.loads((out / "summary.json").read_text())["stages"]
    assert stages.keys() == {"timed"}
    assert stages["timed"]["interrupted"]


def test_every_topic_has_a_turn_before_any_has_a_second_and_at_the_deadline_no_more_begins(
    job: ModuleType, tmp_path: Path
) -> None:
    command = [*suites(job, tmp_path, "--measures", "memory"), "--turns", str(tmp_path / "turns.json")]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / '.ci'}"}
    every = subprocess.run(
        [*command, "--deadline", "0", "--collect-only"], cwd=ROOT, env=path, capture_output=True, text=True, timeout=120
    ).stdout
    order = ["dpo" if "dpo" in line else "zero" for line in every.splitlines() if "::test_measure" in line]
    assert order[:2] in (["dpo", "zero"], ["zero", "dpo"])
    assert set(order[2:]) == {"zero"}
    done = subprocess.run(
        [*command, "--deadline", f"{time.time():.0f}"], cwd=ROOT, env=path, capture_output=True, text=True, timeout=120
    )
    assert "the time is up" in done.stdout
    found = json.loads((tmp_path / "turns.json").read_text())
    assert sum(topic["reached"] for topic in found.values()) == 1
    assert found["zero"]["of"] == len(order) - 1
