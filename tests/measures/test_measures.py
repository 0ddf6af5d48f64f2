"""A measure is one file with the required names, and no other file refers to it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.measures import MEASURES
from harness.spec import Needs
from harness.store import Store
from reports.render import write

ROOT = Path(__file__).parents[2]
RANKS = '''
"""Ranks that the checked run had."""

from harness.spec import Measurement, Needs

PLACE, NEEDS, QUANTITIES = 10, Needs.CHECKED, ()


def asked(occasion):
    return occasion.case.variant == "ddp"


def take(lab, case):
    count = float(len(lab.runner.checked(case).ranks))
    return [Measurement("ranks", "count", count, "ranks", "pass", "counted")]
'''


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_says_what_it_finds_and_needs(name: str) -> None:
    measure = MEASURES[name]
    assert measure.__doc__.endswith(".")
    assert re.fullmatch(r"[a-z_]+", name)
    assert isinstance(measure.NEEDS, Needs)
    assert isinstance(measure.QUANTITIES, tuple)
    assert callable(measure.asked)
    assert callable(measure.take)


def test_measures_have_places_of_their_own() -> None:
    places = [measure.PLACE for measure in MEASURES.values()]
    assert places == sorted(set(places))


def test_a_new_file_is_a_new_measure_of_the_suites_the_store_and_the_report(tmp_path: Path) -> None:
    for package in ("harness", "impls", "reports", "suites"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "harness" / "measures" / "ranks.py").write_text(RANKS)
    options = ["--topics", "data_parallel", "--engines", "reference", "--workload", "tiny", "--topologies", "dp2"]
    command = [sys.executable, "-m", "pytest", "suites", *options, "-q", "-rA", "--gpus", "0", "-m", "ranks or traffic"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "test_measure[ranks-ddp-reference-dp2-fp32]" in found.stdout
    store = Store.open(str(tmp_path / "plumbline.db"), create=False)
    (record,) = [record for record in store.records(None) if record["measure"] == "ranks"]
    assert (record["case"], record["value"], record["verdict"]) == ("ddp-reference-dp2-fp32", 2.0, "pass")
    assert '<th scope="col">ranks</th>' in write(store, None, tmp_path / "report", single_file=True).read_text()
