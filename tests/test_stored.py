"""Sessions and their records: what the next start says, a store that refuses for a while, and JUnit's properties."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.sessions import SKIPPED, run, store
from tests.test_ends import ENGINES, benchmarked

DIES = "import os, signal\ndef pytest_runtest_call(item):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
REFUSES = """
from harness.store import Store, StoreError

add, left = Store.add, [{times}]

def refuse(self, run, case, device, measurements):
    if left[0]:
        left[0] -= 1
        raise StoreError("store plumbline.db: the disk is full; free some space")
    add(self, run, case, device, measurements)

Store.add = refuse
"""


def records(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "harness.cli", "records", *arguments], capture_output=True, text=True)


def test_the_next_session_and_the_list_of_runs_name_a_killed_run(user: pytest.Pytester) -> None:
    user.path.joinpath("dies.py").write_text(DIES)
    run(user, *SKIPPED, "-p", "dies")
    (killed,) = store().runs()
    line = f"killed before the end: {killed['run']}; its process ended without closing the run"
    assert line in records("--runs").stderr
    found = run(user, *SKIPPED)
    found.stdout.fnmatch_lines([f"{line}*"])


def test_a_store_that_refuses_for_a_while_loses_nothing_and_says_so_once(user: pytest.Pytester) -> None:
    run(user, *SKIPPED)
    user.path.joinpath("refuses.py").write_text(REFUSES.format(times=2))
    found = run(user, *SKIPPED, "-p", "refuses")
    assert found.ret == pytest.ExitCode.OK
    assert found.stdout.str().count("the disk is full; free some space; until then, measurements are held in") == 1
    latest, first = store().runs()
    assert latest["records"] == first["records"] > 0


def test_a_store_that_refuses_to_the_end_is_an_error_that_counts_what_is_lost(user: pytest.Pytester) -> None:
    user.path.joinpath("refuses.py").write_text(REFUSES.format(times=10**6))
    found = run(user, *SKIPPED, "-p", "refuses")
    assert found.ret == pytest.ExitCode.INTERNAL_ERROR
    found.stdout.re_match_lines([r"the run was not closed: \d+ measurements are not stored: .* free some space"])
    assert "Traceback" not in found.stdout.str() + found.stderr.str()


def test_a_run_without_records_is_told_beside_an_empty_table(user: pytest.Pytester) -> None:
    from harness.store import Store

    empty = Store.open("plumbline.db").begin({}, "pytest")
    found = records("--run", empty)
    assert found.returncode == 0
    assert found.stdout.count("\n") == 1
    assert f"run {empty} has no records; plumbline records --runs lists the runs" in found.stderr


def test_junit_xml_has_the_figures_as_properties(user: pytest.Pytester) -> None:
    benchmarked(user, 0.1, "--junitxml", "out.xml")
    cases = ElementTree.parse("out.xml").iter("testcase")
    found = {
        case.attrib["name"]: {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        for case in cases
    }
    verdicts = {"reference": "pass", "torch": "fail", "deepspeed": "inconclusive"}
    for engine in ENGINES:
        name = f"test_measure[throughput-zero1-{engine}-dp2-fp32]"
        assert found[name] == {"throughput.step": f"0.1 s, {verdicts[engine]}"}


@pytest.mark.skipif(find_spec("pygal") is None, reason="needs pip install 'pytest-benchmark[histogram]'")
def test_pytest_benchmark_draws_a_histogram_of_the_timed_cases(user: pytest.Pytester) -> None:
    benchmarked(user, 0.1, "--benchmark-histogram", "times")
    (drawing,) = Path().glob("times*.svg")
    assert all(engine in drawing.read_text() for engine in ENGINES)
