"""Text to train on: documents in the user's files, and the tokenizer that turns them into tokens.

A ``.txt`` file is one document. ``.jsonl`` and ``.jsonl.gz`` (a JSON object a line), ``.parquet`` and ``.arrow`` hold
documents in the field "text". Text is UTF-8, with or without a byte order mark; every end of a line in a ``.txt`` file
becomes ``\\n``. Blank lines and empty documents are left out.
"""

import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from harness.spec import records
from harness.spec.files import InputError, one_line, readable
from harness.spec.workload import Workload

FORMATS = (".txt", *records.FORMATS)
END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
)  # the first one found
PIECE = 1 << 16  # characters tokenised together: the tokenizer's results take hundreds of times their size
BETWEEN_WORDS = re.compile(r".*\S(?= \S)", re.DOTALL)  # a cut is made at the last such character


def open_tokenizer(path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` without any saved truncation and padding, which serve inference. Raises InputError
    if the file is not a tokenizer."""
    from tokenizers import Tokenizer  # only text needs it

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower exception
        raise InputError(f"{path} is not a tokenizer.json: {one_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_file(workload: Workload) -> Path:
    """The tokenizer.json that is named, that lies in the named folder, or that lies beside the weights."""
    if not (place := workload.tokenizer or workload.weights):
        raise InputError(f"data {workload.data} needs a tokenizer: set tokenizer, or weights with a tokenizer.json")
    path = Path(place)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.exists():
        raise InputError(
            f"data {workload.data} needs a tokenizer: there is no {path}; set tokenizer to one or to its folder"
        )
    return readable(path)


def end_of_text(tokenizer: Any) -> int | None:
    """The token that separates documents, if the tokenizer has one of :data:`END_OF_TEXT`."""
    ends = (tokenizer.token_to_id(token) for token in END_OF_TEXT)
    return next((token for token in ends if token is not None), None)


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json beside a tokenizer says, and special_tokens_map.json, where older folders keep their
    special tokens."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            try:
                settings = json.loads(readable(path).read_text("utf-8-sig"))
            except ValueError as error:
                raise InputError(f"{path} is not JSON: {one_line(error)}") from error
            found |= settings if isinstance(settings, dict) else {}
    return found


def chat_template(folder: Path) -> str:
    """The tokenizer's chat template, the default one if it has several; empty if it has none."""
    if (path := folder / "chat_template.jinja").is_file():
        return readable(path).read_text("utf-8")
    found = tokenizer_settings(folder).get("chat_template") or ""
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}.get("default", "")
    return str(found)


def token_rows(tokenizer: Any, groups: Iterable[list[tuple[str, bool]]]) -> Iterator[list[int]]:
    """The tokens of each piece, with an end-of-text token between documents if the tokenizer has one."""
    end, begun = end_of_text(tokenizer), False
    for group in groups:
        encoded = tokenizer.encode_batch([text for text, _ in group], add_special_tokens=False)
        for (_, first), encoding in zip(group, encoded, strict=True):
            if first and begun and end is not None:
                yield [end]
            yield encoding.ids
            begun = True


def check_vocabulary(data: Path, path: Path, tokenizer: Any, largest: int, vocab_size: int) -> None:
    """Raises InputError if the model has no embedding for the largest token that the tokenizer at ``path`` produced."""
    if largest >= vocab_size:
        name = tokenizer.id_to_token(largest)
        raise InputError(f"{path} gives token {largest} ({name!r}) for {data}, but model.vocab_size is {vocab_size}")


def check_length(workload: Workload, tokens: int) -> None:
    """Raises InputError if this number of tokens does not fill one batch."""
    length = workload.sequence_length + 1
    if tokens // length < workload.batch_size:
        raise InputError(
            f"data {workload.data} has {tokens} tokens; one batch takes {workload.batch_size * length}, "
            f"batch_size {workload.batch_size} × (sequence_length {workload.sequence_length} + 1)"
        )


def pieces(data: Path) -> Iterator[list[tuple[str, bool]]]:
    """Texts to tokenise together, about PIECE characters per list; each has a flag that a document begins there.

    Raises InputError, with the line or the row, if ``data`` holds anything else.
    """
    return grouped(_texts(data))


def grouped(texts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """The same texts, about PIECE characters per list."""
    group: list[tuple[str, bool]] = []
    size = 0
    for text, first in texts:
        group.append((text, first))
        size += len(text)
        if size >= PIECE:
            yield group
            group, size = [], 0
    yield group


def _texts(data: Path) -> Iterator[tuple[str, bool]]:
    name = readable(data).name.lower()
    if not name.endswith(FORMATS):
        raise InputError(f"data {data} must be a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file")
    if name.endswith(".txt"):
        yield from _plain(data)
        return
    for place, record in records.records(data, lambda names: _only_text(data, names)):
        if text := _text(place, record):
            yield text, True


def _only_text(data: Path, columns: list[str]) -> list[str]:
    if "text" not in columns:
        _text(str(data), dict.fromkeys(columns))
    return ["text"]


def _text(place: str, record: Any) -> str:
    if not isinstance(record, dict) or "text" not in record:
        found = f"its fields are {', '.join(record)}" if isinstance(record, dict) else f"it is {reprlib.repr(record)}"
        raise InputError(f'{place} has no field "text", and only plain text can be used; {found}')
    text = record["text"]
    if not isinstance(text, str):
        raise InputError(f'{place}: the field "text" must hold a string, not {reprlib.repr(text)}')
    return records.encodable(place, "text", text)


def _plain(data: Path) -> Iterator[tuple[str, bool]]:
    try:
        with data.open(encoding="utf-8-sig") as file:
            yield from _cuts(file)
    except UnicodeDecodeError as error:
        raise InputError(f"data {data} is not UTF-8: {error}") from error


def _cuts(file: TextIO) -> Iterator[tuple[str, bool]]:
    """Plain text, one document, cut between words: no byte-level tokenizer's token crosses such a cut."""
    first, rest = True, ""
    while chunk := file.read(PIECE):
        rest += chunk
        between = BETWEEN_WORDS.match(rest)
        cut = between.end() if between else rest.rfind("\n") + 1 or len(rest)
        yield rest[:cut], first
        first, rest = False, rest[cut:]
    if rest:
        yield rest, first
