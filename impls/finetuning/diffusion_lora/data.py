"""Latents with texts, timesteps and noise, drawn by seed. Values are representable in bfloat16.

Each batch has one of the first timesteps, where a latent has next to no noise, and one of the last.
"""

import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.spec import Workload
from harness.spec.files import InputError
from impls.finetuning.diffusion_lora.noise import T
from impls.finetuning.diffusion_lora.shapes import WORDS, picture


class Pictures(NamedTuple):
    """latents and noise [b, 4, H, W], text [b, w, d], timesteps [b]."""

    latents: Tensor
    text: Tensor
    timesteps: Tensor
    noise: Tensor


def batch(workload: Workload, step: int, **options: Any) -> Pictures:
    """The global batch of one step."""
    if workload.data:
        raise InputError("this topic draws its latents; data must be empty")
    b = workload.batch_size
    generator = torch.Generator().manual_seed(zlib.crc32(f"{workload.seed} {step} pictures".encode()))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().float()

    timesteps = torch.randint(T, (b,), generator=generator)
    timesteps[0] = step % 4
    timesteps[-1] = T - 1 - step % 4
    latents, text = drawn(b, *picture(workload)), drawn(b, WORDS, workload.model.intermediate_size)
    return Pictures(latents, text, timesteps, drawn(b, *picture(workload)))


def share(batch: Pictures, micro_batches: int, rank: int, ranks: int) -> list[Pictures]:
    """A rank's micro-batches."""
    rows = len(batch.latents) // ranks
    parts = [tensor[rank * rows : (rank + 1) * rows].chunk(micro_batches) for tensor in batch]
    return [Pictures(*part) for part in zip(*parts, strict=True)]
