"""``plumbline publish``."""

from pathlib import Path

import pytest

from harness.cli import USAGE, main
from harness.store import Store


def test_the_command_prints_the_first_page(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(tmp_path / "site"), "--store", str(tmp_path / "history.db"), "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "site" / "index.html")


def test_a_store_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(tmp_path / "site"), "--store", str(tmp_path / "none.db")]) == USAGE
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def test_a_file_that_is_no_table_of_releases_is_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.json").write_text("[]")
    command = ["publish", str(tmp_path / "site"), "--store", str(tmp_path / "history.db")]
    assert main([*command, "--versions", str(tmp_path / "v.json")]) == USAGE
    assert "no table of plumbline versions" in capsys.readouterr().err
