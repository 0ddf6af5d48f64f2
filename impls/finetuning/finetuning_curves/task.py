"""The work: a decoder that has learnt two operations on strings of digits learns a third one, from its name alone.

    user    <operation> 3 1 4 1          assistant    6 8 5 8

The base model is trained for a moment to repeat a string and to write each digit's successor. It is the same for all
engines. The third operation has a token that the model has never seen. It is a new skill, each digit's complement to 9,
or, for methods with too few parameters to teach one, a known skill by a new name. Strings whose digits add up to a
multiple of five are held out: no training sees one.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from harness.spec import Batch, Workload
from harness.spec.files import InputError
from impls.common.data import IGNORED
from impls.common.decoder import Decoder
from impls.common.experts import without_experts
from impls.common.hf import write_folder
from impls.finetuning.sft.data import WORDS, Example
from impls.finetuning.sft.template import render

REPEAT, SUCCESSOR, NEW = range(WORDS, WORDS + 3)  # the tokens of operations
ZERO = NEW + 1
DIGITS = 10
HOLDS_OUT = 5
LENGTH = 5  # of a string
VOCABULARY = ZERO + DIGITS
TOKENS = 2 * LENGTH + 6  # of a conversation: <bos> <user> operation … <end> <assistant> … <end>

PRETRAINING = 70  # steps, of
STRINGS = 32  # strings each, with
RATE = 1e-2
TESTS = 128  # strings held out
WARM_UP = 4  # steps in which the learning rate rises
EVERY = 4  # steps from one score to the next

Rule = Callable[[Tensor], Tensor]


def repeat(x: Tensor) -> Tensor:
    return x


def successor(x: Tensor) -> Tensor:
    return (x + 1) % DIGITS


def complement(x: Tensor) -> Tensor:
    return DIGITS - 1 - x


RULES: dict[str, Rule] = {"successor": successor, "complement": complement}  # of the third operation


def strings(count: int, held_out: bool, generator: torch.Generator) -> Tensor:
    """Digits [count, LENGTH]; the last one is moved on until the string is held out, or is not."""
    x = torch.randint(DIGITS, (count, LENGTH), generator=generator)
    rest = x.sum(1) % HOLDS_OUT
    x[:, -1] = (x[:, -1] - rest if held_out else x[:, -1] + (rest == 0)) % DIGITS
    return x


def examples(operation: int, rule: Rule, x: Tensor) -> list[Example]:
    """One conversation for each string."""
    pairs = zip((ZERO + x).tolist(), (ZERO + rule(x)).tolist(), strict=True)
    return [Example([("user", [operation, *question]), ("assistant", answer)]) for question, answer in pairs]


def batches(workload: Workload, budget: int, rule: str) -> Iterator[list[Example]]:
    """The conversations of each step: the same for every engine, others for every seed."""
    generator = torch.Generator().manual_seed(workload.seed)
    for _ in range(budget // workload.batch_size):
        yield examples(NEW, RULES[rule], strings(workload.batch_size, False, generator))


def held_out(rule: str) -> list[Example]:
    """The conversations of the score, the same for all seeds."""
    return examples(NEW, RULES[rule], strings(TESTS, True, torch.Generator().manual_seed(0)))


def batch(conversations: Sequence[Example]) -> Batch:
    """Tokens and the token that follows each, [b, s]; only those of answers, with their ends, have a label."""
    rows = [render(each, every=False) for each in conversations]
    tokens, labels = (torch.tensor([row[kind] for row in rows]) for kind in range(2))
    return Batch(tokens[:, :-1], labels[:, 1:])


def rows(workload: Workload, budget: int, rule: str) -> list[dict[str, list[int]]]:
    """All conversations in the order of the steps, as Transformers reads them: it shifts labels itself."""
    texts = [render(each, every=False) for batch in batches(workload, budget, rule) for each in batch]
    return [{"input_ids": text.tokens, "labels": text.labels} for text in texts]


def exact_matches(logits: Tensor, labels: Tensor) -> float:
    """The share of conversations with a right answer: logits [b, s, V], labels [b, s].

    Each place is given the right answer before it. A model that writes on its own reads the same up to its first wrong
    token, so that its answer is right if and only if all places are.
    """
    right = (logits.argmax(-1).cpu() == labels) | (labels == IGNORED)
    return float(right.all(dim=1).float().mean())


@lru_cache(maxsize=1)
def base(workload: Workload) -> dict[str, Tensor]:
    """The weights after pretraining, float32. On the CPU in one thread, whatever the engines run on: they start from
    the same bits."""
    generator, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.device("cpu"):
        model = Decoder(workload.model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    for _ in range(PRETRAINING):
        repeated, counted = strings(STRINGS, False, generator).chunk(2)
        both = examples(REPEAT, repeat, repeated) + examples(SUCCESSOR, successor, counted)
        loss = model(*batch(both))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@contextmanager
def pretrained(workload: Workload, seed: int, lr: float) -> Iterator[Workload]:
    """The workload of one run, whose model is in a Hugging Face folder while the context is open."""
    without_experts(workload, "conversations are trained here with")
    if workload.weights or workload.data:
        raise InputError("this topic trains its own base and draws its conversations; weights and data must be empty")
    if workload.model.vocab_size < VOCABULARY or workload.sequence_length < TOKENS:
        raise InputError(f"a conversation needs {TOKENS} tokens and a vocabulary of at least {VOCABULARY}")
    with tempfile.TemporaryDirectory() as folder:
        weights = base(workload.with_(seed=0, dtype="fp32", micro_batches=1))
        write_folder(folder, workload.model, weights.items(), torch.float32)
        yield workload.with_(weights=folder, seed=seed, lr=lr)
