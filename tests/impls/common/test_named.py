"""Workloads by name and from TOML files."""

from pathlib import Path

import pytest

from harness.spec import ModelConfig, MoeConfig, Topology, Workload
from harness.spec.config import config_json
from harness.spec.named import NAMED, load
from tests.impls.common.peer import TIED_GQA


def meant_for(name: str) -> set[str]:
    every = {"dp1", "tp2", "tp4", "dp2", "dp2tp2"}
    if name in ("stochastic_depth", "applied_twice"):
        return {"dp1", "dp2"}
    if name == "deepseek_v3_experts":  # of grouped products
        return {"dp1"}
    if name in ("long", "sharp"):  # a function's: they have two key heads
        every -= {"tp4"}
    if name == "sharp" or name.startswith("pipelined"):  # one sequence a micro-batch
        every -= {"dp2", "dp2tp2"}
    return every


@pytest.mark.parametrize("name", NAMED)
def test_each_name_loads_its_workload_and_is_legal_where_it_is_meant_to_run(name: str) -> None:
    workload = load(name)
    assert workload is NAMED[name]
    assert workload.name == name
    reasons = {text: workload.check(Topology.parse(text)) for text in meant_for(name)}
    assert not any(reasons.values()), reasons


def test_the_default_is_tiny() -> None:
    assert NAMED["tiny"] == Workload()


def test_nothing_divides_uneven() -> None:
    model, tied = NAMED["uneven"].model, NAMED["uneven_tied"].model
    assert all(size % 2 for size in (model.parameters, model.vocab_size, model.hidden_size))
    assert NAMED["uneven"].sequence_length % 2
    assert model.intermediate_size % 8
    assert tied.tie_word_embeddings
    assert tied.vocab_size % 2
    assert tied.parameters % 4  # V·h + h is even where V is odd, so 2 divides every tied model


def test_the_real_models_have_their_published_sizes() -> None:
    sizes = {name: NAMED[name].model.parameters for name in ("small", "qwen3-0.6b", "qwen3-4b")}
    assert {name: f"{size:.1e}" for name, size in sizes.items()} == {
        "small": "5.0e+07",
        "qwen3-0.6b": "6.0e+08",
        "qwen3-4b": "4.0e+09",
    }


def test_a_toml_file_gives_each_field(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        steps = 3
        lr = 1
        betas = [0, 0.9]
        dtype = "bf16"
        data = "text.txt"
        [model]
        hidden_size = 64
        rope_theta = 10000
        tie_word_embeddings = true
        """
    )
    expected = Workload(
        "mine",
        ModelConfig(hidden_size=64, rope_theta=1e4, tie_word_embeddings=True),
        steps=3,
        lr=1.0,
        betas=(0.0, 0.9),
        dtype="bf16",
        data=str(tmp_path / "text.txt"),
    )
    assert load(str(file)) == expected
    assert type(load(str(file)).lr) is float


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("upper.TOML", b"steps = 3"),
        ("my run.toml", b"steps = 3"),
        ("bracket[1],comma.toml", b"steps = 3"),
        ("gr\u00f6\u00dfe.toml", b"steps = 3"),
        ("bom.toml", b"\xef\xbb\xbfsteps = 3"),
        ("crlf.toml", b"steps = 3\r\nlr = 0.1\r\n"),
    ],
)
def test_a_file_may_be_called_and_saved_as_editors_do(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert load(str(tmp_path / name)) == Workload(Path(name).stem, steps=3)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").touch()
    (tmp_path / "mine.toml").write_text('data = "~/text.txt"')
    assert load(str(tmp_path / "mine.toml")).data == str(tmp_path / "text.txt")


def test_weights_bring_their_model(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(config_json(TIED_GQA, "float32"))
    (tmp_path / "mine.toml").write_text('weights = "folder"\n')
    assert load(str(tmp_path / "mine.toml")) == Workload("mine", TIED_GQA, weights=str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tinny", "unknown workload 'tinny'; did you mean tiny"),
        ("xyz", f"unknown workload 'xyz'; known: {', '.join(NAMED)}; or give a .toml file"),
        ("absent.toml", "there is no workload file absent.toml"),
    ],
)
def test_an_unknown_workload_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        load(text)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stepz = 3", "unknown field 'stepz'; did you mean steps?"),
        ('name = "x"', "unknown field 'name'; a workload has the name of its file"),
        ("learning_rate = 3e-4", "unknown field 'learning_rate'; did you mean lr?"),
        ("max_steps = 3", "unknown field 'max_steps'; did you mean steps?"),
        ("gradient_accumulation_steps = 2", "unknown field 'gradient_accumulation_steps'; did you mean micro_batches?"),
        (
            "per_device_train_batch_size = 2",
            "unknown field 'per_device_train_batch_size'; did you mean batch_size, which counts sequences over all",
        ),
        ("[training]\nlr = 0.1", "unknown table [training]; [model] is the only one, and every other field stands"),
        ("[model]\nbatch_size = 4", "model.batch_size is the workload's own field batch_size: write it above [model]"),
        ("lr = -1", "lr must be positive and finite, not -1.0"),
        ("lr = nan", "lr must be positive and finite, not nan"),
        ("sequence_length = 1", "sequence_length must be 2 or more: "),
        ("micro_batches = 3", "batch_size 8 is not a multiple of dp × micro_batches = 3"),
        ("[model]\nrope_theta = inf", "model.rope_theta must be positive and finite, not inf"),
        ("[model]\nhiden_size = 3", "unknown field 'model.hiden_size'; did you mean hidden_size?"),
        ('lr = "fast"', "lr must be a number, not 'fast'"),
        ("steps = 5.0", "steps must be an integer, not 5.0"),
        ("seed = 9223372036854775808", "seed must be an integer of 64 bits, not 9223372036854775808"),
        ("steps = true", "steps must be an integer, not True"),
        ("dtype = 32", "dtype must be text, not 32"),
        ("betas = [0.9]", "betas must be a list of two numbers, not [0.9]"),
        ('betas = [0.9, "x"]', "betas must be a number, not 'x'"),
        ("model = 3", "model must be a table [model], not 3"),
        ("[model]\ntie_word_embeddings = 1", "model.tie_word_embeddings must be true or false, not 1"),
        ("[model]\nhead_dim = 15", "model.head_dim 15 must be even"),
        ('optimizer = "lion"', "optimizer 'lion' is unknown; known: sgd, adamw"),
        ("steps = 5\nlr = = 1", "Invalid value (at line 2, column 6)"),
        ('data = "absent.txt"', "data: there is no {folder}/absent.txt"),
        ('data = "*.jsonl"', "data: there is no {folder}/*.jsonl; name one file"),
        ('data = ["a.txt", "b.txt"]', "data must be text, not ['a.txt', 'b.txt']"),
        ('weights = "Qwen/Qwen3-0.6B"', "weights: there is no {folder}/Qwen/Qwen3-0.6B; nothing is downloaded: name a"),
        ('tokenizer = "$HF_HOME/a"', "tokenizer: there is no {folder}/$HF_HOME/a; variables such as $HOME are not rep"),
        ('weights = "mine.toml"', "{folder}/mine.toml is a file; weights must name the Hugging Face folder that holds"),
        ('weights = "."', "there is no {folder}/config.json: weights must name a Hugging Face folder with"),
        ('weights = "."\n[model]\nhidden_size = 64', "[model] beside weights"),
    ],
)
def test_each_fault_of_a_file_is_one_clear_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(ValueError) as refusal:
        load(str(file))
    assert str(refusal.value).startswith(f"{file}: {message.replace('{folder}', str(tmp_path))}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps = 3".encode("utf-16"), " is not UTF-8: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", " is a Git LFS pointer, not the file itself"),
    ],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        load(str(file))
    assert str(refusal.value).startswith(f"{file}{message}")


def test_a_folder_is_no_workload_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").mkdir()
    with pytest.raises(ValueError, match=r"mine\.toml is a folder; name a file"):
        load(str(tmp_path / "mine.toml"))


def test_a_file_may_not_take_the_name_of_a_built_in_workload(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text("steps = 3")
    with pytest.raises(ValueError, match="'tiny' is the name of a built-in workload"):
        load(str(tmp_path / "tiny.toml"))


def test_a_table_with_experts_is_a_mixture_of_experts(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[model]\nnum_experts = 6\nhidden_size = 64")
    assert load(str(file)).model == MoeConfig(hidden_size=64, num_experts=6)
    file.write_text("[model]\nnum_experts = 6\nnum_expert_per_tok = 3")
    with pytest.raises(ValueError, match=r"unknown field 'model.num_expert_per_tok'; did you mean num_experts_per_tok"):
        load(str(file))
