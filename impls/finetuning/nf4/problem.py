"""A frozen matrix, and its storage one weight after another."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.spec import Workload
from impls.finetuning.nf4.reference import BLOCK, SCALES, dynamic, float4, normal_float


def draw(workload: Workload, even: bool = False, **variant: Any) -> dict[str, Any]:
    """``W`` [d, k], float64: normally distributed rows of different sizes, some outliers, and a block of zeros. The
    last blocks, of weights and of scales, are not full unless ``even``."""
    generator = torch.Generator().manual_seed(workload.seed)
    d, k = (size + (not even) for size in (workload.model.intermediate_size, workload.model.hidden_size))
    sizes = torch.rand(d, 1, generator=generator, dtype=torch.float64) + 0.02
    whole = sizes * torch.randn(d, k, generator=generator, dtype=torch.float64)
    whole[torch.rand(d, k, generator=generator) < 1e-3] *= 20
    whole.view(-1)[BLOCK : 2 * BLOCK] = 0
    return {"W": whole}


def plain(
    inputs: Mapping[str, Any], normal: bool = True, double: bool = False, int8: bool = False, **drawn: bool
) -> dict[str, Any]:
    """Block by block, eight bits row by row. Scales are float32 in every precision, as in the paper."""
    whole = inputs["W"]
    if int8:
        return eight_bits(whole)
    flat, values = whole.flatten().float(), normal_float() if normal else float4()
    codes, scales = nearest(flat, values, BLOCK)
    blocks, bits = len(scales), 32.0 * len(scales)
    if double:
        offset, eight = scales.mean(), dynamic()
        small, of_scales = nearest(scales - offset, eight, SCALES)
        scales = torch.stack([eight[small[i]] * of_scales[i // SCALES] + offset for i in range(blocks)])
        bits = 8.0 * blocks + 32 * len(of_scales)
    back = torch.cat([values[codes[i * BLOCK : (i + 1) * BLOCK]] * scales[i] for i in range(blocks)])
    return {"codes": codes, "scales": scales, "W": back.view_as(whole).to(whole.dtype), "bits": 4 + bits / len(codes)}


def nearest(x: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The number of midpoints that each element is above; on a midpoint the smaller value is taken."""
    codes, scales = [], []
    for part in x.split(block):
        largest = part.abs().max()
        scaled = part * (1 / largest.clamp(min=1e-38))
        codes.append((scaled[:, None] > (values[1:] + values[:-1]) / 2).sum(1))
        scales.append(largest)
    return torch.cat(codes), torch.stack(scales)


def eight_bits(whole: Tensor) -> dict[str, Any]:
    """Every row's largest element is 127. Stored are whole numbers and scales; how their product is rounded is not, so
    it has the precision of what is asked for."""
    codes, scales = [], []
    for row in whole.float():
        largest = row.abs().max()
        codes.append(torch.round(row * (127.0 / largest)).long())
        scales.append(largest)
    wide = torch.promote_types(whole.dtype, torch.float32)
    back = torch.stack([code * (largest.to(wide) / 127) for code, largest in zip(codes, scales, strict=True)])
    bits = 8 + 32 / whole.shape[1]
    return {"codes": torch.cat(codes), "scales": torch.stack(scales), "W": back.to(whole.dtype), "bits": bits}
