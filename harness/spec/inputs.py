"""The requested work, checked before anything runs: its names, size, weights and data."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import psutil

from harness.spec.case import word
from harness.spec.chat import folder
from harness.spec.checkpoint import tensor_files
from harness.spec.conversations import conversations
from harness.spec.documents import documents
from harness.spec.files import InputError
from harness.spec.named import load
from harness.spec.text import (
    chat_template,
    check_length,
    check_vocabulary,
    end_of_text,
    open_tokenizer,
    token_rows,
    tokenizer_file,
)
from harness.spec.workload import Workload

CONVERSATIONS = 1000  # the first ones, which are checked
SAMPLE = 16  # pieces of text, a million characters: all of a small file, the start of a large one


def asked(names: Sequence[str], gpus: int, reads: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[Workload]:
    """The workloads of these names and TOML files, each once. Raises a one-line ValueError if one of them cannot run,
    or if two different ones would share a name. Only headers and the start of large files are read here; the ranks read
    the rest. ``reads``: what topics asked for make of data, "text" or "conversations", and their names; the former
    have conversations written by the tokenizer's template."""
    found: dict[str, tuple[str, Workload]] = {}
    for name in names:
        workload = load(name)
        other, first = found.setdefault(word(workload.name), (name, workload))
        if first != workload:
            raise InputError(
                f"{other} and {name} are different workloads, but their cases would have the same ids, which end in "
                f"{word(workload.name)!r}; rename one of the files"
            )
    for name, workload in found.values():
        _check_size(workload, gpus)
        if workload.weights:
            tensor_files(workload.weights, workload.model)
        if workload.data and "conversations" in reads:
            _check_conversations(workload)
        if workload.data and set(reads) != {"conversations"}:
            _check_data(workload, name)
    return [workload for _, workload in found.values()]


def _check_size(workload: Workload, gpus: int) -> None:
    need, have = workload.model.parameters * workload.element_size, psutil.virtual_memory().total
    if need > have and not gpus:
        raise InputError(
            f"workload {workload.name}: the weights alone take {need / 1e9:,.0f} GB in {workload.dtype}; "
            f"this machine has {have / 1e9:,.0f} GB of memory"
        )


def _check_data(workload: Workload, name: str) -> None:
    data, path = Path(workload.data), tokenizer_file(workload)
    tokenizer = open_tokenizer(path)
    groups = list(islice(documents(data, path), SAMPLE))
    rows = list(token_rows(tokenizer, groups))
    largest = max((max(row) for row in rows if row), default=0)
    check_vocabulary(data, path, tokenizer, largest, workload.model.vocab_size)
    if len(groups) < SAMPLE:
        check_length(workload, sum(map(len, rows)))
    if end_of_text(tokenizer) is None and sum(first for group in groups for _, first in group) > 1:
        warnings.warn(
            f"{name}: {path} has no end-of-text token, so nothing separates the documents of {data}",
            stacklevel=2,
        )


def _check_conversations(workload: Workload) -> None:
    """The tokenizer, which must have a template for messages, and the form of the conversations; the ranks count their
    tokens."""
    data, path = Path(workload.data), tokenizer_file(workload)
    open_tokenizer(path)
    folder(path)
    found = list(islice(conversations(data), CONVERSATIONS))
    if len(found) < min(workload.batch_size, CONVERSATIONS):
        raise InputError(f"data {data} has {len(found)} conversations; batch_size is {workload.batch_size}")
    if any(each.messages for each in found) and not chat_template(path.parent):
        raise InputError(f"the tokenizer in {path.parent} has no chat template, and {data} holds messages")
