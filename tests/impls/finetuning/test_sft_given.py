"""Conversations of a file, with a small byte-level tokenizer: which tokens are learnt, and that engines which tokenise
by themselves learn the same."""

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from harness.spec.chat import chat as opened
from harness.spec.files import InputError
from impls.finetuning.sft import CARD
from impls.finetuning.sft.data import batch
from impls.finetuning.sft.given import Stream, render
from impls.finetuning.sft.plain import learnt
from impls.finetuning.sft.spelt import spelt
from impls.finetuning.sft.template import render as labelled
from impls.finetuning.sft.template import truncate

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURN = "<|im_start|>{{ m.role }}\n"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "chatml": "{% for m in messages %}" + TURN + "{{ m.content }}<|im_end|>\n{% endfor %}" + ASKS,
    # The end of a turn is learnt, the line after it is not.
    "marked": "{% for m in messages %}" + TURN + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}" + ASKS,
    # The prompt of an answer is not asked for, so that the name of its role is learnt too.
    "unasked": "{% for m in messages %}" + TURN + "{{ m.content }}<|im_end|>\n{% endfor %}",
    # Earlier answers are shortened, as Qwen3 does with their thoughts.
    "shortened": "{% for m in messages %}" + TURN + "{% if m.role == 'assistant' and not loop.last %}…{% else %}"
    "{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + ASKS,
    "refusing": "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
}
TALK = [("user", "ab"), ("assistant", "c"), ("user", "😀"), ("assistant", "")]


def folder(path: Path, template: str = "chatml", **fields: Any) -> Path:
    """A byte-level tokenizer with merges, and its template."""
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings: dict[str, Any] = {"special_tokens": SPECIAL, "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=290, **settings)
    whole.train_from_iterator(["the answer of the other one, hello"] * 9, trainer)
    names = {"eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "chat_template": TEMPLATES.get(template), **fields}
    PreTrainedTokenizerFast(tokenizer_object=whole, **names).save_pretrained(str(path))
    return path


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def lines(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def talks(number: int) -> list[dict[str, Any]]:
    """Of unequal lengths, some with a system message and some with an empty answer."""
    chance = random.Random(0)

    def text(most: int) -> str:
        words = ("the", "answer", "größe", "你好", "😀👩‍👩‍👧", "hello", " ", "\n")
        return " ".join(chance.choice(words) for _ in range(chance.randrange(most)))

    found = []
    for place in range(number):
        turns = [("system", text(4))] if place % 3 == 0 else []
        for _ in range(chance.randint(1, 2)):
            turns += [("user", text(5)), ("assistant", text(5) if place % 4 else "")]
        found.append(talk(*turns))
    return found


def pairs(number: int) -> list[dict[str, Any]]:
    whole = [each["messages"] for each in talks(number)]
    return [{"prompt": each[-2]["content"], "completion": each[-1]["content"]} for each in whole]


def work(path: Path, rows: Sequence[object], template: str = "chatml", **changes: Any) -> Workload:
    model = ModelConfig(320, 24, 40, 2, 4, 2, 6)
    data, place = lines(path / "talks.jsonl", rows), str(folder(path, template))
    settings = {"batch_size": 4, "micro_batches": 2, "sequence_length": 100, "steps": 2, "lr": 0.05} | changes
    return Workload("given", model, data=data, tokenizer=place, **settings)


def first(workload: Workload, every: bool) -> tuple[str, str]:
    """The first conversation of the file as a text, and its learnt tokens as one."""
    chat = opened(workload)
    (conversation,) = Stream(workload, lambda _: True).every
    tokens, own = render(chat, conversation, every)
    text = partial(chat.tokenizer.decode, skip_special_tokens=False)
    assert spelt(chat, conversation, every) == list(zip(tokens, own, strict=True))
    return text(tokens), text([token for token, learns in zip(tokens, own, strict=True) if learns])


USER, ANSWER = "<|im_start|>user\n", "<|im_start|>assistant\n"
WHOLE = f"{USER}ab<|im_end|>\n{ANSWER}c<|im_end|>\n{USER}😀<|im_end|>\n{ANSWER}<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "every", "expected"),
    [
        ("chatml", False, "<|im_end|>\n"),
        ("chatml", True, "c<|im_end|>\n<|im_end|>\n"),
        ("marked", False, "<|im_end|>\n"),
        ("marked", True, "c<|im_end|><|im_end|>"),
        ("unasked", False, f"{ANSWER}<|im_end|>\n"),
        ("unasked", True, f"{ANSWER}c<|im_end|>\n{ANSWER}<|im_end|>\n"),
    ],
)
def test_what_is_learnt_is_what_the_template_writes_after_its_prompt(
    template: str, every: bool, expected: str, tmp_path: Path
) -> None:
    assert first(work(tmp_path, [talk(*TALK)], template), every) == (WHOLE, expected)


@pytest.mark.parametrize(("answer", "learns"), [("lo", "lo"), ("", ""), ("x<|im_end|>", "x")])
def test_a_completion_is_joined_to_its_prompt_and_a_token_across_the_border_is_learnt(
    answer: str, learns: str, tmp_path: Path
) -> None:
    whole, found = first(work(tmp_path, [{"prompt": "a hel", "completion": answer}], ""), False)
    assert whole == f"a hel{answer.removesuffix(SPECIAL[2])}<|im_end|>"
    assert found.endswith(f"{learns}<|im_end|>")
    assert (found == " hello<|im_end|>") == (answer == "lo")  # one token


@pytest.mark.parametrize("rows", [talks(9), pairs(9)], ids=["messages", "texts"])
@pytest.mark.parametrize("template", ["chatml", "marked"])
@pytest.mark.parametrize("keep", ["", "start", "end"])
def test_the_dense_model_and_the_reference_learn_the_same_places(
    rows: list[dict[str, Any]], template: str, keep: str, tmp_path: Path
) -> None:
    for every in (False, True):
        given = work(tmp_path, rows, template, sequence_length=80 if keep else 110)
        for example in batch(given, 1, keep=keep, every=every):
            text = truncate(labelled(example, every), given.sequence_length, keep)
            places = [place for place, label in enumerate(text.labels) if label >= 0]
            assert places
            assert (text.tokens, places) == learnt(example, every, given.sequence_length, keep)


def test_saved_truncation_and_padding_change_nothing(tmp_path: Path) -> None:
    given = work(tmp_path, talks(9))
    before = [labelled(example, False) for example in batch(given, 0)]
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {"strategy": {"Fixed": 200}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    saved["padding"] |= {"pad_type_id": 0, "pad_token": SPECIAL[0]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    again = batch(given.with_(name="again"), 0)
    assert [labelled(example, False) for example in again] == before
    assert [learnt(example, False, 100, "")[0] for example in again] == [text.tokens for text in before]


def test_each_epoch_has_every_conversation_once_in_another_order(tmp_path: Path) -> None:
    given = work(tmp_path, talks(8), sequence_length=400)
    epochs = [[e.given.place for step in (2 * n, 2 * n + 1) for e in batch(given, step) if e.given] for n in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 8
    assert epochs[0] != epochs[1]


def test_conversations_beyond_the_context_are_left_out_or_cut(tmp_path: Path) -> None:
    long, short = talk(("user", "a" * 99), ("assistant", "b")), talk(("user", "a"), ("assistant", "b" * 99))
    rows = [long, short, *([talk(("user", "a"), ("assistant", "b"))] * 4)]
    given = work(tmp_path, rows, sequence_length=60)

    def places(keep: str, steps: int) -> set[str]:
        examples = [example for step in range(steps) for example in batch(given, step, keep=keep)]
        return {example.given.place.rpartition(" ")[2] for example in examples if example.given}

    assert places("", 3) == {"3", "4", "5", "6"}
    assert places("start", 5) == {"2", "3", "4", "5", "6"}  # the answer of the first line is beyond the context
    assert places("end", 5) == {"1", "2", "3", "4", "5", "6"}


REFUSED: dict[str, tuple[dict[str, Any], list[Any], str, str]] = {
    "short": ({"sequence_length": 12}, talks(9), "chatml", "have an answer within sequence_length 12; batch_size is 4"),
    "untemplated": ({}, talks(9), "", "has no chat template"),
    "refusing": ({}, talks(9), "refusing", "7: the tokenizer's template refuses it: no system role"),
    "shortened": ({}, [talk(*TALK)] * 4, "shortened", "the template writes message 2 otherwise when others follow"),
    "vocabulary": ({"model": ModelConfig(200, 24, 40, 2, 4, 2, 6)}, talks(9), "chatml", "but model.vocab_size is 200"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_learnt_is_one_line(fault: str, tmp_path: Path) -> None:
    changes, rows, template, message = REFUSED[fault]
    given = work(tmp_path, rows, template).with_(**changes)
    with pytest.raises(InputError) as error:
        batch(given, 0, every=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_an_end_or_with_padding_beyond_the_model_is_one_line(tmp_path: Path) -> None:
    given = work(tmp_path, talks(4))
    folder(tmp_path, pad_token="a")
    with pytest.raises(InputError, match=r"pads with token \d+, but model.vocab_size is 5"):
        opened(given.with_(model=ModelConfig(5, 24, 40, 2, 4, 2, 6)))
    folder(tmp_path, eos_token=None)
    with pytest.raises(InputError, match="names no eos_token"):
        opened(given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "variant", "rows"),
    [
        ("trl", "sft_assistant_only", talks(9)),
        ("trl", "sft_padding_free", pairs(9)),
        ("transformers", "sft_truncated_left", talks(9)),
    ],
)
def test_engines_that_tokenise_by_themselves_learn_the_same(
    engine: str, variant: str, rows: list[dict[str, Any]], tmp_path: Path, lab: Lab
) -> None:
    given = work(tmp_path, rows, "marked", sequence_length=80 if "truncated" in variant else 110, steps=1)
    case = Case(CARD.name, variant, engine, Topology(), given)
    assert {f.quantity: f.detail for f in lab.measure("parity", case) if f.verdict != "pass"} == {}
