"""What the suites' exit status, records and tests say about a night; the suites themselves are a stand-in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from harness.nightly import suites
from harness.nightly.lock import Locked, lock
from harness.nightly.night import Night
from harness.nightly.steps import take
from harness.nightly.summary import summary
from harness.spec import Measurement
from harness.store import Store
from tests.nightly.examples import CASE, MACHINE, night, written

ENTRY = f'[[quarantine]]\ncase = "{CASE.id}"\nowner = "ada"\nuntil = {{}}\nreason = "known"\n'
FULL = "OSError: [Errno 28] No space left on device"
JUNIT = '<testsuites><testsuite><testcase name="{}"><failure message="{}"/></testcase></testsuite></testsuites>'
PAUSE = "retry_pause = 0\n"
Launch = Callable[[Night, list[str]], tuple[int, list[str]]]


def figure(verdict: str, reason: str = "planted", finding: str = "", attempts: int = 0) -> Measurement:
    before = [{"signature": "x", "reason": "x", "recorded": "x"}] * attempts
    detail = {**({"finding": finding} if finding else {}), **({"attempts": before} if before else {})}
    return Measurement("memory", "peak", 1.0, "B", verdict, reason, detail=detail)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, *codes: int, measurements: list[Measurement], tail: str = "", junit: str = ""
) -> list[list[str]]:
    """Suites that end with the ``codes`` one after the other, and store one of the ``measurements`` each. Returns the
    arguments that they get."""
    given: list[list[str]] = []

    def launch(tonight: Night, arguments: list[str]) -> tuple[int, list[str]]:
        turn = len(given)
        given.append(arguments)
        if not tonight.run:
            tonight.store.begin(MACHINE, tonight.command)
        run = tonight.store.runs()[0]["run"]
        if measurements:
            tonight.store.add(run, CASE, "cpu", [measurements[turn]])
        tonight.store.finish(run, "finished")
        if junit:
            (tonight.folder / "junit.xml").write_text(junit)
        return codes[turn], [tail] if tail and turn == 0 else []

    monkeypatch.setattr(suites, "launch", launch)
    return given


def begun(folder: Path, text: str = PAUSE) -> Night:
    """A night that has not begun its suites."""
    found = night(folder, text, command="pytest --depth=full")
    found.known, found.run = [found.run], ""
    return found


@pytest.mark.parametrize(
    ("code", "measurement", "text", "state", "failures", "held", "wrong"),
    [
        (0, figure("pass"), "", "ok", 0, 0, 0),
        (0, figure("fail", finding="x"), "", "ok", 0, 0, 0),
        (1, figure("fail"), "", "failed", 1, 0, 0),
        (1, figure("error"), "", "failed", 1, 0, 0),
        (1, figure("fail"), ENTRY.format("2999-01-01"), "ok", 0, 1, 0),
        (1, figure("fail"), ENTRY.format("2020-01-01"), "failed", 1, 0, 1),
        (0, figure("pass"), ENTRY.format("2020-01-01"), "failed", 0, 0, 1),
        (0, figure("pass"), ENTRY.format("2999-01-01").replace("zero3", "zero9"), "failed", 0, 0, 1),
        (2, figure("pass"), ENTRY.format("2999-01-01").replace("zero3", "zero9"), "interrupted", 0, 0, 0),
    ],
)
def test_a_failure_fails_the_night_unless_it_is_in_quarantine(
    code: int, measurement: Measurement, text: str, state: str, failures: int, held: int, wrong: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stand_in(monkeypatch, code, measurements=[measurement])
    tonight = begun(tmp_path, PAUSE + text)
    tonight.results.append(take(tonight, "suites"))
    found = summary(tonight)
    assert found["steps"][0]["state"] == state
    assert found["exit_code"] == (code if code > 1 else int(state == "failed"))
    lists = ("failures", "quarantined", "quarantine_problems")
    assert [len(found[name]) for name in lists] == [failures, held, wrong]


def test_a_test_that_fails_without_a_figure_fails_the_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    junit = JUNIT.format("test_finding[x]", "x: fixed?&#10;more")
    stand_in(monkeypatch, 1, measurements=[figure("fail")], junit=junit)
    found = take(begun(tmp_path, PAUSE + ENTRY.format("2999-01-01")), "suites")
    assert (found.state, found.code) == ("failed", 1)
    assert found.facts["failures"] == [
        {"measure": "", "case": "test_finding[x]", "verdict": "fail", "reason": "x: fixed?"}
    ]


def test_a_failure_that_nobody_can_name_fails_the_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 1, measurements=[figure("pass")])
    assert take(begun(tmp_path), "suites").code == 1


@pytest.mark.parametrize(
    ("reasons", "code"), [((FULL, ""), 0), ((FULL, FULL, ""), 0), ((FULL, FULL, FULL), 1), (("ValueError: 1",), 1)]
)
def test_only_failures_of_the_infrastructure_are_tried_again_and_at_most_twice(
    reasons: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurements = [figure("error" if why else "pass", why, attempts=turn) for turn, why in enumerate(reasons)]
    codes = [1 if why else 0 for why in reasons]
    given = stand_in(monkeypatch, *codes, measurements=measurements)
    tonight = begun(tmp_path)
    found = take(tonight, "suites")
    assert found.code == code, found
    assert len(given) == len(reasons)
    assert all(arguments[-1] == f"--resume={tonight.run}" for arguments in given[1:])
    retries = found.facts["retries"]
    assert [(each["attempts"], each["verdict"]) for each in retries] == (
        [(len(reasons), "error" if code else "pass")] if len(reasons) > 1 else []
    )


@pytest.mark.parametrize(
    ("code", "tail", "times"),
    [
        (
            3,
            "INTERNALERROR> harness.store.schema.StoreError: store x.db: database or disk is full; free some space\n",
            2,
        ),
        (4, "ERROR: --store: store x.db: database or disk is full; free some space and try again\n", 2),
        (3, "no report: OSError: [Errno 28] No space left on device\n", 2),
        (3, "INTERNALERROR> ValueError: 1\n", 1),
        (3, "a case printed [Errno 28] No space left on device\n", 1),
        (2, "no report: OSError: [Errno 28] No space left on device\n", 1),
    ],
)
def test_suites_that_the_infrastructure_broke_are_tried_again_as_a_whole(
    code: int, tail: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = stand_in(monkeypatch, code, 0, measurements=[figure("pass")] * 2, tail=tail)
    found = take(begun(tmp_path), "suites")
    assert len(given) == times
    assert found.code == (0 if times == 2 else code)
    retries = [(each["case"], each["attempts"], each["verdict"]) for each in found.facts["retries"]]
    assert retries == ([("the suites", 2, "pass")] if times == 2 else [])


def test_a_run_is_found_among_those_of_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tonight = begun(tmp_path)
    ours = tonight.store.begin(MACHINE, "pytest --depth=full")
    tonight.store.begin(MACHINE, "pytest --depth=quick")
    assert suites._run(tonight) == ours


def test_two_nights_on_one_store_do_not_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(str(tmp_path / "plumbline.db"))
    with lock(store):
        with (
            pytest.raises(Locked, match=r"another nightly uses store .*plumbline.db: \S+ pid \d+ since 20"),
            lock(store),
        ):
            pass
        assert cli.main(["nightly", str(written(tmp_path, ""))]) == cli.USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("plumbline: another nightly uses store ")
    with lock(store):
        pass
