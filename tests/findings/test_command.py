"""``plumbline findings``: lists, explains, prints scripts and runs them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli, findings
from harness.plugin import SUITES
from harness.spec import Finding
from tests.findings.examples import RECORD, SYMPTOM

WRONG = RECORD.replace("more memory", "wrong result").replace('"deepspeed"', '"fairscale"')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two findings, the second with a script."""
    (tmp_path / "deepspeed_copy.toml").write_text(RECORD + SYMPTOM)
    (tmp_path / "fairscale_buckets.toml").write_text(WRONG)
    script(tmp_path, 'print("expected 1, found 2")\nprint("still there")\nraise SystemExit(1)\n')
    read, path = findings.read, findings.script
    monkeypatch.setattr(findings, "read", lambda: read(tmp_path))
    monkeypatch.setattr(findings, "script", lambda finding: path(finding, tmp_path))
    return tmp_path


def script(folder: Path, text: str) -> None:
    (folder / "fairscale_buckets.py").write_text(text)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["findings", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_they_are_listed_wrong_results_first_with_their_versions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys)
    assert text.index("wrong result") < text.index("more memory")
    assert text.index("fairscale_buckets") < text.index("deepspeed_copy")
    assert "ZeRO-3 keeps a second copy of the weights" in text
    assert "deepspeed 0.19.8" in text


@pytest.mark.parametrize("arguments", [("--kind", "wrong result"), ("--engine", "fairscale")])
def test_they_are_filtered_by_kind_and_engine(
    arguments: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, *arguments)
    assert "fairscale_buckets" in text
    assert "deepspeed_copy" not in text


def test_one_is_explained_with_every_field_and_the_commands_that_show_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "deepspeed_copy")
    for expected in (
        "more memory",
        "A rank holds 4 bytes a parameter",
        "stage3.py compares a device with a text.",
        "silent",
        "without any unusual option",
        "https://github.com/deepspeedai/DeepSpeed/issues/7700",
        "after 2999-01-01",
        "between 1.2 and 1.4",
        "plumbline run --topics zero --engines deepspeed --measures memory",
    ):
        assert expected in text, expected
    assert "--script" not in text
    assert "plumbline findings fairscale_buckets --script" in shown(capsys, "fairscale_buckets")


def test_a_script_is_printed_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "fairscale_buckets", "--script") == (folder / "fairscale_buckets.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deepspeed_copi"], "unknown finding 'deepspeed_copi'; did you mean deepspeed_copy?"),
        (["--engine", "deepsped"], "unknown engine 'deepsped'; did you mean deepspeed?"),
        (["--script"], "--script prints the script of one finding; name it"),
        (["deepspeed_copy", "--script"], "deepspeed_copy has no script; plumbline findings deepspeed_copy names"),
        (["deepspeed_copy", "--check"], "none of these findings has a script"),
    ],
    ids=" ".join,
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in shown(capsys, *arguments, code=pytest.ExitCode.USAGE_ERROR)


@pytest.mark.parametrize(
    ("text", "state", "code"),
    [
        ('print("found 2")\nprint("still there")\nraise SystemExit(1)', "still there", 0),
        ('print("found 1")\nprint("gone")', "gone: here with deepspeed ", 1),
        ('print("still there")', "cannot be judged: exit status 0: still there", 0),
        ('import os\nprint("still there", flush=True)\nos.abort()', "still there", 0),
        ('import os\nprint("found 2", flush=True)\nos.abort()', "cannot be judged: exit status -6: found 2", 0),
        ('print("gone")\nraise SystemExit(1)', "cannot be judged: exit status 1: gone", 0),
        ('print("still there")\nraise KeyError(3)', "KeyError: 3", 0),
        (
            'import sys\nprint("no file", file=sys.stderr)\nprint("cannot be judged: too old")\nsys.exit(2)',
            "cannot be judged: too old\n",
            0,
        ),
        ("import no_such_engine", "ModuleNotFoundError: No module named 'no_such_engine'", 0),
    ],
)
def test_a_check_says_what_the_script_says(
    text: str, state: str, code: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(folder, text)
    told = shown(capsys, "--check", code=code)
    assert told.startswith("1 of 1 fairscale_buckets ")
    assert state in told
    assert ("cannot be judged" in told) == (state not in ("still there", "gone: here with deepspeed "))


def test_a_fault_that_the_record_knows_to_be_gone_is_no_news(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    installed = f"pytest {pytest.__version__}"
    (folder / "fairscale_buckets.toml").write_text(
        WRONG.replace("deepspeed 0.19.8", "pytest 1").replace("review", f'right = ["{installed}"]\nreview')
    )
    script(folder, 'print("gone")')
    assert "gone: as its record says" in shown(capsys, "--check")


def test_a_script_runs_alone_and_its_ranks_end_with_it(tmp_path: Path) -> None:
    """In a folder of its own, without the user's variables and packages, and within its time."""
    path = tmp_path / "hangs.py"
    path.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "assert sys.flags.isolated and not list(Path.cwd().iterdir())\n"
        "rank = os.fork()\n"
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(rank)) if rank else None\n"
        "time.sleep(600)\n"
    )
    state, reason = findings.check(path, seconds=5.0)
    assert (state, reason) == (findings.UNKNOWN, "it did not end within 5 s")
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    deadline = time.monotonic() + 10  # a signal takes its time
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the rank lives on"
        time.sleep(0.01)


def test_the_shell_completes_its_options() -> None:
    command = [sys.executable, "-m", "harness.cli", "completion", "bash"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SUITES.parent).stdout
    assert all(option in text for option in ("findings", "--check", "--script", "--kind"))


def test_versions_are_those_that_are_installed(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RECORD.replace('"deepspeed 0.19.8"', '"pytest 1", "no-such-engine 2"'))
    (found,) = findings.read(tmp_path)
    assert isinstance(found, Finding)
    assert findings.installed(found) == {"pytest": pytest.__version__, "no-such-engine": ""}
