"""The same cases in several releases: a session of the suites for each, whose records are judged."""

from pathlib import Path

import pytest

from harness import cli
from harness.store import Store
from harness.versions import RIGHT, UNKNOWN, WRONG, read
from tests.sessions import TINY
from tests.versions.wheels import FINDING, PACKAGE, factors, wheel

ENGINE = f"""
import {PACKAGE}
from impls.parallelism.zero import reference

def build(workload, topology, **variant):
    return reference.build(workload.with_(lr=workload.lr * {PACKAGE}.FACTOR), topology, **variant)
"""
SYMPTOM = """
[[symptoms]]
case = "zero1-faulty-*"
measure = "parity"
quantity = "update"
band = [0.5, 2]
"""
ARGUMENTS = [*TINY, "--topics", "zero", "--engines", "faulty", "--measures", "parity", "-k", "zero1"]
ARGUMENTS += ["--add-engine", "zero:faulty=faulty:build"]


def test_a_private_function_that_is_gone_is_no_verdict(
    index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three releases: a right one, one that trains with twice the learning rate, and one that lacks what the adapter
    calls."""
    factors(index, _1=1, _2=2)
    wheel(index, "1.3", "OTHER = 1")
    (finding / f"{PACKAGE}_factor.py").unlink()
    (finding / f"{PACKAGE}_factor.toml").write_text(FINDING + SYMPTOM)
    Path("faulty.py").write_text(ENGINE)
    assert cli.main(["versions", f"{PACKAGE}==1.1..1.3", *ARGUMENTS]) == 0
    told = capsys.readouterr().out
    table = read(Path("versions.json"))
    (row,) = table.findings
    assert {version: cell.state for version, cell in row.cells.items()} == {"1.1": RIGHT, "1.2": WRONG, "1.3": UNKNOWN}
    assert "has no attribute 'FACTOR'" in row.cells["1.3"].reason
    assert row.summary == "right until 1.1, wrong from 1.2"
    assert row.summary in told
    assert "of 1" in told  # the session's progress
    store = Store.open("versions.db", create=False)
    assert {release.run for release in table.releases} == {run["run"] for run in store.runs()}


def test_wrong_options_of_the_cases_end_it_at_once(
    index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors(index, _1=1, _2=2)
    code = cli.main(["versions", f"{PACKAGE}==1.1,1.2", "--cases", "--topics", "zero", "--topologies", "pp2"])
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "no topic asked for has the axes of pp2" in capsys.readouterr().err
    assert not Path("versions.json").exists()
