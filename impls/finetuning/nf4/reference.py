"""QLoRA's storage of frozen weights (Dettmers et al. 2023, section 3): four bits a weight, in blocks with a scale each.

    c = 1 / max |w|  of a block of 64            the block's quantisation constant           (equation 1)
    code = the nearest of 16 values to c w       4 bits
    w ≈ value[code] / c                          (equation 2)

NormalFloat (equation 4, appendix E): the 16 values are quantiles of N(0, 1) at evenly spaced probabilities, so that
normally distributed weights use all of them alike; 8 from ½ up and 7 below it, and 0 itself, divided by the largest.

    p   δ ──────────▶ ½ ──────────▶ 1 − δ         δ = ½ (1/32 + 1/30)
        7 values      0      8 values

Double quantisation: 32 bits for each c are half a bit a weight. Their mean is taken out, and the rest is stored in 8
bits, in blocks of 256 with a float32 scale each:

    4 + 32/64 = 4.5 bits          4 + 8/64 + 32/(64 · 256) = 4.127 bits

The eight bits are dynamic exponent and fraction (Dettmers 2015, arXiv:1511.04561, section 2.3): the number of leading
zeros is an exponent of ten, and the bits after it are a linear fraction.

Beside it, eight bits a weight (Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339, section 2.1): one c a row, and
whole numbers from −127 to 127 in place of a table. Outlying inputs, which its product treats apart, are not stored.
"""

from collections.abc import Mapping
from typing import Any

import torch
from scipy.stats import norm
from torch import Tensor

from harness.spec import Function, Topology, Workload

BLOCK, SCALES = 64, 256
LAST = 0.9677083  # 1 − δ


def normal_float() -> Tensor:
    """NF4's values, [16], ascending from −1 to 1. They are a format: 1 − δ in seven digits and probabilities in float32
    are its authors', and other ones give other last bits."""
    above = norm.ppf(torch.linspace(LAST, 0.5, 9)[:-1].numpy())  # [8], of N(0, 1)'s upper half
    below = -norm.ppf(torch.linspace(LAST, 0.5, 8)[:-1].numpy())  # [7]
    values = torch.tensor([*above.tolist(), 0.0, *below.tolist()]).sort().values
    return values / values.max()


def float4() -> Tensor:
    """FP4's values, [15], ascending: a sign, two bits of exponent and one of fraction, over the largest, 12. Its two
    zeros are one value."""
    positive = torch.tensor([0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0])
    return torch.cat([-positive.flip(0), torch.zeros(1), positive]) / 12


def dynamic() -> Tensor:
    """The 256 values of eight bits, ascending: ± 10^(e−6) times the centres of 2^e equal parts of [0.1, 1], e = 0 … 6;
    and 0 and 1."""
    found = [torch.zeros(1), torch.ones(1)]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        centres = 10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2
        found += [centres, -centres]
    return torch.cat(found).sort().values


def quantise(x: Tensor, values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """x [n] → codes [n] and the largest element of each block, [n/block, rounded up], float32."""
    blocks = torch.nn.functional.pad(x, (0, -len(x) % block)).view(-1, block)  # [n/block, block]
    largest = blocks.abs().amax(1)  # [n/block]
    scaled = blocks * (1 / largest.clamp(min=1e-38))[:, None]
    between = (values[1:] + values[:-1]) / 2  # [values − 1]
    return torch.bucketize(scaled, between).flatten()[: len(x)], largest


def dequantise(codes: Tensor, largest: Tensor, values: Tensor, block: int) -> Tensor:
    """[n], float32."""
    return values[codes] * largest.repeat_interleave(block)[: len(codes)]


def rows_int8(W: Tensor) -> dict[str, Any]:  # noqa: N803
    largest = W.abs().amax(1).float()  # [d]
    codes = torch.round(W.float() * (127.0 / largest)[:, None])  # [d, k], whole numbers
    back = (codes * (largest / 127)[:, None]).to(W.dtype)  # [d, k]
    return {"codes": codes.long().flatten(), "scales": largest, "W": back, "bits": 8 + 32 / W.shape[1]}


def build(
    workload: Workload,
    topology: Topology,
    normal: bool = True,
    double: bool = False,
    int8: bool = False,
    **drawn: bool,
) -> Function:
    def store(inputs: Mapping[str, Any]) -> dict[str, Any]:
        W, values = inputs["W"], (normal_float() if normal else float4()).to(inputs["W"].device)  # noqa: N806
        if int8:
            return rows_int8(W)
        codes, scales = quantise(W.flatten().float(), values, BLOCK)  # [n], [n/64]
        bits = 4.0 * len(codes) + 32 * len(scales)
        if double:
            offset, eight = scales.mean(), dynamic().to(W.device)
            small, of_scales = quantise(scales - offset, eight, SCALES)  # [n/64], [n/64/256]
            scales = dequantise(small, of_scales, eight, SCALES) + offset
            bits = 4.0 * len(codes) + 8 * len(small) + 32 * len(of_scales)
        back = dequantise(codes, scales, values, BLOCK).view_as(W).to(W.dtype)  # [d, k]
        return {"codes": codes, "scales": scales, "W": back, "bits": bits / len(codes)}

    return store
