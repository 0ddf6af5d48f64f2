"""The ends of sessions: interrupted twice, killed, without a report; and pytest-benchmark's share of them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sessions import SKIPPED, run, store

INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
TWICE = f"""
import os, signal, pytest

def pytest_runtest_call(item):
    {INTERRUPT}

@pytest.hookimpl({{order}}=True)
def pytest_{{second}}():
    {INTERRUPT}
"""
BREAKS = """
import reports.render

def write(*_):
    raise {error}

reports.render.write = write
"""
FULL = """
from harness.store import Store, StoreError

def finish(*_):
    raise StoreError("the disk is full")

Store.finish = finish
"""
SLOWER = """
from harness.run.lab import Lab
from harness.spec import Measurement

VERDICTS = {{"torch": "fail", "deepspeed": "inconclusive"}}

def measure(self, name, case):
    verdict = VERDICTS.get(case.engine, "pass")
    return [Measurement(name, "step", 0.1, "s", verdict, "planted", detail={{"samples": [{seconds}] * 5}})]

Lab.measure = measure
"""
TIMED = ("--gpus", "0", "--topics", "zero", "--workload", "tiny", "--topologies", "dp2", "--measures", "throughput")
ENGINES = {"reference", "torch", "deepspeed"}


@pytest.mark.parametrize(
    ("second", "order"),
    [("keyboard_interrupt", "tryfirst"), ("keyboard_interrupt", "trylast"), ("sessionfinish", "tryfirst")],
)
def test_a_session_that_is_interrupted_twice_is_stored_as_interrupted(
    user: pytest.Pytester, second: str, order: str
) -> None:
    user.path.joinpath("twice.py").write_text(TWICE.format(second=second, order=order))
    found = run(user, *SKIPPED, "-p", "twice")
    (stored,) = store().runs()
    assert stored["status"] == "interrupted"
    assert stored["finished"]
    assert found.ret == pytest.ExitCode.INTERRUPTED


def test_a_session_that_is_interrupted_while_it_writes_its_report_says_so(user: pytest.Pytester) -> None:
    code = BREAKS.format(error="KeyboardInterrupt")
    user.path.joinpath("broken.py").write_text(code)
    found = run(user, *SKIPPED, "-p", "broken")
    found.stdout.fnmatch_lines(["no report: interrupted", "*skipped*"])
    assert found.ret == pytest.ExitCode.INTERRUPTED
    assert store().runs()[0]["status"] == "finished"


def test_a_session_that_stops_at_the_first_failure_is_not_finished(user: pytest.Pytester) -> None:
    user.path.joinpath("fails.py").write_text("def pytest_runtest_call(item):\n    raise ValueError\n")
    found = run(user, *SKIPPED, "-p", "fails", "-x")
    assert found.ret == pytest.ExitCode.TESTS_FAILED
    assert store().runs()[0]["status"] == "interrupted"


def test_a_session_that_breaks_has_failed(user: pytest.Pytester) -> None:
    user.path.joinpath("breaks.py").write_text("def pytest_runtest_protocol():\n    raise ValueError\n")
    found = run(user, *SKIPPED, "-p", "breaks")
    assert found.ret == pytest.ExitCode.INTERNAL_ERROR
    assert store().runs()[0]["status"] == "failed"


def test_a_killed_session_is_reported_as_killed(user: pytest.Pytester) -> None:
    user.path.joinpath("dies.py").write_text(
        "import os, signal\ndef pytest_runtest_call(item):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run(user, *SKIPPED, "-p", "dies").ret == -signal.SIGKILL
    assert store().runs()[0]["status"] == "killed"
    listed = subprocess.run([sys.executable, "-m", "harness.cli", "records", "--runs"], capture_output=True, text=True)
    assert " killed " in listed.stdout
    assert " running " not in listed.stdout


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("ZeroDivisionError('of\\nnothing')", "no report: ZeroDivisionError: of nothing"),
        ("OSError(28, 'No space left on device')", "no report: OSError: [Errno 28] No space left on device"),
        ("reports.render.ReportError('a line')", "no report: a line"),
        ("RuntimeError('http://me:hidden@host/')", "no report: RuntimeError: http://[*][*][*]@host/"),
    ],
)
def test_a_report_that_cannot_be_made_is_a_line_and_an_error_and_the_summary_follows(
    user: pytest.Pytester, error: str, message: str
) -> None:
    user.path.joinpath("broken.py").write_text(BREAKS.format(error=error))
    found = run(user, *SKIPPED, "-p", "broken")
    assert found.ret == pytest.ExitCode.INTERNAL_ERROR
    found.stdout.fnmatch_lines(["measurements: *skipped*", "records: *plumbline.db *", message, "=*skipped*in*="])
    assert "Traceback" not in found.stdout.str() + found.stderr.str()
    assert store().runs()[0]["status"] == "finished"


def test_a_store_that_breaks_at_the_end_is_a_line_and_an_error_and_the_summary_follows(user: pytest.Pytester) -> None:
    user.path.joinpath("broken.py").write_text(FULL)
    found = run(user, *SKIPPED, "-p", "broken")
    assert found.ret == pytest.ExitCode.INTERNAL_ERROR
    found.stdout.fnmatch_lines(["the run was not closed: the disk is full", "=*skipped*in*="])
    assert "Traceback" not in found.stdout.str() + found.stderr.str()


def test_setup_alone_leaves_no_run(user: pytest.Pytester) -> None:
    for flag in ("--setup-plan", "--setup-only", "--collect-only"):
        found = run(user, *SKIPPED, flag)
        assert found.ret == pytest.ExitCode.OK, (flag, found.outlines)
    assert not user.path.joinpath("plumbline.db").exists()


def benchmarked(user: pytest.Pytester, seconds: float, *arguments: str) -> pytest.RunResult:
    user.path.joinpath("planted.py").write_text(SLOWER.format(seconds=seconds))
    chosen = ("--engines", ",".join(ENGINES), "-k", "zero1 and not clip and throughput", "-p", "planted")
    return run(user, *TIMED, *chosen, *arguments)


def test_times_that_failed_or_are_undecided_reach_pytest_benchmark_under_the_case_id(user: pytest.Pytester) -> None:
    found = benchmarked(user, 0.1, "--benchmark-json", "times.json")
    found.assert_outcomes(passed=1, failed=1, skipped=1)
    written = json.loads(Path("times.json").read_text())["benchmarks"]
    case = "zero1-{}-dp2-fp32"
    assert {entry["params"]["case"] for entry in written} == {case.format(engine) for engine in ENGINES}
    assert {entry["params"]["measure"] for entry in written} == {"throughput"}
    assert {entry["extra_info"]["verdict"] for entry in written} == {"pass", "fail", "inconclusive"}
    assert all(entry["stats"]["median"] == pytest.approx(0.1) for entry in written)
    assert "UNSERIALIZABLE" not in Path("times.json").read_text()


def test_a_case_that_becomes_slow_and_fails_does_not_leave_pytest_benchmarks_comparison(user: pytest.Pytester) -> None:
    benchmarked(user, 0.1, "--benchmark-save", "before")
    found = benchmarked(user, 0.3, "--benchmark-compare", "--benchmark-compare-fail", "median:50%")
    regressed = found.stdout.str() + found.stderr.str()
    assert all(f"throughput-zero1-{engine}-dp2-fp32" in regressed.partition("Performance has regressed")[2]
               for engine in ENGINES)  # fmt: skip


def test_the_suites_do_without_pytest_benchmark(user: pytest.Pytester) -> None:
    benchmarked(user, 0.1, "-p", "no:benchmark").assert_outcomes(passed=1, failed=1, skipped=1)
