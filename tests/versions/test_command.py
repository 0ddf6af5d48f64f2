"""``plumbline versions``: the table, the bisection, and what is wrong with a request."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli
from harness.versions import RIGHT, UNKNOWN, WRONG, read
from tests.versions.processes import ended
from tests.versions.wheels import PACKAGE, factors, wheel

ROOT = Path(__file__).parents[2]
NAME = f"{PACKAGE}_factor"


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    found = cli.main(["versions", *arguments])
    captured = capsys.readouterr()
    assert found == code, captured.out + captured.err
    return captured.out + captured.err


def test_a_table_says_until_when_a_finding_was_right(
    index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A release that does not import is a row with its reason, and no verdict."""
    factors(index, _1=1, _3=1, _4=2)
    wheel(index, "1.2", "import no_such_module")
    told = shown(capsys, f"{PACKAGE}==1.1..1.4", "--scripts")
    assert "1.2 (2 of 4)" in told
    table = read(Path("versions.json"))
    assert [release.version for release in table.releases] == ["1.1", "1.2", "1.3", "1.4"]
    (row,) = table.findings
    assert {version: cell.state for version, cell in row.cells.items()} == {
        "1.1": RIGHT,
        "1.2": UNKNOWN,
        "1.3": RIGHT,
        "1.4": WRONG,
    }
    assert row.summary == "right until 1.3, wrong from 1.4"
    assert "No module named 'no_such_module'" in table.releases[1].reason
    assert table.package == PACKAGE
    assert table.environment["packages"]["torch"]
    for said in (row.summary, "1.2: it cannot be imported", "plumbline versions --show versions.json"):
        assert said in told
    again = shown(capsys, "--show", "versions.json")
    assert again in told
    assert not Path("versions.db").exists()


def test_a_script_that_cannot_judge_gives_no_verdict(
    index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors(index, _1=0)
    told = shown(capsys, f"{PACKAGE}==1.1", "--scripts", code=1)
    assert f"{NAME} in 1.1: a factor of 0" in told


def test_a_script_has_the_time_of_a_case(index: Path, finding: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finding / f"{NAME}.py").write_text("import time\ntime.sleep(60)\n")
    factors(index, _1=1)
    told = shown(capsys, f"{PACKAGE}==1.1", "--scripts", "--case-timeout", "0.5", code=1)
    assert f"{NAME} in 1.1: it did not end within 0.5 s" in told


def test_a_bisection_goes_round_a_release_that_cannot_be_judged(
    index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors(index, _1=1, _2=1, _3=1, _4=0, _5=2, _6=2, _7=2)
    told = shown(capsys, f"{PACKAGE}==1.1..1.7", "--bisect", NAME)
    assert [line.split(": ")[1] for line in told.splitlines() if line.startswith("  step ")] == [
        f"{PACKAGE} {version}" for version in ("1.1", "1.7", "1.4", "1.3", "1.5")
    ]
    (row,) = read(Path("versions.json")).findings
    assert row.steps == ("1.1", "1.7", "1.4", "1.3", "1.5")
    assert row.summary == "right until 1.3, wrong from 1.5 (1.4 could not be judged)"
    assert row.summary in told


def test_a_bisection_looks_between_equal_ends_at_the_releases_of_the_record(
    index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record says that it was seen in 1.2."""
    factors(index, _0=1, _1=1, _2=2, _3=2, _4=1)
    told = shown(capsys, f"{PACKAGE}==1.0..1.4", "--bisect", NAME)
    assert "right until 1.1, wrong from 1.2 to 1.3, right from 1.4" in told


def test_a_bisection_without_a_change_is_a_failure(
    index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors(index, _1=1, _2=1, _3=1)
    told = shown(capsys, f"{PACKAGE}==1.1..1.3", "--bisect", NAME, code=1)
    assert "right in all 3 that were judged, 1.1 to 1.3" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a package and its releases; write deepspeed==0.19.2,0.19.5"),
        (["deepsped==1.0"], "unknown package 'deepsped'; did you mean deepspeed"),
        ([PACKAGE], f"'{PACKAGE}' names no releases"),
        ([f"{PACKAGE}==1.2..1.1"], "1.1 is older than 1.2"),
        ([f"{PACKAGE}==1.1", "--findings", "faultlib_facto"], "unknown finding 'faultlib_facto'; did you mean"),
        (["torch==2.12.1", "--findings", NAME], f"{NAME} was seen in {PACKAGE}, not in torch"),
        ([f"{PACKAGE}==1.1", "--bisect", NAME], "a bisection takes a range of releases"),
        ([f"{PACKAGE}==1.1", "--bisect", NAME, "--findings", NAME], "leave out --findings"),
        ([f"{PACKAGE}==1.1", "--scripts", "--cases"], "not allowed with argument"),
        (["torch==2.12.1", "--scripts"], "no such finding of torch has a script"),
        ([f"{PACKAGE}==1.1,1.2", "--cases", "--bisect", NAME], "has neither a script nor cases"),
        ([f"{PACKAGE}==1.1", "--topics", "zeero"], "unknown topic 'zeero'; did you mean zero"),
        ([f"{PACKAGE}==1.1", "--output", "no/such/file.json"], "the folder no/such does not exist"),
        (["--show", "versions.json"], "No such file"),
        ([f"{PACKAGE}==1.1", "--show", "versions.json"], "leave out the releases, or --show"),
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_one_line_before_anything_is_installed(
    arguments: list[str], message: str, index: Path, finding: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factors(index, _1=1)
    with pytest.raises(SystemExit) as left:
        sys.exit(cli.main(["versions", *arguments]))
    assert left.value.code == pytest.ExitCode.USAGE_ERROR
    assert message in capsys.readouterr().err
    assert not Path(os.environ["XDG_CACHE_HOME"]).exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_a_script_and_leave_no_table(
    signum: signal.Signals, index: Path, finding: Path, tmp_path: Path
) -> None:
    factors(index, _1=1)
    place = str(tmp_path / "pid")
    text = f"import os, time\nopen({place!r} + '~', 'w').write(str(os.getpid()))\nos.rename({place!r} + '~', {place!r})"
    (finding / f"{NAME}.py").write_text(f"{text}\ntime.sleep(600)\n")
    start = f"""
import sys
from pathlib import Path
from harness import cli, findings
read, script, folder = findings.read, findings.script, Path({str(finding)!r})
findings.read = lambda: read(folder)
findings.script = lambda finding: script(finding, folder)
sys.exit(cli.main(["versions", "{PACKAGE}==1.1", "--scripts"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", start],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        deadline = time.monotonic() + 120
        while not Path(place).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (2, "plumbline: interrupted\n")
    assert ended(Path(place).read_text())
    assert not Path("versions.json").exists()
