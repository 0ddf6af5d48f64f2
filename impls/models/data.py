"""The data: a deterministic synthetic stream, or text through a tokenizer."""

import json
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from harness.spec import Batch, Workload

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # the first that the tokenizer has
IGNORED = -100  # the label that does not count, PyTorch's default
PIECE = 1 << 16  # characters tokenised together: the tokenizer's records take hundreds of times their size
BETWEEN_WORDS = re.compile(r".*\S(?= \S)", re.DOTALL)  # up to the last such place


def batch(workload: Workload, step: int) -> Batch:
    """The global batch of one step, [batch_size, sequence_length] inputs and the labels that follow them.

    ValueError where ``workload.data`` or its tokenizer cannot serve.
    """
    tokens = _text(workload, step) if workload.data else _synthetic(workload, step)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()  # of one row, contiguous() is a view
    if workload.min_length:
        ends = (workload.min_length, workload.sequence_length + 1)
        length = torch.randint(*ends, (len(labels), 1), generator=_generator(workload.seed + 1, step))
        labels[torch.arange(workload.sequence_length) >= length] = IGNORED
    return Batch(inputs, labels)


def _generator(seed: int, draw: int) -> torch.Generator:
    """Mixed into 32 bits: PyTorch's CPU generator drops all that is above them."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {draw}".encode()))


def _synthetic(workload: Workload, step: int) -> Tensor:
    """A learnable stream: mostly next = (5·token + 7) mod V, one token in ten drawn afresh."""
    vocab, shape = workload.model.vocab_size, (workload.batch_size, workload.sequence_length + 1)
    generator = _generator(workload.seed, step)
    tokens = torch.randint(vocab, shape, generator=generator)
    fresh = torch.rand(shape, generator=generator) < 0.1
    for position in range(1, shape[1]):
        follow = (tokens[:, position - 1] * 5 + 7) % vocab
        tokens[:, position] = torch.where(fresh[:, position], tokens[:, position], follow)
    return tokens


def _text(workload: Workload, step: int) -> Tensor:
    """Blocks of sequence_length + 1 tokens, each epoch in an own order; a rest that fills no batch is left out."""
    length = workload.sequence_length + 1
    tokens = _tokens(Path(workload.data), _tokenizer_file(workload), workload.model.vocab_size)
    batches = len(tokens) // length // workload.batch_size
    if not batches:
        needed = workload.batch_size * length
        raise ValueError(
            f"data {workload.data} has {len(tokens)} tokens; one batch takes {needed}, "
            f"batch_size {workload.batch_size} × (sequence_length {workload.sequence_length} + 1)"
        )
    epoch, index = divmod(step, batches)
    order = _order(len(tokens) // length, workload.seed, epoch)
    rows = order[index * workload.batch_size : (index + 1) * workload.batch_size]
    return tokens[: len(order) * length].view(-1, length)[rows].long()


@lru_cache(maxsize=2)
def _order(blocks: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(blocks, generator=_generator(seed, epoch))


def _tokenizer_file(workload: Workload) -> Path:
    if not (place := workload.tokenizer or workload.weights):
        raise ValueError(f"data {workload.data} needs a tokenizer: set tokenizer, or weights with a tokenizer.json")
    path = Path(place)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"data {workload.data} needs a tokenizer: there is no {path}; set tokenizer to one or to its folder"
        )
    return path


@lru_cache(maxsize=1)
def _tokens(data: Path, tokenizer_file: Path, vocab_size: int) -> Tensor:
    """All documents' tokens in one int32 row, an end-of-text token between documents if the tokenizer has one."""
    from tokenizers import Tokenizer  # only text needs it

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{tokenizer_file} is not a tokenizer.json: {error}") from error
    ends = (tokenizer.token_to_id(token) for token in END_OF_TEXT)
    end = next((token for token in ends if token is not None), None)
    rows: list[Tensor] = []
    for pieces in _pieces(data):
        encoded = tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False)
        for (_, first), encoding in zip(pieces, encoded, strict=True):
            if first and rows and end is not None:
                rows.append(torch.tensor([end], dtype=torch.int32))
            rows.append(torch.tensor(encoding.ids, dtype=torch.int32))
    tokens = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int32)
    if len(tokens) and (worst := int(tokens.max())) >= vocab_size:
        raise ValueError(
            f"{tokenizer_file} gives token {worst} ({tokenizer.id_to_token(worst)!r}) for {data}, "
            f"but model.vocab_size is {vocab_size}"
        )
    return tokens


def _pieces(data: Path) -> Iterator[list[tuple[str, bool]]]:
    """Texts to tokenise together, each with whether a document begins there; about PIECE characters a list."""
    if data.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"data {data} must be a .txt or .jsonl file")
    if not data.is_file():
        raise ValueError(f"there is no data file {data}")
    group: list[tuple[str, bool]] = []
    size = 0
    try:
        with data.open(encoding="utf-8") as file:
            for text, first in _lines(file, data) if data.suffix == ".jsonl" else _cuts(file):
                group.append((text, first))
                size += len(text)
                if size >= PIECE:
                    yield group
                    group, size = [], 0
    except UnicodeDecodeError as error:
        raise ValueError(f"data {data} is not UTF-8: {error}") from error
    yield group


def _lines(file: TextIO, data: Path) -> Iterator[tuple[str, bool]]:
    """JSON Lines: a document a line, in the field "text"."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{data}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise ValueError(f'{data}, line {number} has no field "text" that holds a string')
        yield record["text"], True


def _cuts(file: TextIO) -> Iterator[tuple[str, bool]]:
    """Plain text, one document, cut between words: there no byte-level tokenizer's token spans the cut."""
    first, rest = True, ""
    while chunk := file.read(PIECE):
        rest += chunk
        between = BETWEEN_WORDS.match(rest)
        cut = between.end() if between else rest.rfind("\n") + 1 or len(rest)
        yield rest[:cut], first
        first, rest = False, rest[cut:]
    if rest:
        yield rest, first
