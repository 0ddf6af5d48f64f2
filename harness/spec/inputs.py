"""The requested work, checked before anything runs: its names, size, weights and data."""

import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import psutil

from harness.spec.case import word
from harness.spec.checkpoint import tensor_files
from harness.spec.files import InputError
from harness.spec.named import load
from harness.spec.text import (
    check_length,
    check_vocabulary,
    end_of_text,
    open_tokenizer,
    pieces,
    token_rows,
    tokenizer_file,
)
from harness.spec.workload import Workload

SAMPLE = 16  # pieces of text, a million characters: all of a small file, the start of a large one


def asked(names: Sequence[str], gpus: int) -> list[Workload]:
    """The workloads of these names and TOML files, each once. Raises a one-line ValueError if one of them cannot run,
    or if two different ones would share a name. Only headers and the start of large files are read here; the ranks read
    the rest."""
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
        if workload.data:
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
    groups = list(islice(pieces(data), SAMPLE))
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
