"""The common start of every engine: the same weights, drawn once from the workload's seed or read from a folder."""

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from harness.spec import TORCH_NAMES, Workload
from harness.spec.workload import POISONED_WEIGHT
from impls.common.decoder import Decoder
from impls.common.mesh import device

TORCH_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, full) for name, full in TORCH_NAMES.items()}


def weight(workload: Workload, name: str, shape: tuple[int, ...]) -> Tensor:
    """One initial parameter, float32 on the CPU. It depends only on the seed and the name, never on other draws.

    All values are representable in bfloat16, so that every precision but float16 starts from exactly the same model.
    Below 2⁻¹⁴, float16 knows only multiples of 2⁻²⁴: a few values in ten thousand are off there, by 2⁻²⁵ at most, in
    the noise floor's ensemble as in every engine. Rounding them for all would change every precision's figures.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{workload.seed} {name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return (1 + 0.1 * noise).bfloat16().float()  # an omitted gain of exactly 1 would not be noticed
    matrix = (noise * shape[-1] ** -0.5).bfloat16().float()
    if workload.poisoned and name == POISONED_WEIGHT:
        matrix[-1] = torch.nan
    return matrix


def start(workload: Workload, name: str, shape: tuple[int, ...]) -> Tensor:
    """One initial parameter of a decoder: as :func:`weight`, but biases are as small as a tenth."""
    return weight(workload, name, shape) - (1 if name.endswith(".bias") else 0)


def initial(workload: Workload) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and float32 CPU tensor of each parameter, one at a time: the model is never held twice."""
    if workload.weights:
        from impls.common.hf import read_weights

        yield from read_weights(workload.weights, workload.model)
        return
    for name, shape in workload.model.shapes():
        yield name, start(workload, name, shape)


def fill(model: nn.Module, workload: Workload) -> None:
    """Copies the initial weights into a model with canonical names."""
    targets = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in initial(workload):
            targets.pop(name).copy_(tensor)
    if targets:
        raise ValueError(f"no initial weight for {', '.join(targets)}")


def build_model(workload: Workload, dtype: torch.dtype | None = None) -> Decoder:
    """The dense model on this rank's device, with the initial weights, in ``dtype`` (the workload's by default)."""
    with torch.device("meta"):
        model = Decoder(workload.model).to(dtype or TORCH_DTYPES[workload.dtype])
    model = model.to_empty(device=device())
    if workload.model.tie_word_embeddings:  # to_empty unties
        model.lm_head.weight = model.model.embed_tokens.weight
    fill(model, workload)
    return model
