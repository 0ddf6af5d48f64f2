"""Four-bit storage of a frozen matrix W [d, k] as bytes, for the product (nf4/reference.py explains the format).

codes       [d k/2]      two codes a byte, the first in the high half
scales      [d k/64]     float32; with double quantisation their codes in 8 bits
of_scales   [d k/64/256] float32, with double quantisation, and
offset      []           the mean of the scales
"""

from typing import NamedTuple

import torch
from torch import Tensor

from impls.finetuning.nf4.reference import BLOCK, SCALES, dequantise, dynamic, float4, normal_float, quantise


class Packed(NamedTuple):
    """Those of single quantisation have no elements in the last two."""

    codes: Tensor
    scales: Tensor
    of_scales: Tensor
    offset: Tensor


class Format:
    """The values of the codes, which all matrices of a model share."""

    def __init__(self, normal: bool, double: bool, device: torch.device) -> None:
        self.values = (normal_float() if normal else float4()).to(device)  # [16], or [15]
        self.eight = dynamic().to(device) if double else None  # [256]

    def pack(self, W: Tensor) -> Packed:  # noqa: N803
        codes, scales = quantise(W.flatten().float(), self.values, BLOCK)  # [d k], [d k/64]
        high, low = torch.nn.functional.pad(codes, (0, len(codes) % 2)).to(torch.uint8).view(-1, 2).T  # [d k/2] each
        of_scales = offset = scales.new_empty(0)
        if self.eight is not None:
            offset = scales.mean().view(1)
            small, of_scales = quantise(scales - offset, self.eight, SCALES)  # [d k/64], [d k/64/256]
            scales = small.to(torch.uint8)
        return Packed(high << 4 | low, scales, of_scales, offset)

    def unpack(self, packed: Packed, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """doubleDequant (equation 6): the scales first, then the weights, [d, k]."""
        codes = torch.stack((packed.codes >> 4, packed.codes & 15), 1).flatten()[: shape[0] * shape[1]].int()  # [d k]
        scales = packed.scales  # [d k/64]
        if self.eight is not None:
            scales = dequantise(scales.int(), packed.of_scales, self.eight, SCALES) + packed.offset
        return dequantise(codes, scales, self.values, BLOCK).view(shape).to(dtype)
