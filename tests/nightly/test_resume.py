"""``pytest suites/ --resume RUN``: a run that ended early goes on as the session that it was."""

import pytest

from tests.nightly.examples import plant, taken
from tests.sessions import TINY, run, store, usage_error

SOME = (*TINY, "--ranks", "2", "--topics", "zero", "--engines", "reference", "--measures", "parity,memory")
FAILS = 'if name == "memory" and len(taken) < 4: return [no_run("fail", "planted")]'


@pytest.fixture
def begun(user: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that was interrupted after its first failure."""
    for name, value in plant(user.path, FAILS + "\nif len(taken) == 4: raise KeyboardInterrupt").items():
        monkeypatch.setenv(name, value)
    assert run(user, *SOME).ret == pytest.ExitCode.INTERRUPTED
    (found,) = store().runs()
    assert found["status"] == "interrupted"
    plant(user.path, FAILS)
    return str(found["run"])


def test_tests_that_were_taken_keep_their_outcome_and_the_others_are_taken(begun: str, user: pytest.Pytester) -> None:
    before = taken(user.path)
    found = run(user, *SOME, "--resume", begun)
    found.stdout.fnmatch_lines([f"run {begun} goes on: 3 of its 6 tests are measured"])
    found.assert_outcomes(failed=1, passed=found.parseoutcomes()["passed"])
    assert found.ret == pytest.ExitCode.TESTS_FAILED, "the failure of the first part fails the whole"
    assert len(taken(user.path)) == len(before) + 3
    (stored,) = store().runs()
    assert (stored["status"], stored["run"]) == ("finished", begun)
    assert store().records(begun, verdict="fail")


def test_another_selection_an_unknown_run_and_one_that_lives_are_refused(begun: str, user: pytest.Pytester) -> None:
    line = usage_error(run(user, *SOME, "--resume", begun, "-k", "zero1"))
    assert f"run {begun} had other options; give the same ones: pytest " in line
    assert "has no run 'none'" in usage_error(run(user, *SOME, "--resume", "none"))
    assert store().runs()[0]["status"] == "interrupted"
