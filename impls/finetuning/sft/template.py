"""The chat template, the tokens of it that are learnt, and rows of conversations.

    <bos>  <user> question <end>  <assistant> answer <end>  <user> …

A model that answers is given everything up to <assistant>, and must write the answer and its <end>: these are learnt.
Without <end> it would never stop. <end> is also the padding token, so a label is hidden where a *place* is padding, not
where a token looks like it. Conversations of a file have the template of their tokenizer, see given.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from impls.common.data import IGNORED
from impls.finetuning.sft import given
from impls.finetuning.sft.data import ASSISTANT, BOS, END, PAD, USER, Example

ROLES = {"user": USER, "assistant": ASSISTANT}


class Rendered(NamedTuple):
    """A conversation: its tokens, and the label of each place, which is the token there or IGNORED."""

    tokens: list[int]
    labels: list[int]


def render(example: Example, every: bool) -> Rendered:
    """``every``: all answers are learnt, not the last one alone, for which the rest is the prompt."""
    if example.given:
        return _labelled(*given.render(example.chat, example.given, every))
    tokens, learnt = [BOS], [False]
    for place, (role, words) in enumerate(example.turns):
        answer = role == "assistant" and (every or place == len(example.turns) - 1)
        tokens += [ROLES[role], *words, END]
        learnt += [False] + [answer] * (len(words) + 1)
    return _labelled(tokens, learnt)


def _labelled(tokens: list[int], learnt: list[bool]) -> Rendered:
    return Rendered(tokens, [token if own else IGNORED for token, own in zip(tokens, learnt, strict=True)])


def truncate(rendered: Rendered, length: int, keep: str) -> Rendered:
    """The first ``length`` tokens, or the last ones if ``keep`` is "end". Nothing before the first token could predict
    it, so it has no label."""
    kept = slice(-length, None) if keep == "end" else slice(length)
    return Rendered(rendered.tokens[kept], [IGNORED, *rendered.labels[kept][1:]])


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Packs sequences into rows of at most ``room`` tokens, the longest first, each into the first row with space for
    it (Krell et al. 2021, §3.2). Returns the indices of each row's sequences."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row in rows:
            if sum(lengths[i] for i in row) + lengths[index] <= room:
                row.append(index)
                break
        else:
            rows.append([index])
    return rows


class Rows(NamedTuple):
    """A micro-batch, each [b, s]: ``positions`` count in each document, and ``document`` is −1 at padding."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    document: Tensor


def layout(texts: Sequence[Rendered], rows: Sequence[Sequence[int]]) -> Rows:
    """``rows``: the indices of each row's conversations. Shorter rows are filled up on the right."""
    parts: dict[str, list[Tensor]] = {name: [] for name in Rows._fields}
    for row in rows:
        parts["tokens"].append(torch.tensor([token for i in row for token in texts[i].tokens]))
        parts["labels"].append(torch.tensor([label for i in row for label in texts[i].labels]))
        parts["positions"].append(torch.tensor([t for i in row for t in range(len(texts[i].tokens))]))
        parts["document"].append(torch.tensor([i for i in row for _ in texts[i].tokens]))
    fill = {"tokens": PAD, "labels": IGNORED, "positions": 0, "document": -1}
    return Rows(**{name: pad_sequence(part, True, fill[name]) for name, part in parts.items()})
