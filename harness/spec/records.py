"""Records in the user's files: ``.jsonl`` and ``.jsonl.gz`` (a JSON value a line), ``.parquet`` and ``.arrow``.

Lines are UTF-8, with or without a byte order mark. Blank lines are left out.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.spec.files import InputError, one_line

FORMATS = (".jsonl", ".jsonl.gz", ".parquet", ".arrow")
ROWS = 1000  # rows of a table that are read together

Columns = Callable[[list[str]], list[str]]  # the columns of a table that are needed, or an InputError


def records(data: Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    """Each record after its place, which names the file and the line or row. Raises InputError if the file holds
    anything else."""
    yield from _rows(data, columns) if data.name.lower().endswith((".parquet", ".arrow")) else _lines(data)


def encodable(place: str, field: str, text: str) -> str:
    """The text. Raises InputError if it holds half a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = f"{text[error.start]!r}, half a surrogate pair and no character"
        raise InputError(f'{place}: the field "{field}" holds {lone}') from error
    return text


def _lines(data: Path) -> Iterator[tuple[str, Any]]:
    packed = data.name.lower().endswith(".gz")
    try:
        with gzip.open(data) if packed else data.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    place = f"{data}, line {number}"
                    yield place, _value(place, line)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"data {data} cannot be read, or was cut short: {one_line(error)}") from error


def _value(place: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}") from error


def _rows(data: Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa

    try:
        rows = (row for batch in _batches(data, columns) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{data}, row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"data {data} cannot be read, or was cut short: {one_line(error)}") from error


def _batches(data: Path, columns: Columns) -> Iterator[Any]:
    """``pyarrow.RecordBatch`` objects of the needed columns, a few at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if data.name.lower().endswith(".parquet"):
        with pq.ParquetFile(data) as table:
            yield from table.iter_batches(ROWS, columns=columns(table.schema_arrow.names))
        return
    with pa.memory_map(str(data)) as source:
        try:
            stream = pa.ipc.open_stream(source)  # the format of the datasets library
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(source)
            chosen = columns(table.schema.names)
            yield from (table.get_batch(index).select(chosen) for index in range(table.num_record_batches))
            return
        chosen = columns(stream.schema.names)
        yield from (batch.select(chosen) for batch in stream)
