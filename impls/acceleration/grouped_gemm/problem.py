"""Rows and weights of experts, normally distributed; those with scales have outliers, so that blocks differ in size."""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Workload
from impls.acceleration.grouped_gemm.sizes import BLOCK, sizes

E4M3, LARGEST = torch.float8_e4m3fn, 448.0


def groups(inputs: Mapping[str, Tensor], layout: str) -> list[slice]:
    """Each group's rows in the matrix of all rows: one after another, or the first of each group's room."""
    x, sizes = inputs["x"], inputs["sizes"].tolist()
    if layout == "contiguous":
        return [slice(start, stop) for start, stop in pairwise(accumulate([0, *sizes]))]
    room = x.shape[1]
    return [slice(g * room, g * room + size) for g, size in enumerate(sizes)]


def draw(workload: Workload, layout: str, scaled: bool) -> dict[str, Tensor]:
    """``x`` [rows, k], or [g, room, k] if dense or masked; ``w`` [g, n, k]; ``sizes`` [g], each group's valid rows.
    Rows of a group's room beyond its size are NaN.

    Scaled: x and w are the bits of E4M3 numbers (uint8); ``x_scale`` [..., ⌈k/128⌉] and ``w_scale`` [g, ⌈n/128⌉,
    ⌈k/128⌉] are what their blocks are multiplied by, numbers that bfloat16 holds exactly."""
    size, generator = sizes(workload, layout), torch.Generator().manual_seed(workload.seed)
    count = len(size.rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = (count, size.capacity) if size.capacity else (sum(size.rows),)
    inputs = {"x": normal(*rows, size.k), "w": normal(count, size.n, size.k) / size.k**0.5}
    if layout == "masked":
        for group, valid in enumerate(size.rows):
            inputs["x"][group, valid:] = torch.nan
    if scaled:
        for name, height in (("x", 1), ("w", BLOCK)):
            shape = blocks(inputs[name].shape, height)
            inputs[name] *= spread(8 ** normal(*shape).clamp(-1, 1), height, inputs[name].shape)
            inputs[name], inputs[f"{name}_scale"] = quantised(inputs[name], height)
    else:
        inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    return {**inputs, "sizes": torch.tensor(size.rows, dtype=torch.int32)}


def blocks(shape: torch.Size, height: int) -> tuple[int, ...]:
    """The number of blocks of ``height`` × 128 elements along each of the last two dims, after the other dims."""
    return (*shape[:-2], ceil(shape[-2] / height), ceil(shape[-1] / BLOCK))


def spread(scale: Tensor, height: int, shape: torch.Size) -> Tensor:
    """Each block's number at all of its elements: [..., ⌈r/height⌉, ⌈k/128⌉] → [..., r, k]."""
    wide = scale.repeat_interleave(height, -2).repeat_interleave(BLOCK, -1)
    return wide[..., : shape[-2], : shape[-1]]


def quantised(x: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """The bits of x ÷ scale in E4M3, and the scales, by which each block's largest element becomes 448 (DeepSeek-V3,
    section 3.3.2: online, from the block itself)."""
    down, right = (-x.shape[-2]) % height, (-x.shape[-1]) % BLOCK
    tiles = F.pad(x.abs(), (0, right, 0, down)).unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, height))
    scale = (tiles.amax((-3, -1)) / LARGEST).to(torch.bfloat16).double()  # [..., ⌈r/height⌉, ⌈k/128⌉]
    return (x / spread(scale, height, x.shape)).to(E4M3).view(torch.uint8), scale


def plain(inputs: Mapping[str, Tensor], layout: str, scaled: bool) -> dict[str, Tensor]:
    """One product a group. Rows beyond a group's size give 0."""
    x, w = inputs["x"], inputs["w"]
    if scaled:
        x, w = (
            spread(inputs[f"{name}_scale"], height, inputs[name].shape)
            * inputs[name].view(E4M3).to(inputs[f"{name}_scale"].dtype)
            for name, height in (("x", 1), ("w", BLOCK))
        )
    if layout == "masked":
        valid = torch.arange(x.shape[1], device=x.device) < inputs["sizes"][:, None]
        x = torch.where(valid[..., None], x, 0.0)
    parts = x.split(inputs["sizes"].tolist()) if layout == "contiguous" else x.unbind()
    products = [part @ weight.mT for part, weight in zip(parts, w, strict=True)]
    return {"y": torch.cat(products) if layout == "contiguous" else torch.stack(products)}
