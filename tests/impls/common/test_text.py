"""Text data: whole blocks, every token of an epoch once, the same for the same seed."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from harness.spec import ModelConfig, Workload, text
from harness.spec.files import InputError
from impls.common import data
from impls.common.data import batch

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog,", "while", "42", "birds", "sing!")
# Qwen's rules for dividing text into words.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def prose(words: int) -> str:
    draw = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(0)).tolist()
    return "".join(WORDS[i] + ("\n\n  " if n % 17 == 16 else " ") for n, i in enumerate(draw))


def train(folder: Path, special: tuple[str, ...] = ("<|endoftext|>",)) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([prose(500)], trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.fixture
def workload(tmp_path: Path) -> Workload:
    train(tmp_path)
    (tmp_path / "text.txt").write_text(prose(400), encoding="utf-8")
    return Workload(
        model=ModelConfig(vocab_size=300),
        batch_size=4,
        sequence_length=9,
        data=str(tmp_path / "text.txt"),
        tokenizer=str(tmp_path),
    )


def ids(workload: Workload, *documents: str) -> list[int]:
    """The tokenizer's own output, with an end-of-text token between documents."""
    tokenizer = Tokenizer.from_file(str(Path(workload.tokenizer) / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    joined: list[int] = []
    for document in documents:
        joined += ([end] if joined and end is not None else []) + tokenizer.encode(document).ids
    return joined


def rows(workload: Workload, epoch: int = 0) -> list[list[int]]:
    """All sequences of an epoch, labels included."""
    batches = len(data._tokens(*key(workload))) // (workload.sequence_length + 1) // workload.batch_size
    drawn = [batch(workload, epoch * batches + step) for step in range(batches)]
    return [[*inputs.tolist(), int(labels[-1])] for b in drawn for inputs, labels in zip(*b, strict=True)]


def key(workload: Workload) -> tuple[Path, Path, int]:
    return Path(workload.data), text.tokenizer_file(workload), workload.model.vocab_size


def blocks(tokens: list[int], length: int) -> list[list[int]]:
    return [tokens[at : at + length] for at in range(0, len(tokens) - length + 1, length)]


def test_labels_follow_inputs(workload: Workload) -> None:
    inputs, labels = batch(workload, 3)
    assert inputs.shape == labels.shape == (4, 9)
    assert inputs.dtype == labels.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], labels[:, :-1])


@pytest.mark.parametrize("piece", [7, 100, text.PIECE])
def test_an_epoch_is_each_block_of_the_text_once(
    workload: Workload, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PIECE", piece)
    data._tokens.cache_clear()
    expected = blocks(ids(workload, prose(400)), 10)
    drawn = rows(workload)
    assert len(expected) - len(drawn) < workload.batch_size
    assert len({tuple(row) for row in drawn}) == len(drawn)
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in expected}
    assert data._tokens(*key(workload)).tolist() == ids(workload, prose(400))


def test_the_order_follows_seed_and_epoch_and_nothing_else(workload: Workload) -> None:
    first = rows(workload)
    data._tokens.cache_clear()
    data._order.cache_clear()
    assert rows(workload) == first
    assert rows(workload, epoch=1) != first
    assert rows(workload.with_(seed=1)) != first
    assert first != sorted(first, key=blocks(ids(workload, prose(400)), 10).index)


@pytest.mark.parametrize("special", [("<|endoftext|>",), ("</s>",), ()])
def test_documents_of_a_jsonl_file_are_joined_by_the_end_of_text(
    workload: Workload, special: tuple[str, ...], tmp_path: Path
) -> None:
    tokenizer = train(tmp_path / "other", special)
    documents = [prose(30), "one\nmore über \u2028 line", prose(50)]
    file = tmp_path / "text.jsonl"
    file.write_text("\n\n".join(json.dumps({"id": 1, "text": each}) for each in documents) + "\n", encoding="utf-8")
    end = [tokenizer.token_to_id(special[0])] if special else []
    expected = [token for each in documents for token in [*tokenizer.encode(each).ids, *end]]
    found = data._tokens(*key(workload.with_(data=str(file), tokenizer=str(tmp_path / "other")))).tolist()
    assert found == (expected[:-1] if end else expected)


def test_the_tokenizer_may_be_a_file_or_lie_beside_the_weights(workload: Workload) -> None:
    folder, expected = workload.tokenizer, batch(workload, 0)
    for place in ({"tokenizer": folder + "/tokenizer.json"}, {"tokenizer": "", "weights": folder}):
        assert torch.equal(batch(workload.with_(**place), 0).inputs, expected.inputs)


def test_a_file_is_tokenised_once(workload: Workload) -> None:
    data._tokens.cache_clear()
    for step in range(5):
        batch(workload, step)
    assert data._tokens.cache_info().misses == 1


SAVED = {  # settings for inference that a tokenizer.json keeps
    "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    },
}


@pytest.mark.parametrize("saved", [("truncation",), ("padding",), ("truncation", "padding")], ids="-".join)
def test_saved_truncation_and_padding_change_no_token(workload: Workload, saved: tuple[str, ...]) -> None:
    expected = ids(workload, prose(400))
    file = Path(workload.tokenizer, "tokenizer.json")
    changed = json.loads(file.read_text()) | {name: SAVED[name] for name in saved}
    file.write_text(json.dumps(changed))
    assert len(Tokenizer.from_file(str(file)).encode("a lazy dog, a quick brown fox").ids) in (8, 64)
    data._tokens.cache_clear()
    assert data._tokens(*key(workload)).tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "absent.txt"}, r"there is no file absent\.txt"),
        ({"tokenizer": ""}, r"needs a tokenizer: set tokenizer, or weights with a tokenizer\.json"),
        ({"tokenizer": "absent"}, r"needs a tokenizer: there is no absent; set tokenizer"),
        ({"model": ModelConfig(vocab_size=100)}, r"gives token 2\d\d \('.*'\) for .*, but model\.vocab_size is 100"),
        ({"batch_size": 1000}, r"has \d+ tokens; one batch takes 10000, batch_size 1000 × \(sequence_length 9 \+ 1\)"),
    ],
)
def test_each_fault_is_named(workload: Workload, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        batch(workload.with_(**change), 0)


def test_a_broken_tokenizer_is_named(workload: Workload) -> None:
    Path(workload.tokenizer, "tokenizer.json").write_text("{}")
    data._tokens.cache_clear()
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        batch(workload, 0)


def test_the_synthetic_stream_follows_seed_and_step() -> None:
    drawn = {tuple(batch(Workload(seed=seed), step).inputs.flatten().tolist()) for seed in (0, 1) for step in (0, 1)}
    assert len(drawn) == 4
    assert torch.equal(batch(Workload(), 1).inputs, batch(Workload(), 1).inputs)


def test_sequences_that_end_early_have_no_labels_behind_their_end() -> None:
    one = Workload(batch_size=1, min_length=1)
    assert (batch(one, 0).labels < 0).any()
    assert (batch(one, 0).inputs >= 0).all()
    work = Workload(batch_size=64, min_length=5)
    found, whole = batch(work, 3), batch(work.with_(min_length=0), 3)
    lengths = (found.labels >= 0).sum(1)
    assert int(lengths.min()) >= 5
    assert lengths.unique().numel() > 10
    counted = torch.arange(work.sequence_length) < lengths[:, None]
    assert torch.equal(found.labels >= 0, counted)  # a contiguous run from the start
    assert torch.equal(found.labels[counted], whole.labels[counted])
    assert torch.equal(found.inputs, whole.inputs)
    assert not torch.equal(lengths, (batch(work, 4).labels >= 0).sum(1))


def test_labels_that_do_not_count_leave_the_inputs_of_a_single_sequence_alone() -> None:
    found = batch(Workload(batch_size=1, sequence_length=8, min_length=1), 2)
    assert (found.labels < 0).any()
    assert (found.inputs >= 0).all()
