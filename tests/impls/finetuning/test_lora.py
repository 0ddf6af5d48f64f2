"""Low-rank adapters: the dense model is W₀ + s B A itself, the reference keeps to it, and PEFT reads and writes the
same folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Workload
from harness.spec.files import InputError
from impls.common.data import batch
from impls.common.weights import build_model
from impls.finetuning.lora import CARD, shapes
from impls.finetuning.lora.files import CONFIG, TENSORS, read_adapter, write_adapter
from impls.finetuning.lora.plain import Plain, initial

ODD = ModelConfig(97, 24, 40, 2, 4, 2, 6)
WORK = Workload(
    "odd_adapters",
    ODD,
    batch_size=6,
    micro_batches=3,
    sequence_length=11,
    min_length=1,
    max_grad_norm=0.3,
    dtype="fp64",
)
VARIANTS = CARD.variants


def dense(work: Workload, **options: Any) -> Plain:
    return Plain(work, False, False, **options)


def whole(base: dict[str, Tensor], trained: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """The adapted matrices by their definition; DoRA's norm is a constant."""
    s = options["alpha"] / (options["rank"] ** 0.5 if options.get("rslora") else options["rank"])
    found = {}
    for name, _ in shapes.targets(ODD):
        v = base[f"{name}.weight"] + s * trained[f"{name}.lora_B.weight"] @ trained[f"{name}.lora_A.weight"]
        if options.get("dora"):
            length = v.detach().square().sum(1).sqrt()
            v = v * (trained[f"{name}.lora_magnitude_vector.weight"] / length)[:, None]
        found[f"{name}.weight"] = v
    return found


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_the_dense_model_is_the_definition(variant: str) -> None:
    options, work = VARIANTS[variant], WORK.with_(micro_batches=1)
    trainer, model = dense(work, **options), build_model(work)
    trained = {name: tensor.double().requires_grad_() for name, tensor in initial(work, **options)}
    base = dict(model.named_parameters())
    loss = functional_call(model, whole(base, trained, options), tuple(batch(work, 0)))
    gradients = torch.autograd.grad(loss, list(trained.values()))
    assert float(trainer.backward(batch(work, 0))) == pytest.approx(loss.item(), rel=1e-13)
    for name, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(trainer.gradients()[name], gradient, rtol=1e-9, atol=1e-14)
    merged = trainer.merged()
    for name, tensor in whole(base, trained, options).items():
        torch.testing.assert_close(merged[name].detach(), tensor.detach(), rtol=1e-12, atol=1e-14)


def test_lora_plus_steps_b_faster() -> None:
    options, moved = VARIANTS["lora_plus"], {}
    for ratio in (1.0, options["ratio"]):
        trainer = dense(WORK, **{**options, "ratio": ratio})
        before = {name: tensor.clone() for name, tensor in trainer.parameters().items()}
        trainer.backward(batch(WORK, 0))
        trainer.update()
        moved[ratio] = {name: tensor - before[name] for name, tensor in trainer.parameters().items()}
    for name, slow in moved[1.0].items():
        factor = options["ratio"] if name.endswith("lora_B.weight") else 1.0
        torch.testing.assert_close(moved[options["ratio"]][name], factor * slow)


@pytest.mark.parametrize("engine", ["reference", "peft"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_with_unequal_lengths_compute_what_the_dense_model_does(lab: Lab, variant: str, engine: str) -> None:
    if engine == "peft":
        pytest.importorskip("peft")
    work = WORK.with_(dtype="fp32", optimizer="adamw", lr=1e-3, weight_decay=0.1, eps=1e-4)
    case = Case(CARD.name, variant, engine, Topology(dp=2), work)
    assert {found.quantity: found.verdict for found in lab.measure("parity", case) if found.verdict != "pass"} == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path, dict(initial(WORK, rank=4)), rank=4, alpha=8)
    return tmp_path


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_peft_loads_our_folder_and_we_load_its(variant: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    work, options = WORK.with_(dtype="fp32"), VARIANTS[variant]
    trainer, tokens = dense(work, **options), batch(work, 0).inputs
    write_adapter(tmp_path / "ours", trainer.parameters(), **options)
    loaded = peft.PeftModel.from_pretrained(build_model(work), tmp_path / "ours")
    torch.testing.assert_close(loaded(tokens), trainer.model(tokens), rtol=1e-4, atol=1e-5)
    loaded.save_pretrained(tmp_path / "theirs")
    found, tensors = read_adapter(tmp_path / "theirs", ODD)
    assert {name: value for name, value in found.items() if value} == options
    assert tensors.keys() == trainer.parameters().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in trainer.parameters().items())


def test_two_adapters_of_one_base_are_saved_and_loaded_both_ways(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    work, tokens = WORK.with_(dtype="fp32"), batch(WORK, 0).inputs
    names, options = ("first", "second"), ({"rank": 4, "alpha": 8}, {"rank": 3, "alpha": 12})
    saved = [{n: t * (-1) ** i for n, t in initial(work, **each)} for i, each in enumerate(options)]
    for name, tensors, each in zip(names, saved, options, strict=True):
        write_adapter(tmp_path / "ours" / name, tensors, **each)
    loaded = peft.PeftModel.from_pretrained(build_model(work), tmp_path / "ours" / "first", adapter_name="first")
    loaded.load_adapter(tmp_path / "ours" / "second", adapter_name="second")
    loaded.base_model.set_adapter(list(names))
    base = dict(build_model(work).named_parameters())
    for tensors, each in zip(saved, options, strict=True):
        base |= whole(base, tensors, each)
    both = functional_call(build_model(work), base, (tokens,))
    torch.testing.assert_close(loaded(tokens), both, rtol=1e-4, atol=1e-5)
    loaded.save_pretrained(tmp_path / "theirs")
    for name, tensors, each in zip(names, saved, options, strict=True):
        found, read = read_adapter(tmp_path / "theirs" / name, ODD)
        assert {key: value for key, value in found.items() if value} == each
        assert all(torch.equal(read[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "r must be from 1 to 12"),
        ({"r": 64}, "r must be from 1 to 12"),
        ({"target_modules": ["query"]}, "target_modules must be q_proj"),
        ({"peft_type": "IA3"}, "peft_type must be LORA"),
        ({"layers_to_transform": [0]}, "layers_to_transform [0] is not supported"),
        ({"target_modules": []}, "target_modules must be q_proj"),
        ({"lora_alpha": 0}, "lora_alpha must be a positive number, not 0"),
        ({"lora_alpha": None}, "lora_alpha must be a positive number, not None"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"r": 3}, "has shape [4, 24], this model's is [3, 24]"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        read_adapter(folder, ODD)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base_or_with_nan_names_the_tensor(folder: Path) -> None:
    with pytest.raises(InputError, match=r"layers\.2\..* is missing; was it trained on another model"):
        read_adapter(folder, replace(ODD, num_hidden_layers=3))
    with pytest.raises(InputError, match=r"layers\.1\..* is not one of this model's adapters"):
        read_adapter(folder, replace(ODD, num_hidden_layers=1))
    tensors = load_file(folder / TENSORS)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, folder / TENSORS)
    with pytest.raises(InputError, match="holds NaN"):
        read_adapter(folder, ODD)
    (folder / TENSORS).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        read_adapter(folder, ODD)


def test_a_merged_model_computes_what_the_adapted_one_does() -> None:
    for options in VARIANTS.values():
        trainer, model, tokens = dense(WORK, **options), build_model(WORK), batch(WORK, 0).inputs
        adapted, before = trainer.model(tokens), {name: tensor.clone() for name, tensor in trainer.frozen().items()}
        merged = functional_call(model, dict(trainer.merged()), (tokens,))
        torch.testing.assert_close(merged, adapted, rtol=1e-9, atol=1e-12)
        trainer.unmerge()
        for name, tensor in trainer.frozen().items():
            torch.testing.assert_close(tensor.detach(), before[name].detach(), rtol=1e-12, atol=1e-14)
