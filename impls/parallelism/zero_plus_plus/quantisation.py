"""Symmetric block quantisation (Wang et al. 2023, §3.1): a scale for every B consecutive elements.

    q = round(x / s)  ∈ −Q … Q        s = max |x| / Q over the block, Q = 2^(bits−1) − 1        x̂ = s q

No element is off by more than half a step, |x̂ − x| ≤ s/2. With one scale for a whole tensor, the naive form (B = n), an
outlier coarsens the grid of every element; with blocks only that of its neighbours.

    x        [..., n]                       float64, float32 or bfloat16
    q        [..., n]                       int8, also where 4 bits are sent
    s        [..., ⌈n/B⌉]                   float32; the last block of a row may be shorter
    message  [..., 4⌈n/B⌉ + ⌈n·bits/8⌉]     bytes: the scales, then the codes, two a byte for 4 bits

A block of zeros stays zero. In a block with an infinity or a NaN no element stays finite, since s is not finite and
0 · ∞ is NaN: an overflow remains visible and never becomes a number.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 256  # elements: their scale adds 4 bytes to 256 of 8-bit codes (1.6 %), or to 128 of 4-bit codes (3.1 %)
SCALE = torch.float32
LEAST = torch.finfo(SCALE).tiny  # a smaller scale would itself lose precision


def levels(bits: int) -> int:
    """Q, the largest code."""
    if bits not in (4, 8):
        raise ValueError(f"codes have 4 or 8 bits, not {bits}")
    return 2 ** (bits - 1) - 1


def quantise(x: Tensor, bits: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """x → (q, s), in float32 whatever the dtype, so that a tie is also a tie for float64."""
    x = x.to(SCALE)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty((*x.shape[:-1], -(-x.shape[-1] // block)), dtype=SCALE, device=x.device)
    for (values, _), (q, s) in zip(_blocks(x, scales, block), _blocks(codes, scales, block), strict=True):
        scale = (values.abs().amax(-1, keepdim=True) / levels(bits)).clamp_(min=LEAST)
        q.copy_((values / scale).round_())
        s.copy_(scale)
    return codes, scales


def dequantise(codes: Tensor, scales: Tensor, out: Tensor, block: int = BLOCK) -> Tensor:
    """(q, s) → x̂, written into ``out`` [..., n] in its dtype."""
    scales = scales.to(torch.promote_types(out.dtype, SCALE))
    for (q, s), (values, _) in zip(_blocks(codes, scales, block), _blocks(out, scales, block), strict=True):
        torch.mul(q, s, out=values)
    return out


def _blocks(x: Tensor, scales: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of x and of its scales: all whole blocks [..., blocks, B], [..., blocks, 1]; then the rest of each row."""
    whole = x.shape[-1] // block
    if whole:
        yield x[..., : whole * block].unflatten(-1, (whole, block)), scales[..., :whole, None]
    if x.shape[-1] % block:
        yield x[..., None, whole * block :], scales[..., whole:, None]


def encode(x: Tensor, bits: int, block: int = BLOCK) -> Tensor:
    """x → message, contiguous."""
    codes, scales = quantise(x, bits, block)
    return torch.cat((scales.view(torch.uint8), (_pack(codes) if bits == 4 else codes).view(torch.uint8)), dim=-1)


def decode(message: Tensor, out: Tensor, bits: int, block: int = BLOCK) -> Tensor:
    """message → x̂, written into ``out`` [..., n]."""
    n = out.shape[-1]
    scales, codes = message.tensor_split([SCALE.itemsize * -(-n // block)], dim=-1)
    codes = codes.view(torch.int8)
    codes = _unpack(codes, n) if bits == 4 else codes
    return dequantise(codes, scales.clone(memory_format=torch.contiguous_format).view(SCALE), out, block)


def _pack(codes: Tensor) -> Tensor:
    """4-bit codes [..., n] → bytes [..., ⌈n/2⌉]: the first half in the low bits, the second in the high ones."""
    half = -(-codes.shape[-1] // 2)
    packed = codes[..., :half] & 15
    packed[..., : codes.shape[-1] - half] |= codes[..., half:] << 4
    return packed


def _unpack(packed: Tensor, n: int) -> Tensor:
    """The inverse; shifting right brings the sign back."""
    codes = torch.cat((packed << 4 >> 4, packed >> 4), dim=-1)
    return codes[..., :n]
