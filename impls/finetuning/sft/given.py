"""Conversations of the user's file, as the tokenizer's own template writes them.

Conversations that are longer than the context are left out where nothing is truncated, and those of which no learnt
token is left where something is. The rest is shuffled anew in each epoch.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from harness.spec import Workload
from harness.spec.conversations import Conversation, Message, conversations
from harness.spec.files import InputError, one_line
from harness.spec.text import tokenizer_file

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def tokenizer(workload: Workload) -> Any:
    """Transformers' tokenizer of the folder that the workload names."""
    folder = tokenizer_file(workload).parent
    try:
        from transformers import AutoTokenizer  # drawn conversations need none
    except ImportError as error:
        raise InputError("conversations from a file need Transformers: pip install 'plumbline[tuning]'") from error
    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} holds no tokenizer: {one_line(error)}") from error
    found.backend_tokenizer.no_truncation()  # what the file says serves inference
    found.backend_tokenizer.no_padding()
    if found.eos_token is None:
        raise InputError(f"the tokenizer in {folder} names no eos_token")
    if found.pad_token is None:
        found.pad_token = found.eos_token
    if found.pad_token_id >= workload.model.vocab_size:
        raise InputError(
            f"the tokenizer in {folder} pads with token {found.pad_token_id}, but model.vocab_size is "
            f"{workload.model.vocab_size}"
        )
    return found


def template(chat: Any, conversation: Conversation) -> str:
    try:
        return str(chat.get_chat_template())
    except ValueError as error:
        raise InputError(f"the tokenizer has no chat template, and {conversation.place} holds messages") from error


def marks_answers(text: str) -> bool:
    """Whether a template tells the answers from the rest."""
    return MARK.search(text) is not None


def tokens(chat: Any, conversation: Conversation, messages: Sequence[Message], **options: Any) -> Any:
    """What apply_chat_template returns. Raises InputError if the template does not accept the messages."""
    import jinja2

    template(chat, conversation)
    try:
        return chat.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
    except jinja2.TemplateError as error:
        raise InputError(f"{conversation.place}: the tokenizer's template refuses it: {one_line(error)}") from error


def common(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """The length of the common start: a token may join the prompt's last character with the answer's first."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))


def joined(chat: Any, conversation: Conversation) -> str:
    """A prompt and its completion, with the end of text."""
    end = "" if conversation.completion.endswith(chat.eos_token) else chat.eos_token
    return conversation.prompt + conversation.completion + end


def render(chat: Any, conversation: Conversation, every: bool) -> tuple[list[int], list[bool]]:
    """The tokens, and whether each is learnt.

    The last answer is all that follows the prompt. ``every``: each answer is what the template marks by
    {% generation %}; if it marks nothing, what a message adds to the conversation before it and its prompt."""
    if not conversation.messages:
        whole, prompt = (chat(text)["input_ids"] for text in (joined(chat, conversation), conversation.prompt))
        start = common(prompt, whole)
        return whole, [place >= start for place in range(len(whole))]
    messages, written = conversation.messages, partial(tokens, chat, conversation)
    if every and marks_answers(template(chat, conversation)):
        found = written(messages, return_assistant_tokens_mask=True)
        return found["input_ids"], [bool(mark) for mark in found["assistant_masks"]]
    whole = written(messages)["input_ids"]
    learnt = [False] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and (every or number == len(messages) - 1):
            start = common(written(messages[:number], add_generation_prompt=True)["input_ids"], whole)
            through = whole if number == len(messages) - 1 else written(messages[: number + 1])["input_ids"]
            if common(through, whole) < len(through):
                raise InputError(
                    f"{conversation.place}: the template writes message {number + 1} otherwise when others follow, and "
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
def stream(workload: Workload, keep: str, every: bool) -> tuple[Any, Stream]:
    """With the tokenizer."""
    chat, room = tokenizer(workload), workload.sequence_length

    def fits(conversation: Conversation) -> bool:
        found, learnt = render(chat, conversation, every)
        if max(found, default=0) >= workload.model.vocab_size:
            raise InputError(
                f"{conversation.place} has token {max(found)}, but model.vocab_size is {workload.model.vocab_size}"
            )
        kept = learnt[-room:] if keep == "end" else learnt[:room]
        return any(kept[1:]) and (bool(keep) or len(found) <= room)

    return chat, Stream(workload, fits)
