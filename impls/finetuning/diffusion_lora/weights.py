"""The common start of every engine: the UNet, frozen, and its adapters."""

import zlib
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn

from harness.spec import Workload
from impls.common.experts import without_experts
from impls.common.mesh import device
from impls.common.weights import TORCH_DTYPES, weight
from impls.finetuning.diffusion_lora.shapes import adapters, shapes, sizes
from impls.finetuning.diffusion_lora.unet import UNet
from impls.finetuning.lora.shapes import B


def base(workload: Workload) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of the UNet, float32 and representable in bfloat16: gains near 1, biases near 0, and matrices and
    kernels that keep the size of what they are given."""
    for name, shape in shapes(sizes(workload.model)).items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{workload.seed} {name}".encode()))
        noise = torch.randn(shape, generator=generator)
        scaled = 0.1 * noise + (not name.endswith("bias")) if len(shape) == 1 else noise * prod(shape[1:]) ** -0.5
        yield name, scaled.bfloat16().float()


def start(workload: Workload, rank: int) -> Iterator[tuple[str, Tensor]]:
    """A and B, float32. B is drawn too: with B = 0 the gradient of A is zero, and one that is missing would not be
    noticed."""
    for name, shape in adapters(sizes(workload.model), rank):
        drawn = weight(workload, name, shape)
        yield name, drawn / 4 if name.endswith(B) else drawn


def fill(model: nn.Module, workload: Workload) -> None:
    """Copies the start into a model with the names of Diffusers."""
    places = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in base(workload):
            places.pop(name).copy_(tensor)
    if places:
        raise ValueError(f"no initial weight for {', '.join(places)}")


def build_model(workload: Workload) -> UNet:
    """The frozen UNet on this rank's device."""
    without_experts(workload, "a UNet is made here with")
    with torch.device("meta"):
        model = UNet(sizes(workload.model)).to(TORCH_DTYPES[workload.dtype])
    model = model.to_empty(device=device()).requires_grad_(False)
    fill(model, workload)
    return model
