"""Nights whose suites are a real session of a few cases in which nothing is measured, and which take seconds."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.measures import MEASURES
from harness.nightly import config
from harness.nightly.config import Config
from harness.nightly.night import Night
from harness.spec import Case, Measurement, Topology, Workload
from harness.store import Store

ROOT = Path(__file__).parents[2]
# 6 cases of ZeRO, three measures each. What they find is planted.
SUITES = """
[suites]
depth = "quick"
topics = ["zero"]
engines = ["reference", "torch"]
workload = ["tiny"]
topologies = ["dp2"]
measures = ["parity", "memory", "traffic"]
gpus = 0
ranks = 2
"""
STEPS = 'steps = ["suites"]\nretry_pause = 0\n'
# Stands in for the ranks: each measure takes some milliseconds and finds the same each time. Python imports this file
# by itself in the suites' process, and it replaces nothing before the suites' own module is there.
PLANTED = '''
"""Planted figures of the suites."""
import os, pathlib, signal, time
import pytest

MARKS = pathlib.Path(__file__).parent / "taken.txt"


def take(self, name, case):
    from harness.run.oracle import no_run
    from harness.spec import Measurement
    time.sleep(0.02)
    with MARKS.open("a") as file:
        file.write(f"{{name}} {{case.id}}\\n")
    taken = MARKS.read_text().splitlines()
    {planted}
    return [Measurement(name, q, float(len(case.id)), "B", "pass", "planted") for q in ("first", "second")]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems():
    from harness.run.lab import Lab
    from harness.run.runner import Runner
    import reports.render
    Lab._taken = take
    Runner.obstacle = lambda self, case: ""
    Runner.expect = lambda self, *_: None
    reports.render.write = lambda store, run, folder, *more: folder
'''


def plant(folder: Path, planted: str = "") -> dict[str, str]:
    """The environment in which the suites' process loads the plugin with ``planted`` lines."""
    (folder / "planted_suites.py").write_text(PLANTED.format(planted=planted.replace("\n", "\n    ")))
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "PYTEST_PLUGINS": "planted_suites", "OMP_NUM_THREADS": "1"}


def written(folder: Path, text: str = STEPS + SUITES) -> Path:
    path = folder / "night.toml"
    path.write_text(text)
    return path


def started(folder: Path, environment: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "harness.cli", "nightly", str(folder / "night.toml"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **environment}, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def ran(folder: Path, environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    process = started(folder, environment, *arguments)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def taken(folder: Path) -> list[str]:
    """The tests that were measured, in order."""
    marks = folder / "taken.txt"
    return marks.read_text().splitlines() if marks.exists() else []


def figures(folder: Path) -> dict[tuple[str, ...], object]:
    """The latest run's planted figures, as far as two runs have the same."""
    names = ("measure", "case", "quantity", "verdict", "reason")
    records = Store.open(str(folder / "plumbline.db"), create=False).records()
    return {tuple(r[name] for name in names): r["value"] for r in records if r["measure"] in MEASURES}


MACHINE = {"cpu": "x", "cores": 2, "memory": 2**33, "gpus": [], "packages": {"torch": "2.13.0"}}
CASE = Case("zero", "zero3", "deepspeed", Topology(dp=2), Workload())


def night(folder: Path, text: str = "", measurements: Sequence[Measurement] = (), command: str = "pytest") -> Night:
    """A night without suites, whose run is in the store."""
    settings: Config = config.read(written(folder, text))
    Path(settings.folder).mkdir(exist_ok=True)
    store = Store.open(settings.store)
    run = finished(store, measurements, command)
    return Night(settings, store, command, "2026-11-29T01:15:00+00:00", run=run)


def finished(
    store: Store,
    measurements: Sequence[Measurement] = (),
    command: str = "pytest",
    machine: Mapping[str, Any] = MACHINE,
) -> str:
    run = store.begin(machine, command)
    store.add(run, CASE, "cpu", measurements or [Measurement("memory", "peak", 1.0, "B", "pass", "")])
    store.finish(run, "finished")
    return run
