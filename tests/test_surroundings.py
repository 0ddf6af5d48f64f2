"""The command line and the suites on a machine with an unusual setup."""

import subprocess
import sys
from pathlib import Path

import pytest

SUITES = str(Path(__file__).parents[1] / "suites")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "command",
    [("harness.cli", "list"), ("pytest", SUITES, "--collect-only", "-q", "--topics", "zero", "-p", "no:cacheprovider")],
    ids=["list", "suites"],
)
def test_a_locale_without_unicode_is_no_hindrance(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ASCII.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(SUITES).parent))
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "zero" in done.stdout
