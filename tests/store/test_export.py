"""The frame and the exports of the store."""

import csv
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from harness.store import COLUMNS, FORMATS, Store, StoreError, export
from harness.store.query import FIGURES
from tests.store.examples import CASE, FINDING

REASON = 'a\r\nb\rc, "d" <b>;\té'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path / "store.db"))
    run = store.begin({}, "pytest")
    failed = FINDING.but(quantity="step", value=math.nan, law=None, bound=None, detail={}, reason=REASON)
    # only the carriage return requires quotes
    store.add(run, CASE, "cpu", [FINDING, failed, FINDING.but(quantity="bar", reason="50%\r100%")])
    return store


def read(content: bytes, format: str) -> list[dict[str, Any]]:
    """The records in an exported file, in the view of a program that reads only that format."""
    if format == "json":
        return list(json.loads(content))
    if format == "csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
        for row in rows:
            row.update({name: float(row[name]) if row[name] else None for name in FIGURES})
    else:
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    return [{**row, "detail": json.loads(row["detail"])} for row in rows]


@pytest.mark.parametrize("format", FORMATS)
def test_an_exported_file_holds_the_records_column_by_column(store: Store, format: str, tmp_path: Path) -> None:
    file = tmp_path / f"records.{format}"
    export(store.frame(), format, file)
    records = read(file.read_bytes(), format)
    assert records == store.records()
    assert [tuple(record) for record in records] == [COLUMNS] * 3
    assert (records[1]["value"], records[1]["reason"]) == (None, REASON)


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_path_the_same_bytes_go_to_the_standard_output_after_what_was_printed(
    store: Store, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(store.frame(), format, tmp_path / "records")
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output))
    print("before", end=":")
    export(store.frame(), format)
    assert output.getvalue() == b"before:" + (tmp_path / "records").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_store_exports_its_columns(format: str, tmp_path: Path) -> None:
    frame = Store.open(str(tmp_path / "empty.db")).frame()
    assert tuple(frame.columns) == COLUMNS
    assert [str(frame[name].dtype) for name in FIGURES] == ["float64"] * 3
    export(frame, format, tmp_path / "records")
    assert read((tmp_path / "records").read_bytes(), format) == []


def test_figures_in_a_frame_are_numbers_and_absent_ones_nan(store: Store) -> None:
    frame = store.frame()
    assert [str(frame[name].dtype) for name in FIGURES] == ["float64"] * 3
    assert frame["value"].tolist()[0] == FINDING.value
    assert math.isnan(frame["value"].tolist()[1])
    assert frame["detail"][0] == FINDING.detail


def test_a_frame_of_all_runs_holds_them_all(store: Store) -> None:
    store.begin({}, "pytest")
    assert (len(store.frame()), len(store.frame("*"))) == (0, 3)


def test_an_unknown_format_gets_the_nearest_known_one(store: Store) -> None:
    with pytest.raises(StoreError, match=r"format 'parket' is unknown \(did you mean parquet\?\); known: csv, json"):
        export(store.frame(), "parket", None)


def test_a_file_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*: No such file or directory; give a file in a folder"):
        export(store.frame(), "csv", tmp_path / "missing" / "records.csv")
