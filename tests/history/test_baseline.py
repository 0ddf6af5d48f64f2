"""``--baseline``: a session of the suites fails what regressed since an earlier run."""

import pytest

from tests.sessions import TINY, run, store, usage_error

ONE = (*TINY, "--topics", "zero", "--engines", "reference", "--measures", "traffic", "-k", "zero1 and not clip")
PLANTED = """
from harness.run.lab import Lab
from harness.spec import Measurement

Lab._taken = lambda self, name, case: [Measurement(name, "bytes", {value}, "B", "pass", "planted")]
"""


def session(user: pytest.Pytester, value: float, *arguments: str) -> pytest.RunResult:
    user.path.joinpath("planted.py").write_text(PLANTED.format(value=value))
    return run(user, *ONE, "-p", "planted", *arguments)


def test_a_regression_since_the_baseline_fails_its_test_and_names_both_figures(user: pytest.Pytester) -> None:
    session(user, 100.0).assert_outcomes(passed=1)
    session(user, 100.0, "--baseline", "latest").assert_outcomes(passed=1)
    first = store().runs()[-1]["run"]
    found = session(user, 101.0, "--baseline", first)
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines([f"*traffic bytes: regressed since run {first}: 101 B, was 100 B*"])
    (record,) = store().records(measure="traffic")
    assert record["verdict"] == "pass"  # its own: the next run is compared with the figure
    assert record["detail"]["baseline"]["verdict"] == "regressed"
    session(user, 99.0, "--baseline", "latest").assert_outcomes(passed=1)


def test_an_unknown_baseline_is_a_usage_error_and_begins_no_run(user: pytest.Pytester) -> None:
    session(user, 100.0)
    assert "--baseline: run 'never' is unknown" in usage_error(session(user, 100.0, "--baseline", "never"))
    assert len(store().runs()) == 1
