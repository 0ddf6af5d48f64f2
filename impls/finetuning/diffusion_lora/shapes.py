"""The sizes of the UNet, its adapted matrices and their adapters, by PEFT's names."""

from collections.abc import Iterator
from functools import cache
from math import gcd, isqrt, prod

import torch

from harness.spec import ModelConfig, Workload
from impls.finetuning.diffusion_lora.blocks import LATENT, Sizes
from impls.finetuning.diffusion_lora.unet import UNet
from impls.finetuning.lora.shapes import A, B

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
AVERAGED = "ema."  # before the name of an averaged parameter
WORDS = 7  # of a text
GROUPS = 8  # of a norm, at most


def sizes(model: ModelConfig) -> Sizes:
    """A UNet of two levels: hidden_size and twice as many channels, num_hidden_layers blocks each,
    num_attention_heads, and texts of intermediate_size."""
    h = model.hidden_size
    return Sizes(
        (h, 2 * h), model.num_hidden_layers, model.num_attention_heads, gcd(GROUPS, h), model.intermediate_size
    )


def picture(workload: Workload) -> tuple[int, int, int]:
    """A latent, about square, of at most sequence_length positions: [channels, height, width]."""
    height = isqrt(workload.sequence_length)
    return LATENT, height, workload.sequence_length // height


@cache
def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """All parameters of the UNet."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in UNet(sizes).named_parameters()}


def targets(sizes: Sizes, names: tuple[str, ...] = TARGETS) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each adapted matrix, as the name of its module and [out, in]."""
    for name, shape in shapes(sizes).items():
        module = name.removesuffix(".weight")
        if module != name and module.endswith(tuple(f".{target}" for target in names)):
            yield module, (shape[0], shape[1])


def adapters(sizes: Sizes, rank: int, names: tuple[str, ...] = TARGETS) -> Iterator[tuple[str, tuple[int, int]]]:
    """The trained parameters: A [r, in] and B [out, r]."""
    for module, (rows, columns) in targets(sizes, names):
        yield f"{module}.{A}", (rank, columns)
        yield f"{module}.{B}", (rows, rank)


def trained(sizes: Sizes, rank: int, names: tuple[str, ...] = TARGETS) -> int:
    """φ, the number of trained parameters."""
    return sum(prod(shape) for _, shape in adapters(sizes, rank, names))


def frozen(sizes: Sizes) -> int:
    """Ψ, the number of the UNet's own."""
    return sum(prod(shape) for shape in shapes(sizes).values())
