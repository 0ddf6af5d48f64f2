"""The command line: exit codes, piped output, and output for other programs."""

import csv
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from importlib.metadata import version
from pathlib import Path

import pandas
import pytest

from harness import cli
from harness.plan import cases
from harness.store import Store
from tests.store.examples import CASE, FINDING

LONG = "pytest suites/ -k " + " or ".join(f"test_measure[parity-zero{stage}]" for stage in range(9))
COMMAND = [sys.executable, "-m", "harness.cli"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of two runs in the default store, the newest first."""
    monkeypatch.chdir(tmp_path)
    store = Store.open("plumbline.db")
    found = []
    for status in ("finished", "interrupted"):
        found.append(store.begin({"cpu": "x"}, LONG))
        store.add(found[-1], CASE, "cpu", [FINDING])
        store.finish(found[-1], status)
    return found[::-1]


def piped(*arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def terminal(*arguments: str, columns: int) -> str:
    """The output in a terminal of some columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen([*COMMAND, *arguments], stdout=theirs, env={**environment, "TERM": "dumb"}) as process:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux's error for a closed pipe
        return b""


def test_the_version_is_told() -> None:
    assert piped("--version").strip() == f"plumbline {version('plumbline')}"


def test_runs_that_are_piped_are_not_cut_and_names_in_brackets_stay(runs: list[str]) -> None:
    lines = piped("records", "--runs").splitlines()
    assert [run for run in runs if any(run in line and LONG in line for line in lines)] == runs


def test_runs_in_a_narrow_terminal_go_on_in_the_next_line(runs: list[str]) -> None:
    shown = terminal("records", "--runs", columns=80)
    assert "…" not in shown
    cells = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if "│" in line]
    assert "".join(row[1] for row in cells) == "".join(runs)


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_names_that_are_piped_are_not_cut(command: str) -> None:
    shown = piped(command)
    assert "…" not in shown
    words = set(shown.split())
    for card in cases.cards(cases.Request()).values():
        assert words >= {card.name, *card.variants, *card.adapted}


def test_runs_are_written_in_the_format_that_is_asked_for(runs: list[str], tmp_path: Path) -> None:
    found = json.loads(piped("records", "--runs", "--format", "json"))
    assert [(run["run"], run["status"], run["command"]) for run in found] == [
        (runs[0], "interrupted", LONG),
        (runs[1], "finished", LONG),
    ]
    assert [(run["records"], run["environment"]) for run in found] == [(1, {"cpu": "x"})] * 2
    rows = list(csv.DictReader(io.StringIO(piped("records", "--runs", "--format", "csv"))))
    assert [row["run"] for row in rows] == runs
    assert json.loads(rows[0]["environment"]) == {"cpu": "x"}
    piped("records", "--runs", "--format", "parquet", "--output", "runs.parquet")
    assert list(pandas.read_parquet(tmp_path / "runs.parquet")["run"]) == runs
    piped("records", "--runs", "--output", "runs.csv")
    assert [row["run"] for row in csv.DictReader(Path("runs.csv").read_text().splitlines())] == runs


def test_one_run_is_listed_by_its_id(runs: list[str]) -> None:
    found = json.loads(piped("records", "--runs", "--run", runs[1], "--format", "json"))
    assert [run["run"] for run in found] == [runs[1]]
    assert len(json.loads(piped("records", "--runs", "--run", "*", "--format", "json"))) == 2


@pytest.mark.parametrize("more", [(), ("--runs",), ("--runs", "--format", "json")])
def test_a_run_that_is_not_there_is_a_usage_error_with_the_nearest(
    runs: list[str], more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["records", "--run", runs[0][:-1], *more]) == pytest.ExitCode.USAGE_ERROR
    assert f"has no run '{runs[0][:-1]}' (did you mean {runs[0]}?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["rum"], ["run", "--bogus"], ["run", "--gpus", "x"], ["records", "--format", "xml"], ["completion", "fish"]],
    ids=" ".join,
)
def test_wrong_usage_has_pytests_exit_code(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == pytest.ExitCode.USAGE_ERROR
    assert "--help tells more" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["records"], ["report"], ["records", "--store", "postgres://u:hidden@h/d"]])
def test_a_store_that_is_not_there_is_a_usage_error_in_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == pytest.ExitCode.USAGE_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plumbline: ")
    assert "hidden" not in line


def test_parquet_is_not_written_to_a_terminal(runs: list[str]) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "records", "--format", "parquet"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "add --output FILE" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["list"], ["records"], ["records", "--runs"], ["completion", "bash"], ["--help"]]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(
    runs: list[str], arguments: list[str], unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)  # nobody reads: the first write fails
    done = subprocess.run([*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_has_pytests_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cases, "cards", interrupted)
    assert cli.main(["list"]) == pytest.ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "plumbline: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "topics"),
    [
        (["zero", "dpo"], "zero,dpo"),
        (["--topics", "zero,dpo"], "zero,dpo"),
        (["zero", "--topics", "dpo"], "zero,dpo"),
        (["zero", "--topics", ""], "zero,"),  # the suites must reject it
    ],
)
def test_run_takes_topics_by_place_and_by_option(
    arguments: list[str], topics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(pytest, "main", lambda words: seen.append(words) or 5)
    assert cli.main(["run", *arguments, "-k", "", "--gpus", "-1", "--add-engine", "a:b=c:d", "--add-engine", "e"]) == 5
    (words,) = seen
    assert words[1:] == ["--gpus=-1", f"--topics={topics}", "--add-engine=a:b=c:d", "--add-engine=e", "-k", ""]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_knows_commands_and_options(shell: str) -> None:
    script = piped("completion", shell)
    assert all(word in script for word in ("doctor", "completion", "--case-timeout", "--format", "parquet"))


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(piped("completion", "bash"))
    typed = "COMP_WORDS=(plumbline records --fo); COMP_CWORD=2; _shtab_plumbline plumbline; echo ${COMPREPLY[@]}"
    command = ["bash", "-c", f"source {tmp_path / 'script'}; {typed}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["--format"]
