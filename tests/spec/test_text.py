"""Documents in the user's files: every format gives the same result, and each fault is one line with its place."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.spec import records, text
from harness.spec.files import InputError

DOCUMENTS = ["The first one.", "Über 你好 \U0001f600\n\u2028 line", "  ", "x" * 200]
BOM = b"\xef\xbb\xbf"


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


JSONL = lines(*({"id": number, "text": document} for number, document in enumerate(DOCUMENTS)))
TABLE = pa.table({"id": range(len(DOCUMENTS)), "text": DOCUMENTS})
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 727\n"


def stream(path: Path) -> None:
    with pa.ipc.new_stream(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=3)


def random_access(path: Path) -> None:
    with pa.ipc.new_file(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=3)


FORMATS: dict[str, bytes | Callable[[Path], object]] = {
    "plain.jsonl": JSONL,
    "bom.jsonl": BOM + JSONL,
    "crlf.jsonl": JSONL.replace(b"\n", b"\r\n"),
    "blank.JSONL": b"\n \n" + JSONL.replace(b"\n", b"\n\n"),
    "no_newline_at_the_end.jsonl": JSONL[:-1],
    "escaped.jsonl": "\n".join(json.dumps({"text": document}) for document in DOCUMENTS).encode(),
    "with_empty_documents.jsonl": lines({"text": ""}) + JSONL + lines({"text": ""}),
    "packed.jsonl.gz": gzip.compress(JSONL),
    "table.parquet": lambda path: pq.write_table(TABLE, path, row_group_size=2),
    "stream.arrow": stream,
    "file.arrow": random_access,
}


def write(path: Path, content: bytes | Callable[[Path], object]) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


def read(path: Path) -> list[tuple[str, bool]]:
    return [piece for group in text.pieces(path) for piece in group]


@pytest.mark.parametrize("piece", [1, 10**6])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_documents(
    name: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PIECE", piece)
    monkeypatch.setattr(records, "ROWS", 3)
    assert read(write(tmp_path / name, FORMATS[name])) == [(document, True) for document in DOCUMENTS]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (BOM + b"one\ntwo", "one\ntwo"),
        (b"one\r\ntwo\n", "one\ntwo\n"),
        ("Über 你好".encode(), "Über 你好"),
    ],
)
def test_a_plain_text_is_one_document(content: bytes, expected: str, tmp_path: Path) -> None:
    pieces = read(write(tmp_path / "a.txt", content))
    assert "".join(piece for piece, _ in pieces) == expected
    assert [first for _, first in pieces] == [True] + [False] * (len(pieces) - 1)


def test_a_long_text_without_a_space_is_still_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 50)
    for content in ("x" * 1000, ("x" * 30 + "\n") * 30):
        pieces = read(write(tmp_path / "a.txt", content.encode()))
        assert "".join(piece for piece, _ in pieces) == content
        assert max(len(piece) for piece, _ in pieces) < 2 * 50
        assert [first for _, first in pieces] == [True] + [False] * (len(pieces) - 1)


FINE = lines({"text": "fine"})
NO_TEXT = 'line 2 has no field "text", and only plain text can be used; '
NO_STRING = 'line 2: the field "text" must hold a string, not '
FAULTS: dict[str, tuple[str, bytes | Callable[[Path], object], str]] = {
    "cut": ("a.jsonl", FINE + b'{"text": "hal', "a.jsonl, line 2 is not JSON: Unterminated string"),
    "nested": ("a.jsonl", FINE + b"[" * 10**5, "a.jsonl, line 2 is not JSON: "),
    "messages": ("a.jsonl", FINE + lines({"messages": [{"role": "user"}]}), NO_TEXT + "its fields are messages"),
    "instruct": ("a.jsonl", FINE + lines({"prompt": "a", "completion": "b"}), "its fields are prompt, completion"),
    "list": ("a.jsonl", FINE + lines(["a"]), NO_TEXT + "it is ['a']"),
    "null": ("a.jsonl", FINE + lines({"text": None}), NO_STRING + "None"),
    "texts": ("a.jsonl", FINE + lines({"text": ["a", "b"]}), NO_STRING + "['a', 'b']"),
    "number": ("a.jsonl", FINE + lines({"text": 7}), NO_STRING + "7"),
    "surrogate": ("a.jsonl", FINE + b'{"text": "a\\ud83d"}\n', r"""line 2: the field "text" holds '\ud83d', half a"""),
    "gbk": ("a.jsonl", FINE + '{"text": "你好"}'.encode("gbk"), "a.jsonl, line 2 is not UTF-8: "),
    "utf16_lines": ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "a.jsonl, line 1 is not UTF-8: "),
    "utf16": ("a.txt", "text".encode("utf-16"), "a.txt is not UTF-8: "),
    "cut_gzip": ("a.jsonl.gz", gzip.compress(FINE * 99)[:-12], "a.jsonl.gz cannot be read, or was cut short: "),
    "no_gzip": ("a.jsonl.gz", FINE, "a.jsonl.gz cannot be read, or was cut short: "),
    "no_parquet": ("a.parquet", FINE, "a.parquet cannot be read, or was cut short: "),
    "no_arrow": ("a.arrow", FINE, "a.arrow cannot be read, or was cut short: "),
    "column": (
        "a.parquet",
        lambda path: pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), path),
        'a.parquet has no field "text", and only plain text can be used; its fields are prompt, answer',
    ),
    "null_in_a_table": (
        "a.parquet",
        lambda path: pq.write_table(pa.table({"text": ["a", None]}), path),
        'a.parquet, row 2: the field "text" must hold a string, not None',
    ),
    "pointer": ("a.parquet", LFS, "a.parquet is a Git LFS pointer, not the file itself: run git lfs pull"),
    "pointer_to_text": ("a.txt", LFS, "a.txt is a Git LFS pointer"),
    "csv": ("a.csv", b"text", "a.csv must be a .txt, .jsonl, .jsonl.gz, .parquet or .arrow file"),
    "folder": ("a", lambda path: path.mkdir(), "is a folder; name a file"),
    "absent": ("a.txt", lambda path: None, "there is no file "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_says_where(fault: str, tmp_path: Path) -> None:
    name, content, message = FAULTS[fault]
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as error:
        read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_documents_before_a_fault_are_read_before_it_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of a file is checked without the rest."""
    monkeypatch.setattr(text, "PIECE", 1)
    pieces = text.pieces(write(tmp_path / "a.jsonl", FINE + b"{"))
    assert next(pieces) == [("fine", True)]
    with pytest.raises(InputError, match="line 2 is not JSON"):
        next(pieces)
