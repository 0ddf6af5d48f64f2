"""Conversations of the user's file, as the tokenizer's own template writes them.

Conversations that are longer than the context are left out where nothing is truncated, and those of which no learnt
token is left where something is. The rest is shuffled anew in each epoch.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import torch

from harness.spec import Workload
from harness.spec.chat import Chat, joined, written
from harness.spec.chat import chat as chat_of
from harness.spec.conversations import Conversation, conversations
from harness.spec.files import InputError

Span = tuple[int, int]  # the first character, and the one after the last


def common(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """The length of the common start: a token may join the prompt's last character with the answer's first."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))


def render(chat: Chat, conversation: Conversation, every: bool) -> tuple[list[int], list[bool]]:
    """The tokens, and whether each is learnt.

    The last answer is all that follows the prompt. ``every``: each answer is what the template marks by
    {% generation %}; if it marks nothing, what a message adds to the conversation before it and its prompt."""
    if not conversation.messages:
        texts = (conversation.prompt, joined(conversation, chat.special["eos_token"]))
        prompt, whole = (chat.tokenizer.encode(text).ids for text in texts)  # with a start, if the tokenizer has one
        start = common(prompt, whole)
        return whole, [place >= start for place in range(len(whole))]

    def split(count: int, asks: bool = False) -> list[int]:
        return chat.tokenizer.encode(written(chat, conversation, count, asks)[0], add_special_tokens=False).ids

    last = len(conversation.messages)
    whole = split(last)
    if every and chat.marks:
        text, spans = written(chat, conversation, last)
        encoding = chat.tokenizer.encode(text, add_special_tokens=False)
        # Bytes of one character may be several tokens, all of which have its place.
        answers = {place for span in spans for place in range(*span)}
        return whole, [not answers.isdisjoint(range(*place)) for place in encoding.offsets]
    learnt = [False] * len(whole)
    for number, message in enumerate(conversation.messages, 1):
        if message["role"] == "assistant" and (every or number == last):
            start, through = common(split(number - 1, asks=True), whole), split(number)
            if common(through, whole) < len(through):
                raise InputError(
                    f"{conversation.place}: the template writes message {number} otherwise when others follow, and "
                    "has no {% generation %} that marks the answers"
                )
            learnt[start : len(through)] = [True] * (len(through) - start)
    return whole, learnt


class Stream:
    """The conversations that can be used, as they are needed. ``fits`` returns whether one can."""

    def __init__(self, workload: Workload, fits: Callable[[Conversation], bool]) -> None:
        self.workload, self.fits = workload, fits
        self.every = list(conversations(Path(workload.data)))
        self.found: list[Conversation] = []
        self.more = self.walk()

    def walk(self) -> Iterator[Conversation]:
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.workload.seed} {epoch} given".encode()))
            used = 0
            for index in torch.randperm(len(self.every), generator=generator).tolist():
                if self.fits(self.every[index]):
                    used += 1
                    yield self.every[index]
            if used < self.workload.batch_size:
                raise InputError(
                    f"{used} of the {len(self.every)} conversations in {self.workload.data} have an answer within "
                    f"sequence_length {self.workload.sequence_length}; batch_size is {self.workload.batch_size}"
                )
            epoch += 1

    def batch(self, step: int) -> list[Conversation]:
        size = self.workload.batch_size
        while len(self.found) < (step + 1) * size:
            self.found.append(next(self.more))
        return self.found[step * size : (step + 1) * size]


@lru_cache(maxsize=2)
def stream(workload: Workload, keep: str, every: bool) -> tuple[Chat, Stream]:
    """With the tokenizer."""
    chat, room = chat_of(workload), workload.sequence_length

    def fits(conversation: Conversation) -> bool:
        found, learnt = render(chat, conversation, every)
        if max(found, default=0) >= workload.model.vocab_size:
            raise InputError(
                f"{conversation.place} has token {max(found)}, but model.vocab_size is {workload.model.vocab_size}"
            )
        kept = learnt[-room:] if keep == "end" else learnt[:room]
        return any(kept[1:]) and (bool(keep) or len(found) <= room)

    return chat, Stream(workload, fits)
