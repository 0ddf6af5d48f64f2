"""The data: a deterministic synthetic stream, or text through a tokenizer."""

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.spec import Batch, Workload
from harness.spec.documents import documents
from harness.spec.text import check_length, check_vocabulary, open_tokenizer, token_rows, tokenizer_file
from harness.spec.workload import POISONED_STEP

IGNORED = -100  # an ignored label, PyTorch's default


def batch(workload: Workload, step: int, **options: Any) -> Batch:
    """The global batch of one step: [batch_size, sequence_length] inputs and the labels that follow them.

    It does not depend on the dense model's ``options``. Raises InputError if ``workload.data`` or its tokenizer cannot
    be used.
    """
    tokens = _text(workload, step) if workload.data else _synthetic(workload, step)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()  # contiguous() of one row is a view
    if workload.min_length:
        ends = (workload.min_length, workload.sequence_length + 1)
        length = torch.randint(*ends, (len(labels), 1), generator=_generator(workload.seed + 1, step))
        labels[torch.arange(workload.sequence_length) >= length] = IGNORED
    labels[: workload.unlabelled] = IGNORED
    if workload.poisoned and step + 1 == POISONED_STEP:
        inputs[-1, 0] = workload.model.vocab_size - 1
    return Batch(inputs, labels)


def _generator(seed: int, draw: int) -> torch.Generator:
    """Mixed into 32 bits: PyTorch's CPU generator drops all higher bits."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {draw}".encode()))


def _synthetic(workload: Workload, step: int) -> Tensor:
    """A learnable stream: usually next = (5·token + 7) mod V; one token in ten is random."""
    vocab, shape = workload.model.vocab_size, (workload.batch_size, workload.sequence_length + 1)
    vocab -= workload.poisoned  # the last token occurs only where batch() puts it
    generator = _generator(workload.seed, step)
    tokens = torch.randint(vocab, shape, generator=generator)
    fresh = torch.rand(shape, generator=generator) < 0.1
    for position in range(1, shape[1]):
        follow = (tokens[:, position - 1] * 5 + 7) % vocab
        tokens[:, position] = torch.where(fresh[:, position], tokens[:, position], follow)
    return tokens


def _text(workload: Workload, step: int) -> Tensor:
    """Blocks of sequence_length + 1 tokens, shuffled in each epoch; blocks that do not fill a batch are left out."""
    length = workload.sequence_length + 1
    tokens = _tokens(Path(workload.data), tokenizer_file(workload), workload.model.vocab_size)
    check_length(workload, len(tokens))
    epoch, index = divmod(step, len(tokens) // length // workload.batch_size)
    order = _order(len(tokens) // length, workload.seed, epoch)
    rows = order[index * workload.batch_size : (index + 1) * workload.batch_size]
    return tokens[: len(order) * length].view(-1, length)[rows].long()


@lru_cache(maxsize=2)
def _order(blocks: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(blocks, generator=_generator(seed, epoch))


@lru_cache(maxsize=1)
def _tokens(data: Path, tokenizer_file: Path, vocab_size: int) -> Tensor:
    """All documents' tokens in one int32 row, an end-of-text token between documents if the tokenizer has one."""
    tokenizer = open_tokenizer(tokenizer_file)
    rows = [torch.tensor(row, dtype=torch.int32) for row in token_rows(tokenizer, documents(data, tokenizer_file))]
    tokens = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int32)
    check_vocabulary(data, tokenizer_file, tokenizer, int(tokens.max()) if len(tokens) else 0, vocab_size)
    return tokens
