"""Problems with the user's work that are found before anything runs."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from harness.spec import ModelConfig, inputs, text
from harness.spec.config import config_json
from harness.spec.documents import documents
from harness.spec.files import InputError
from harness.spec.inputs import asked

MODEL = ModelConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4)
TABLE = "[model]\nvocab_size = {}\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 727\n"


def workload(folder: Path, content: str, name: str = "mine.toml") -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ("nightly/sft.toml", "weekly/sft.toml", "sft"),
        ("my-run.toml", "my_run.toml", "my_run"),
        ("größe.toml", "grüße.toml", "gr__e"),
        ("Run.TOML", "run.toml", "run"),
    ],
)
def test_unequal_work_whose_cases_would_share_their_ids_is_refused(
    first: str, second: str, word: str, tmp_path: Path
) -> None:
    names = [workload(tmp_path, "lr = 0.1", first), workload(tmp_path, "lr = 0.2", second)]
    message = (
        f"{names[0]} and {names[1]} are different workloads, but their cases would have the same ids, which end in "
    )
    with pytest.raises(InputError) as error:
        asked(names, 0)
    assert str(error.value) == f"{message}{word!r}; rename one of the files"


def test_a_file_may_not_be_mistaken_for_a_built_in_workload_of_another_spelling(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="end in 'tiny_adamw'; rename one of the files"):
        asked(["tiny_adamw", workload(tmp_path, "", "tiny-AdamW.toml")], 0)


def test_the_same_work_asked_for_twice_is_one(tmp_path: Path) -> None:
    same = [workload(tmp_path, "lr = 0.1", name) for name in ("a/sft.toml", "b/sft.toml")]
    other = workload(tmp_path, "lr = 0.1", "other.toml")
    assert [work.name for work in asked([*same, "tiny", other, "tiny"], 0)] == ["sft", "tiny", "other"]


def test_a_model_that_no_memory_holds_is_refused_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=50 * 10**9))
    huge = workload(tmp_path, "[model]\nnum_hidden_layers = 100000")
    with pytest.raises(InputError) as error:
        asked([huge], 0)
    assert str(error.value) == ("workload mine: the weights alone take 79 GB in fp32; this machine has 50 GB of memory")
    assert len(asked([huge], gpus=1)) == 1
    assert len(asked(["tiny"], 0)) == 1


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_without_a_walk_over_the_layers(tied: bool, layers: int) -> None:
    model = ModelConfig(num_hidden_layers=layers, tie_word_embeddings=tied)
    assert model.parameters == sum(torch.Size(shape).numel() for _, shape in model.shapes())


def stored(model: ModelConfig) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in model.shapes()}


def folder_with(change: Callable[[Path, dict[str, torch.Tensor]], object], folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config_json(MODEL, "bfloat16"))
    tensors = stored(MODEL)
    change(folder, tensors)
    if tensors:
        save_file(tensors, folder / "model.safetensors")
    return folder


def only(name: str, content: bytes) -> Callable[[Path, dict[str, torch.Tensor]], None]:
    def change(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        (folder / name).write_bytes(content)
        tensors.clear()

    return change


NORM = "model.norm.weight"
WEIGHTS: dict[str, tuple[Callable[[Path, dict[str, torch.Tensor]], object], str]] = {
    "pointer": (only("model.safetensors", LFS), "model.safetensors is a Git LFS pointer, not the file itself"),
    "pointer_index": (only("model.safetensors.index.json", LFS), "index.json is a Git LFS pointer"),
    "cut": (only("model.safetensors", b"\x20" * 20), "model.safetensors is not a safetensors file, or was cut short"),
    "none": (lambda _, tensors: tensors.clear(), "has neither model.safetensors nor model.safetensors.index.json: "),
    "one_numbered": (only("model-00001-of-00001.safetensors", b""), "index.json but model-00001-of-00001.safetensors"),
    "shape": (lambda _, tensors: tensors.update({NORM: torch.ones(3)}), f"{NORM} has shape [3], expected [16]"),
    "float8": (
        lambda _, tensors: tensors.update({NORM: torch.ones(16).to(torch.float8_e4m3fn)}),
        f"{NORM} is stored as F8_E4M3; only F64, F32, F16, BF16 are read",
    ),
    "integers": (
        lambda _, tensors: tensors.update({NORM: torch.ones(16, dtype=torch.int8)}),
        f"{NORM} is stored as I8; only",
    ),
    "spare": (
        lambda _, tensors: tensors.update({"score.weight": torch.ones(1)}),
        "that this model does not have: score",
    ),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_weights_that_cannot_be_the_models_are_refused_by_their_headers(fault: str, tmp_path: Path) -> None:
    change, message = WEIGHTS[fault]
    folder_with(change, tmp_path / "weights")
    with pytest.raises(InputError) as error:
        asked([workload(tmp_path, 'weights = "weights"')], 0)
    assert message in str(error.value)
    assert str(tmp_path / "weights") in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_the_models_pass(tmp_path: Path) -> None:
    folder_with(lambda *_: None, tmp_path / "weights")
    (found,) = asked([workload(tmp_path, 'weights = "weights"')], 0)
    assert found.model == MODEL


def letters(folder: Path, end: str = "<|endoftext|>") -> None:
    """A tokenizer of words: one token per letter from a to j, and the end of the text."""
    words = {letter: number for number, letter in enumerate("?abcdefghij")} | {end: 11}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([end])
    tokenizer.save(str(folder / "tokenizer.json"))


def corpus(folder: Path, *documents: str) -> None:
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))


DATA = 'data = "text.jsonl"\ntokenizer = "tokenizer.json"\nbatch_size = 2\nsequence_length = 4\n'
ENOUGH = ("a b c d e", "a b c d e f")


def test_data_that_serve_pass(tmp_path: Path) -> None:
    letters(tmp_path)
    corpus(tmp_path, *ENOUGH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(asked([workload(tmp_path, DATA + TABLE.format(12))], 0)) == 1


@pytest.mark.parametrize(
    ("documents", "fields", "message"),
    [
        (ENOUGH, DATA.replace('tokenizer = "tokenizer.json"\n', ""), "needs a tokenizer: set tokenizer, or weights"),
        (ENOUGH, DATA.replace("tokenizer.json", "."), ""),
        (ENOUGH, DATA.replace("tokenizer.json", "empty"), "needs a tokenizer: there is no "),
        (ENOUGH, DATA.replace("tokenizer.json", "pointer.json"), "pointer.json is a Git LFS pointer"),
        (ENOUGH, DATA.replace("tokenizer.json", "text.jsonl"), "text.jsonl is not a tokenizer.json: "),
        ((), DATA, "has 0 tokens; one batch takes 10, batch_size 2 × (sequence_length 4 + 1)"),
        (("a", "b"), DATA, "has 3 tokens; one batch takes 10"),
        ((*ENOUGH, "j"), DATA.replace("batch_size = 2", "batch_size = 3"), "has 14 tokens; one batch takes 15"),
        (ENOUGH, DATA + TABLE.format(11), "gives token 11 ('<|endoftext|>') for "),
    ],
)
def test_each_fault_of_the_data_is_found_before_anything_runs(
    documents: tuple[str, ...], fields: str, message: str, tmp_path: Path
) -> None:
    letters(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pointer.json").write_bytes(LFS)
    corpus(tmp_path, *documents)
    name = workload(tmp_path, fields if "[model]" in fields else fields + TABLE.format(12))
    if not message:
        assert asked([name], 0)
        return
    with pytest.raises(InputError) as error:
        asked([name], 0)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("documents", "said"), [(ENOUGH, True), (("a b c d e f g h i j",), False)])
def test_documents_without_a_separator_are_reported(documents: tuple[str, ...], said: bool, tmp_path: Path) -> None:
    letters(tmp_path, end="<|im_end|>")
    corpus(tmp_path, *documents)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asked([workload(tmp_path, DATA + TABLE.format(12))], 0)
    messages = [str(warning.message) for warning in told]
    expected = f"{tmp_path / 'tokenizer.json'} has no end-of-text token, so nothing separates the documents of "
    assert [expected in message for message in messages] == [True] * said


def test_only_the_start_of_a_large_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 1)
    monkeypatch.setattr(inputs, "SAMPLE", 2)
    letters(tmp_path)
    corpus(tmp_path, "a", "b", "c")
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write("no JSON")
    name = workload(tmp_path, DATA + TABLE.format(12))
    assert asked([name], 0)
    monkeypatch.setattr(inputs, "SAMPLE", 4)
    with pytest.raises(InputError, match="line 4 is not JSON"):
        asked([name], 0)


TALKS = 'data = "talk.jsonl"\ntokenizer = "."\nbatch_size = 2\nsequence_length = 4\n' + TABLE.format(12)
CONVERSATIONAL = {"conversations": ["sft"]}
BOTH = {"text": ["lora"], **CONVERSATIONAL}
END = '{"eos_token": "<|endoftext|>"}'
TEMPLATED = END.replace("}", ', "chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}')


def talks(folder: Path, count: int, settings: str = '{"chat_template": "{{ messages }}"}') -> None:
    letters(folder)
    (folder / "tokenizer_config.json").write_text(settings)
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "talk.jsonl").write_text((json.dumps(talk) + "\n") * count)


def test_conversations_that_serve_pass_for_topics_that_read_them(tmp_path: Path) -> None:
    talks(tmp_path, 2)
    assert asked([workload(tmp_path, TALKS)], 0, CONVERSATIONAL)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert asked([workload(tmp_path, TALKS)], 0, CONVERSATIONAL)


def test_conversations_serve_topics_that_read_text_as_the_template_writes_them(tmp_path: Path) -> None:
    talks(tmp_path, 4, TEMPLATED)
    tokenizer = tmp_path / "tokenizer.json"
    assert asked([workload(tmp_path, TALKS)], 0, BOTH)
    assert list(documents(tmp_path / "talk.jsonl", tokenizer)) == [[("a b ", True)] * 4]
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b"}) + "\n")
    assert list(documents(tmp_path / "pairs.jsonl", tokenizer)) == [[("a b<|endoftext|>", True)]]
    # A field "text" is text, whatever is beside it.
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "c", "prompt": "a", "completion": "b"}) + "\n")
    assert list(documents(tmp_path / "text.jsonl", tokenizer)) == [[("c", True)]]


def test_text_alone_is_refused_where_a_topic_needs_conversations(tmp_path: Path) -> None:
    talks(tmp_path, 4, TEMPLATED)
    (tmp_path / "talk.jsonl").write_text('{"text": "a b c d e f g h i j a b"}\n' * 4)
    assert asked([workload(tmp_path, TALKS)], 0, {"text": ["lora"]})
    with pytest.raises(InputError, match="line 1 is no conversation, which has messages"):
        asked([workload(tmp_path, TALKS)], 0, BOTH)


@pytest.mark.parametrize(
    ("count", "settings", "reads", "message"),
    [
        (1, '{"chat_template": "a"}', CONVERSATIONAL, "has 1 conversations; batch_size is 2"),
        (2, "{}", CONVERSATIONAL, "has no chat template, and "),
        (2, "{", CONVERSATIONAL, "tokenizer_config.json is not JSON: "),
        (2, "{}", {}, "names no eos_token"),
        (2, END, {}, "has no chat template"),
        (2, TEMPLATED, BOTH, "has 5 tokens; one batch takes 10"),
        (2, TEMPLATED.replace("eos_token", "bos_token"), BOTH, "names no eos_token"),
    ],
)
def test_each_fault_of_conversations_is_found_before_anything_runs(
    count: int, settings: str, reads: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    talks(tmp_path, count, settings)
    with pytest.raises(InputError) as error:
        asked([workload(tmp_path, TALKS)], 0, reads)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_conversations_need_the_folder_of_a_tokenizer(tmp_path: Path) -> None:
    talks(tmp_path, 2)
    (tmp_path / "tokenizer.json").rename(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"other\.json must be called tokenizer\.json: conversations need the folder"):
        asked([workload(tmp_path, TALKS.replace('"."', '"other.json"'))], 0, CONVERSATIONAL)
