"""Worlds in unusual surroundings: folders with long and odd names, and what a user's shell has set."""

import tempfile
from pathlib import Path

import pytest

from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done
from tests.launch.worlds import run


@pytest.mark.parametrize("name", ["n" * 200, "a b#c?d%20é"], ids=["long", "odd"])
def test_a_folder_for_temporary_files_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is asked for once
    with LocalLauncher() as launcher:
        assert run(launcher, "total") == (Done(0, 3.0), Done(1, 3.0))
        assert list(folder.glob("plumbline-*"))
    assert not list(folder.glob("plumbline-*"))
