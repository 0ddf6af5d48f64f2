"""The table and its file."""

from pathlib import Path

import pytest

from harness.versions import RIGHT, UNKNOWN, WRONG, CaseRow, Cell, FindingRow, Release, Versions, read, write
from harness.versions.model import summary

NAMES = ("1.0", "1.1", "1.2", "1.3", "1.4")


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ((RIGHT, RIGHT, WRONG, WRONG, WRONG), "right until 1.1, wrong from 1.2"),
        ((WRONG, WRONG, WRONG, WRONG, RIGHT), "wrong until 1.3, right from 1.4"),
        ((RIGHT, WRONG, WRONG, RIGHT, RIGHT), "right until 1.0, wrong from 1.1 to 1.2, right from 1.3"),
        ((RIGHT, UNKNOWN, UNKNOWN, WRONG, UNKNOWN), "right until 1.0, wrong from 1.3 (1.1, 1.2 could not be judged)"),
        ((RIGHT, None, None, WRONG, None), "right until 1.0, wrong from 1.3"),
        ((None, WRONG, WRONG, WRONG, UNKNOWN), "wrong in all 3 that were judged, 1.1 to 1.3"),
        ((None, None, None, RIGHT, None), "right in 1.3"),
        ((UNKNOWN, UNKNOWN, None, None, None), "could not be judged"),
    ],
)
def test_a_row_is_summed_up_in_words(states: tuple[str | None, ...], said: str) -> None:
    cells = {name: Cell(state) for name, state in zip(NAMES, states, strict=True) if state}
    assert summary(NAMES, cells) == said


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    cells = {"1.0": Cell(RIGHT), "1.1": Cell(UNKNOWN, "no import")}
    row = FindingRow("lib_fault", "a fault", "wrong result", "lost", cells, ("1.0", "1.1"), "right in 1.0")
    releases = (Release("1.0", run="r", errors={"AttributeError: x": 3}), Release("1.1", "no import"))
    case = CaseRow("zero1-lib-dp2-fp32", "parity", {"1.0": "pass"}, {})
    table = Versions("lib", "2026-01-01T00:00:00+00:00", "plumbline versions", {"cores": 2}, releases, (row,), (case,))
    write(tmp_path / "versions.json", table)
    assert read(tmp_path / "versions.json") == table
    assert [path.name for path in tmp_path.iterdir()] == ["versions.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "is no table of versions"),
        ("[]", "is no table of versions"),
        ('{"format": 99}', "its format is 99, and this Plumbline reads 1"),
    ],
)
def test_another_file_is_told(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "versions.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "versions.json")
