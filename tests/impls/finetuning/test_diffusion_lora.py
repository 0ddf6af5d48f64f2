"""Adapters of a UNet: the model is Diffusers' own, the dense loss is the definition, adapters pass both ways, and a few
steps learn to draw."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.run.lab import Lab
from harness.spec import Case, Topology, Workload
from harness.spec.files import InputError
from impls.finetuning.diffusion_lora import CARD, noise
from impls.finetuning.diffusion_lora.blocks import STABLE_DIFFUSION, Sizes
from impls.finetuning.diffusion_lora.claims import share as claimed_share
from impls.finetuning.diffusion_lora.data import Pictures, batch, share
from impls.finetuning.diffusion_lora.files import METADATA, NAME, read_adapter, write_adapter
from impls.finetuning.diffusion_lora.grid import ODD, PICTURES
from impls.finetuning.diffusion_lora.plain import Plain
from impls.finetuning.diffusion_lora.reference import DiffusionLoRA
from impls.finetuning.diffusion_lora.shapes import TARGETS, adapters, frozen, shapes, sizes, trained
from impls.finetuning.diffusion_lora.unet import UNet
from impls.finetuning.diffusion_lora.weights import build_model, start

VARIANTS = {name: dict(options) for name, options in CARD.variants.items()}
BETAS = [(0.00085**0.5 + n / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2 for n in range(noise.T)]
SMALL = PICTURES.with_(name="small_pictures", dtype="fp64", batch_size=4)
UNETS = [(sizes(SMALL.model), (6, 6)), (sizes(ODD.model), (5, 7)), (Sizes((16, 24, 32), 2, 4, 8, 20), (9, 7))]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank without a process group."""
    from impls.finetuning.diffusion_lora import reference

    class Alone:
        group = type("group", (), {"WORLD": None})

        def get_rank(self) -> int:
            return 0

    monkeypatch.setattr(reference, "dist", Alone())
    monkeypatch.setattr(reference, "sum_flat", lambda tensors, group: None)


def dense(variant: str, work: Workload = SMALL, **more: Any) -> Plain:
    return Plain(work, False, False, **VARIANTS[variant], **more)


@pytest.mark.parametrize(("kind", "size"), UNETS)
def test_the_unet_is_diffusers(kind: Sizes, size: tuple[int, int]) -> None:
    pytest.importorskip("diffusers")
    from impls.finetuning.diffusion_lora.on_diffusers import unet

    torch.manual_seed(0)
    theirs, ours = unet(kind).double(), UNet(kind).double()
    ours.load_state_dict(theirs.state_dict())
    z, t, text = torch.randn(2, 4, *size).double(), torch.tensor([1, 999]), torch.randn(2, 7, kind.text).double()
    with torch.no_grad():
        found, expected = ours(z, t, text), theirs(z, t, text).sample
    # Diffusers embeds timesteps in float32 in any precision.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, ours(z, t + 1, text), rtol=1e-5, atol=1e-5)


def test_the_shapes_are_those_of_stable_diffusion() -> None:
    pytest.importorskip("diffusers")
    from impls.finetuning.diffusion_lora.on_diffusers import unet

    with torch.device("meta"):
        theirs = {name: tuple(p.shape) for name, p in unet(STABLE_DIFFUSION).named_parameters()}
    assert shapes(STABLE_DIFFUSION) == theirs
    assert frozen(STABLE_DIFFUSION) == 859_520_964  # as published


def test_the_claim_is_contradicted_by_arithmetic() -> None:
    """Each of 16 transformer blocks has 2 attentions."""
    three = TARGETS[:-1]
    widths = 2 * [320] + 2 * [640] + 2 * [1280] + [1280] + 3 * [1280] + 3 * [640] + 3 * [320]
    by_hand = sum(3 * 2 * c + 2 * c + 2 * (c + 768) for c in widths)  # i + o of q, k, v: of positions, then of a text
    assert trained(STABLE_DIFFUSION, 16, three) == 16 * by_hand == 2_390_016
    assert trained(STABLE_DIFFUSION, 4) == 797_184
    assert claimed_share([]).detail["status"] == "contradicted"


def test_noise_is_the_published_schedule() -> None:
    abar, found = 1.0, noise.alphas_bar(torch.float64)
    for t, beta in enumerate(BETAS):
        abar *= 1 - beta
        assert float(found[t]) == pytest.approx(abar, rel=1e-12)
    assert abar == pytest.approx(0.0047, rel=0.01)  # some signal is left at the end


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_min_snr_weighs_the_error_of_the_latents(prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = (torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    a = noise.alphas_bar(torch.float64)[[0, 40, 300, 700, 999]]
    xt, signal, rest = noise.noised(x0, eps, a), a.sqrt().view(-1, 1, 1, 1), (1 - a).sqrt().view(-1, 1, 1, 1)
    true = noise.target(x0, eps, a, prediction)
    found = true + 0.1 * off
    latents = (xt - rest * found) / signal if prediction == "epsilon" else signal * xt - rest * found
    expected = (a / (1 - a)).clamp(max=5.0) * (latents - x0).square().mean((1, 2, 3))
    weights = noise.weights(a, prediction, 5.0)
    torch.testing.assert_close(weights * (found - true).square().mean((1, 2, 3)), expected, rtol=1e-8, atol=0)
    assert torch.equal(noise.weights(a, prediction, 0.0), torch.ones_like(a))


def test_noise_and_weights_are_those_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    from diffusers.training_utils import EMAModel, compute_snr

    from impls.finetuning.diffusion_lora.on_diffusers import scheduler

    theirs, t = scheduler("v"), torch.tensor([0, 1, 500, 999])
    x0, eps, a = torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3), noise.alphas_bar(torch.float32)[t]
    torch.testing.assert_close(noise.noised(x0, eps, a), theirs.add_noise(x0, eps, t))
    torch.testing.assert_close(noise.target(x0, eps, a, "v"), theirs.get_velocity(x0, eps, t))
    torch.testing.assert_close(a / (1 - a), compute_snr(theirs, t))
    average = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9)
    assert [noise.decay(n, 0.9) for n in range(1, 200)] == [average.get_decay(n) for n in range(1, 200)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dense_model_is_the_definition(variant: str) -> None:
    """Merged weights in the UNet itself, and one picture at a time."""
    options = {"gamma": 0.0, "scale": 1.0, **VARIANTS[variant]}
    model, pictures = build_model(SMALL), batch(SMALL, 0)
    weights = {name: tensor.double().requires_grad_() for name, tensor in start(SMALL, options["rank"])}
    whole = dict(model.named_parameters())
    for module in {name.rpartition(".lora_")[0] for name in weights}:
        update = weights[f"{module}.lora_B.weight"] @ weights[f"{module}.lora_A.weight"]
        whole[f"{module}.weight"] = whole[f"{module}.weight"] + options["scale"] * options["alpha"] / 4 * update
    losses = []
    for x0, text, t, eps in zip(*pictures, strict=True):
        abar = math.prod(1 - beta for beta in BETAS[: t + 1])
        signal, rest, snr = abar**0.5, (1 - abar) ** 0.5, abar / (1 - abar)
        x0, eps = x0.double(), eps.double()
        arguments = ((signal * x0 + rest * eps)[None], t[None], text[None].double())
        found = torch.func.functional_call(model, whole, arguments)[0]
        true = eps if options["prediction"] == "epsilon" else signal * eps - rest * x0
        weight = min(snr, options["gamma"]) / (snr + (options["prediction"] == "v")) if options["gamma"] else 1.0
        losses.append(weight * (found - true).square().mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    trainer = dense(variant)
    assert float(trainer.backward(pictures)) == pytest.approx(loss.item(), rel=1e-12)
    for name, gradient in trainer.gradients().items():
        torch.testing.assert_close(gradient, weights[name].grad, rtol=1e-8, atol=1e-12)


def test_averages_follow_every_step(alone: None) -> None:
    trainer = DiffusionLoRA(SMALL, Topology(), **VARIANTS["diffusion_lora_ema"])
    name, expected = next(iter(trainer.weights)), None
    for n, d in enumerate((0.0, 2 / 11, 0.2, 0.2), start=1):
        trainer.backward(batch(SMALL, n))
        trainer.update()
        now = trainer.parameters()[name].clone()
        expected = now if expected is None else d * expected + (1 - d) * now
        torch.testing.assert_close(trainer.parameters()[f"ema.{name}"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("variant", ["diffusion_lora_scaled", "diffusion_lora_ema"])
def test_a_merged_unet_computes_what_the_adapted_one_does(variant: str, alone: None) -> None:
    trainer, pictures = DiffusionLoRA(SMALL, Topology(), **VARIANTS[variant]), batch(SMALL, 0)
    trainer.backward(pictures)
    trainer.update()  # the first step's averages are its weights
    inputs = pictures.latents.double(), pictures.timesteps, pictures.text.double()
    with torch.no_grad():
        adapted, merged = trainer.unet(*inputs), build_model(SMALL)
        places = dict(merged.named_parameters())
        for name, tensor in trainer.merged().items():
            places[name].copy_(tensor)
        torch.testing.assert_close(merged(*inputs), adapted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["reference", "diffusers"])
def test_ranks_compute_what_the_dense_model_does(lab: Lab, engine: str) -> None:
    if engine == "diffusers":
        pytest.importorskip("diffusers")
    model = replace(ODD.model, num_hidden_layers=1)
    work = ODD.with_(name="odd_shares", model=model, micro_batches=3, dtype="fp32")
    case = Case(CARD.name, "diffusion_lora_v_min_snr", engine, Topology(dp=2), work)
    assert {found.quantity: found.verdict for found in lab.measure("parity", case) if found.verdict != "pass"} == {}


def test_a_batch_is_cut_without_remainder() -> None:
    pictures = batch(PICTURES, 3)
    parts = [part for rank in range(2) for part in share(pictures, 2, rank, 2)]
    for name in Pictures._fields:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(pictures, name))
    assert (int(pictures.timesteps[0]), int(pictures.timesteps[-1])) == (3, 996)
    assert torch.equal(pictures.latents, pictures.latents.bfloat16().float())


# Saving and loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path, dict(start(SMALL, 4)), rank=4, alpha=8)
    return tmp_path


@pytest.fixture
def adapted() -> Any:
    """Diffusers' UNet with the start's adapters."""
    pytest.importorskip("diffusers")
    import diffusers
    from peft import LoraConfig

    from impls.finetuning.diffusion_lora.on_diffusers import fill, trained, unet

    diffusers.logging.set_verbosity_error()
    model = unet(sizes(SMALL.model)).requires_grad_(False)
    fill(model, SMALL)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS)))
    with torch.no_grad():
        for name, tensor in start(SMALL, 4):
            trained(model)[name].copy_(tensor)
    return model


def seen(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 4, 6, 6, generator=generator), torch.randn(2, 7, 20, generator=generator)
    with torch.no_grad():
        found: Tensor = model(z, torch.tensor([3, 800]), text, return_dict=False)[0]
    return found


def test_diffusers_loads_our_file_into_the_unet(folder: Path, adapted: Any) -> None:
    from impls.finetuning.diffusion_lora.on_diffusers import fill, unet

    model = unet(sizes(SMALL.model))
    fill(model, SMALL)
    bare = seen(model)
    model.load_lora_adapter(str(folder), prefix="unet", weight_name=NAME)
    torch.testing.assert_close(seen(model), seen(adapted))
    assert not torch.allclose(seen(model), bare, atol=1e-3)


@pytest.mark.parametrize("how", ["save_lora_adapter", "save_lora_weights"])
def test_we_load_what_diffusers_saves(how: str, tmp_path: Path, adapted: Any) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    if how == "save_lora_adapter":
        adapted.save_lora_adapter(tmp_path)
    else:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted))
        config = adapted.peft_config["default"].to_dict()
        StableDiffusionPipeline.save_lora_weights(tmp_path, layers, unet_lora_adapter_metadata=config)
    found, tensors = read_adapter(tmp_path, sizes(SMALL.model))
    assert found == {"rank": 4, "alpha": 8}
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {n: t.tolist() for n, t in start(SMALL, 4)}


def test_a_file_without_alpha_is_refused_unless_alpha_is_given(folder: Path) -> None:
    save_file(load_file(folder / NAME), folder / NAME, {"format": "pt"})
    with pytest.raises(InputError, match="lora_alpha is missing; say which alpha"):
        read_adapter(folder, sizes(SMALL.model))
    assert read_adapter(folder, sizes(SMALL.model), alpha=8)[0] == {"rank": 4, "alpha": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet.use_dora": True}, "use_dora True is not supported"),
        ({"unet.r": 8}, "r is 8, the matrices have rank 4"),
        ({"unet.alpha_pattern": {"to_q": 2}}, "alpha_pattern {'to_q': 2} is not supported"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    told = {"unet.lora_alpha": 8, **change}
    save_file(load_file(folder / NAME), folder / NAME, {METADATA: json.dumps(told)})
    with pytest.raises(InputError) as caught:
        read_adapter(folder, sizes(SMALL.model))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="has shape"):
        read_adapter(folder, sizes(SMALL.model)._replace(text=21))
    with pytest.raises(InputError, match="is missing; was it trained on another model"):
        read_adapter(folder, sizes(SMALL.model)._replace(layers=2))
    tensors = load_file(folder / NAME)
    last = list(adapters(sizes(SMALL.model), 4))[-1][0]
    for broken, message in (
        ({**tensors, f"unet.{last}": tensors[f"unet.{last}"] * math.nan}, "holds NaN"),
        ({**tensors, "unet.more.lora_B.weight": torch.ones(4, 4)}, "more.lora_B.weight is not one of"),
        ({name: tensor[:0] for name, tensor in tensors.items() if "lora_A" in name}, "must have one rank of 1 or more"),
    ):
        save_file(broken, folder / NAME, {METADATA: json.dumps({"unet.lora_alpha": 8})})
        with pytest.raises(InputError, match=message):
            read_adapter(folder, sizes(SMALL.model))
    (folder / NAME).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        read_adapter(folder, sizes(SMALL.model))


# A small real task


def drawn(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Discs and squares of random places and sizes in 8 × 8 latents, in one of two channels; the text says which shape
    and which channel."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    latents, text = torch.zeros(count, 4, 8, 8), torch.zeros(count, 7, 12)
    for n in range(count):
        square, channel = (int(torch.randint(2, (), generator=generator)) for _ in range(2))
        (cy, cx), size = 2 + 4 * torch.rand(2, generator=generator), 1.5 + torch.rand((), generator=generator)
        off = torch.maximum((y - cy).abs(), (x - cx).abs()) if square else ((y - cy) ** 2 + (x - cx) ** 2).sqrt()
        latents[n, channel] = 2.0 * (off < size) - 0.5
        text[n, :, square], text[n, :, 2 + channel] = 1.0, 1.0
    return latents, text


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_adapters_learn_to_take_noise_from_drawings(prediction: str, alone: None) -> None:
    """Drawings that were not seen in training have less of a loss afterwards, at every part of the schedule."""
    generator, model = torch.Generator().manual_seed(0), replace(SMALL.model, hidden_size=16, intermediate_size=12)
    work = Workload("drawings", model, batch_size=16, optimizer="adamw", lr=1e-2, sequence_length=64)
    trainer = DiffusionLoRA(work, Topology(), rank=8, alpha=16, prediction=prediction, gamma=5.0)
    before = losses(trainer)
    for _ in range(30):
        latents, text = drawn(generator, 16)
        timesteps = torch.randint(noise.T, (16,), generator=generator)
        trainer.backward(Pictures(latents, text, timesteps, torch.randn(latents.shape, generator=generator)))
        trainer.update()
    fall = before - losses(trainer)
    assert (fall > 0).all(), fall.tolist()


def losses(trainer: DiffusionLoRA) -> Tensor:
    """Of 12 times 4 drawings, always the same, from the first timestep to the last."""
    generator = torch.Generator().manual_seed(1)
    latents, text = drawn(generator, 48)
    timesteps = torch.linspace(0, noise.T - 1, 48).long()
    eps = torch.randn(latents.shape, generator=generator)
    parts = zip(*(tensor.chunk(12) for tensor in (latents, text, timesteps, eps)), strict=True)
    with torch.no_grad():
        return torch.stack([trainer.loss(Pictures(*part)) for part in parts])
