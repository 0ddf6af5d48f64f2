"""Sessions of the suites, run as a user runs them, each in its own process and folder."""

from pathlib import Path

import pytest

from harness.store import Store

SUITES = str(Path(__file__).parents[1] / "suites")
TINY = ("--gpus", "0", "--workload", "tiny", "--topologies", "dp2")
# Cases of two ranks in a session of one: all are skipped with that reason, recorded and reported, and none is started.
SKIPPED = (*TINY, "--ranks", "1", "--topics", "zero", "--engines", "reference", "--measures", "memory,traffic")


def run(user: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return user.runpytest_subprocess(SUITES, "-p", "no:cacheprovider", *arguments)


def collected(user: pytest.Pytester, *arguments: str) -> set[str]:
    """The tests of cases; the ledger's have other names."""
    found = run(user, "--collect-only", "-q", *arguments)
    assert found.ret == pytest.ExitCode.OK
    return {line.partition("::")[2] for line in found.outlines if "::" in line and "ledger" not in line}


def usage_error(found: pytest.RunResult) -> str:
    """The one line of a session that was rejected before anything ran."""
    assert found.ret == pytest.ExitCode.USAGE_ERROR, found.outlines
    (line,) = [line for line in found.errlines if line.strip()]
    assert line.startswith("ERROR: ")
    return line


def store() -> Store:
    return Store.open("plumbline.db", create=False)
