"""Hugging Face folders, both ways, exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.spec import ModelConfig, Workload
from harness.spec.files import InputError
from harness.spec.named import NAMED
from impls.common.hf import read_config, read_weights, write_folder
from impls.common.weights import build_model
from tests.impls.common.peer import FEATURES, TIED_GQA, theirs, weights

UNTIED = NAMED["uneven"].model
CONFIGS = {"tied": TIED_GQA, "untied": UNTIED, **FEATURES}
SHARDED, WHOLE = 40_000, 10**9


def write(folder: Path, config: ModelConfig, **changes: Any) -> Path:
    write_folder(folder, config, weights(config).items(), torch.float32, **changes)
    return folder


@pytest.mark.parametrize("shard", [SHARDED, WHOLE])
@pytest.mark.parametrize("name", CONFIGS)
def test_folders_saved_by_transformers_are_read_exactly_and_in_order(name: str, shard: int, tmp_path: Path) -> None:
    config, model = CONFIGS[name], theirs(CONFIGS[name])
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == SHARDED)
    assert read_config(tmp_path) == config
    read = list(read_weights(tmp_path, config))
    assert [(n, tuple(t.shape)) for n, t in read] == list(config.shapes())
    assert all(t.dtype is torch.float32 and torch.equal(t, model.state_dict()[n]) for n, t in read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", [SHARDED, WHOLE])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_written_folders_exactly(name: str, shard: int, dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config, given = CONFIGS[name], weights(CONFIGS[name])
    write_folder(tmp_path, config, given.items(), dtype, max_shard_bytes=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == SHARDED)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    found = dict(model.named_parameters())
    assert found.keys() == given.keys()
    assert all(p.dtype is dtype and torch.equal(p, given[n].to(dtype)) for n, p in found.items())
    for field in ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(model.config, field) == getattr(config, field)
    assert model.config.rope_parameters["rope_theta"] == config.rope_theta
    assert read_config(tmp_path) == config


def test_tensors_that_pass_through_one_buffer_in_any_order_are_written_exactly(tmp_path: Path) -> None:
    given = weights(TIED_GQA)
    buffer = torch.empty(max(t.numel() for t in given.values()))
    passing = ((n, buffer[: t.numel()].view_as(t).copy_(t)) for n, t in reversed(given.items()))
    write_folder(tmp_path, TIED_GQA, passing, torch.float32, max_shard_bytes=SHARDED)
    read = dict(read_weights(tmp_path, TIED_GQA))
    assert all(torch.equal(read[n], t) for n, t in given.items())


def test_narrow_weights_are_read_as_float32(tmp_path: Path) -> None:
    write_folder(tmp_path, TIED_GQA, weights(TIED_GQA).items(), torch.bfloat16)
    for name, tensor in read_weights(tmp_path, TIED_GQA):
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, weights(TIED_GQA)[name].bfloat16().float())


def test_shards_are_filled_and_no_larger_than_asked(tmp_path: Path) -> None:
    write(tmp_path, TIED_GQA, max_shard_bytes=SHARDED)
    shards = [load_file(file) for file in sorted(tmp_path.glob("*.safetensors"))]
    sizes = [sum(t.nbytes for t in shard.values()) for shard in shards]
    assert all(size <= SHARDED for size in sizes)
    firsts = [next(shard[name].nbytes for name, _ in TIED_GQA.shapes() if name in shard) for shard in shards]
    assert all(size + following > SHARDED for size, following in zip(sizes, firsts[1:], strict=False))
    with safe_open(next(tmp_path.glob("*.safetensors")), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # Transformers 4 refuses a file without


def test_a_workload_starts_from_its_folder(tmp_path: Path) -> None:
    write(tmp_path, TIED_GQA)
    model = build_model(Workload(model=TIED_GQA, weights=str(tmp_path), seed=1))
    assert all(torch.equal(p, weights(TIED_GQA)[n]) for n, p in model.cpu().named_parameters())


def test_a_tied_model_may_store_its_head_if_it_is_the_embedding(tmp_path: Path) -> None:
    file = write(tmp_path, TIED_GQA) / "model.safetensors"
    stored = load_file(file)
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}, file)
    assert dict(read_weights(tmp_path, TIED_GQA)).keys() == weights(TIED_GQA).keys()
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        list(read_weights(tmp_path, TIED_GQA))


def spoil(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        change(stored)
        save_file(stored, folder / "model.safetensors")

    return apply


def sharded(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        change(write(folder, TIED_GQA, max_shard_bytes=20_000))

    return apply


SPOILT = {
    "shape": (
        spoil(lambda stored: stored.update({"model.norm.weight": torch.ones(47)})),
        r"model\.norm\.weight has shape \[47\], expected \[48\]",
    ),
    "renamed": (
        spoil(lambda stored: stored.update({"norm.weight": stored.pop("model.norm.weight")})),
        r"has no tensor model\.norm\.weight; the nearest is norm\.weight",
    ),
    "spare": (
        spoil(lambda stored: stored.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(1)})),
        r"has tensors that this model does not have: model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    "none": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"has neither model\.safetensors nor model\.safetensors\.index\.json: download all of it",
    ),
    "pickled": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"but pytorch_model\.bin: load it with Transformers and save it with save_pretrained\(\)",
    ),
    "cut": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x20" * 20),
        r"model\.safetensors is not a safetensors file, or was cut short",
    ),
    "shard": (
        sharded(lambda folder: next(folder.glob("model-00002-of-*")).unlink()),
        r"lacks model-00002-of-\d+\.safetensors, named in model\.safetensors\.index\.json",
    ),
    "nan": (
        spoil(lambda stored: stored["model.norm.weight"].fill_(torch.nan)),
        r"model\.norm\.weight holds NaN or an infinity",
    ),
    "index": (
        sharded(lambda folder: (folder / "model.safetensors.index.json").write_text("[]")),
        r"index\.json is not an index of shards",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_folder_is_refused_with_its_fault(name: str, tmp_path: Path) -> None:
    change, message = SPOILT[name]
    change(write(tmp_path, TIED_GQA))
    with pytest.raises(InputError, match=message) as refusal:
        list(read_weights(tmp_path, TIED_GQA))
    assert "\n" not in str(refusal.value)


def test_write_folder_refuses_what_is_not_the_model_whole(tmp_path: Path) -> None:
    given = list(weights(TIED_GQA).items())
    for wrong, message in (
        (given[:-1], r"no tensor given for model\.norm\.weight"),
        ([*given, given[0]], r"tensor model\.embed_tokens\.weight is given twice"),
        ([("lm_head.weight", given[0][1])], r"tensor lm_head\.weight is not one of this model"),
        ([(given[0][0], given[0][1][1:])], r"model\.embed_tokens\.weight has shape \[95, 48\], expected \[96, 48\]"),
    ):
        with pytest.raises(ValueError, match=message):
            write_folder(tmp_path / message, TIED_GQA, wrong, torch.float32)
    write(tmp_path / "full", TIED_GQA)
    with pytest.raises(ValueError, match=r"already holds weights \(model\.safetensors\); choose an empty folder"):
        write(tmp_path / "full", TIED_GQA)
