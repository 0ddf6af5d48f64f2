"""The command that reproduces a case, run like a reader would run it, selects that case and no other."""

import html as markup
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.options import OPTIONS
from reports.commands import repeated, reproducing
from reports.render import render
from tests.reports import planted
from tests.reports.planted import measurement

SUITES = str(Path(__file__).parents[2] / "suites")
ENGINE = """
def build(workload, topology, **variant):
    from impls.parallelism.zero.reference import build
    return build(workload, topology, **variant)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("own work.toml").write_text('batch_size = 4\ndtype = "bf16"\n')
    tmp_path.joinpath("own_engine.py").write_text(ENGINE)
    return tmp_path


WORK = ("--workload", "own work.toml,tiny")
ADDED = ("--add-engine", "zero:own=own_engine:build")


@pytest.mark.parametrize(
    "options",
    [
        WORK,
        ADDED,
        (*WORK, *ADDED, "--topologies", "dp1,dp2", "--dtypes", "fp64", "--ranks", "2", "--engines", "own,torch"),
        ("--gpus", "0", "--measures", "memory"),
    ],
    ids=["workload", "engine", "all", "measure"],
)
def test_the_command_selects_the_case_that_it_stands_beside_and_no_other(
    folder: Path, options: tuple[str, ...]
) -> None:
    command = shlex.join(["pytest", SUITES, "--topics", "zero", *options, "--store", "x.db", "-k", "zero"])
    listed = _collected(command)
    cases = {line.partition("-")[2].removesuffix("]") for line in listed}
    for part in (_mine(options), "zero1-"):
        case = min(case for case in cases if part in case)
        again = reproducing(repeated(command), case)
        assert {line.partition("-")[2] for line in _collected(again)} == {f"{case}]"}, again


def _mine(options: tuple[str, ...]) -> str:
    """Cases that exist only with these options: cases of the added engine, or of the workload."""
    return "-own-" if ADDED[0] in options else "own_work" if WORK[0] in options else "torch"


def _collected(command: str) -> list[str]:
    words = [*shlex.split(command)[1:], "--collect-only", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return [line.partition("[")[2] for line in found.stdout.splitlines() if "test_measures.py::" in line]


def test_every_option_is_repeated_but_for_results_other_runs_and_ones_own_machines() -> None:
    given = {name: f"value of {name}" for name in OPTIONS if name != "--single-file"}
    command = shlex.join(["pytest", "suites", "--single-file", *(word for pair in given.items() for word in pair)])
    words = shlex.split(repeated(command))
    apart = {"--store", "--report", "--baseline", "--resume", "--hosts", "--head", "--remote-shell", "--slurm"}
    assert words[:2] == ["pytest", "suites"]
    assert dict(zip(words[2::2], words[3::2], strict=True)) == {
        name: value for name, value in given.items() if name not in apart
    }


@pytest.mark.parametrize(
    ("command", "again"),
    [
        ("pytest suites/test_measures.py::test_measure -k zero -m parity", "pytest suites"),
        ("pytest --workload=a.toml /opt/x/suites", "pytest /opt/x/suites --workload a.toml"),
        (
            "pytest suites --add-engine a:b=c:d --add-engine=e:f=g:h",
            "pytest suites --add-engine a:b=c:d --add-engine e:f=g:h",
        ),
        ("pytest suites --workload '~/my work.toml'", "pytest suites --workload ~/'my work.toml'"),
        ("pytest 'suites", "pytest suites/"),
        ("pytest suites --workload", "pytest suites/"),
        ("", "pytest suites/"),
    ],
)
def test_only_the_options_that_choose_work_are_repeated(command: str, again: str) -> None:
    assert repeated(command) == again


def test_a_failing_case_comes_with_the_command_that_reproduces_it() -> None:
    run = planted.run() | {"command": "pytest suites --workload 'own work.toml' --store postgresql://u:secret@h/d"}
    base = planted._base("zero", "zero1", "torch", "dp2", "fp32", "cpu") | {"case": "zero1-torch-dp2-fp32-own_work"}
    page = render([base | measurement("parity", "gradient", 9.0, "× floor", "fail", bound=3.0)], run)
    shown = {markup.unescape(code) for code in re.findall(r'<code class="run">(.*?)</code>', page)}
    assert shown == {"pytest suites --workload 'own work.toml' -k='-zero1-torch-dp2-fp32-own_work]'"}


def test_every_failing_case_has_its_command(html: str) -> None:
    bad = [record for record in planted.records() if record["verdict"] in ("fail", "error", "invalid")]
    bad = [record for record in bad if record["case"]]
    assert len(bad) > 15
    shown = {markup.unescape(code) for code in re.findall(r'<code class="run">(.*?)</code>', html)}
    assert {f"pytest suites/ --ranks 4 -k='-{record['case']}]'" for record in bad} <= shown
