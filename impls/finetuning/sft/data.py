"""Conversations, of the user's file (given.py) or drawn as tokens: an answer repeats its question in another code, so
that there is something to learn.

A batch is a list of :class:`Example`. Every drawn batch has an empty answer, whose end alone is learnt, and
conversations of several turns. Where they are truncated, one has a question that fills the context, and one such an
answer.
"""

import random
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.spec import Workload
from harness.spec.conversations import Conversation
from harness.spec.files import InputError
from impls.finetuning.sft.given import stream

BOS, END, USER, ASSISTANT = range(4)
PAD = END  # as in most models that have no padding token of their own
WORDS = 4  # the first token that is a word
ROUNDS = 3  # at most, of a question and an answer
FEWEST = 7  # tokens of the shortest conversation: BOS, and two turns of a role, a word and the end

Turn = tuple[str, list[int]]  # "user" or "assistant", and its words


class Example(NamedTuple):
    """``turns``, drawn, or ``given`` from a file, with its tokenizer ``chat``.
    ``noise``: uniform in ±1, [sequence_length, hidden_size], if any is added to embeddings."""

    turns: list[Turn]
    noise: Tensor | None = None
    given: Conversation | None = None
    chat: Any = None


def batch(
    workload: Workload, step: int, keep: str = "", noise: float = 0.0, every: bool = False, **options: Any
) -> list[Example]:
    """The global batch of one step. Without ``keep`` every conversation fits into the context."""
    if workload.data:
        chat, found = stream(workload, keep, every)
        examples = [Example([], None, given, chat) for given in found.batch(step)]
    else:
        examples = [Example(turns) for turns in drawn(workload, step, keep)]
    if not noise:
        return examples
    generator = torch.Generator().manual_seed(zlib.crc32(f"{workload.seed} {step} noise".encode()))
    shape = (workload.sequence_length, workload.model.hidden_size)
    return [example._replace(noise=torch.rand(shape, generator=generator) * 2 - 1) for example in examples]


def drawn(workload: Workload, step: int, keep: str) -> list[list[Turn]]:
    length, vocab = workload.sequence_length, workload.model.vocab_size
    if length < FEWEST or vocab <= WORDS:
        raise InputError(f"a conversation needs {FEWEST} tokens and a vocabulary of more than {WORDS} words")
    chance = random.Random(zlib.crc32(f"{workload.seed} {step}".encode()))
    found = [_turns(chance, length * 3 // 2 if keep else length, vocab) for _ in range(workload.batch_size)]
    found[0][-1] = ("assistant", [])
    if keep and len(found) > 2:
        found[1] = [("user", _words(chance, length, vocab)), found[1][-1]]
        found[2] = [found[2][0], ("assistant", _words(chance, length, vocab))]
    return found


def _turns(chance: random.Random, most: int, vocab: int) -> list[Turn]:
    """A conversation of at most so many tokens."""
    rounds = chance.randint(1, max(1, min(ROUNDS, (most - 1) // 6)))
    room = max(1, ((most - 1) // rounds - 4) // 2)  # words of a turn
    found: list[Turn] = []
    for _ in range(rounds):
        question = _words(chance, chance.randint(1, room), vocab)
        answer = [WORDS + (5 * word + 7) % (vocab - WORDS) for word in question]
        found += [("user", question), ("assistant", answer[: chance.randint(1, room)])]
    return found


def _words(chance: random.Random, count: int, vocab: int) -> list[int]:
    return [chance.randrange(WORDS, vocab) for _ in range(count)]
