"""The parts of Stable Diffusion's UNet: residual blocks and transformer blocks, with the names of Diffusers.

x [b, c, H, W]  what a level works on      e [b, 4c]  the timestep      text [b, w, d]  states of a text encoder
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sizes(NamedTuple):
    """``layers``: residual blocks of a level; ``heads`` of each attention; ``groups`` of the norms; ``text``: d."""

    channels: tuple[int, ...]
    layers: int
    heads: int
    groups: int
    text: int


STABLE_DIFFUSION = Sizes((320, 640, 1280, 1280), layers=2, heads=8, groups=32, text=768)  # version 1.5
LATENT = 4  # channels of a latent


def embedding(t: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """cos and sin of t/10000^(2i/width), i from 0 to width/2 − 1 (Ho et al. 2020, appendix B)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=dtype, device=t.device) / half)  # [width/2]
    angles = t[:, None] * frequencies  # [b, width/2]
    return F.pad(torch.cat((angles.cos(), angles.sin()), 1), (0, width % 2))  # [b, width]


class TimeEmbedding(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, 4 * c)

    def forward(self, e: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(e)))  # [b, 4c]


class ResidualBlock(nn.Module):
    """x [b, i, H, W], e [b, 4c] → [b, o, H, W]."""

    def __init__(self, i: int, o: int, time: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, i), nn.GroupNorm(groups, o)
        self.conv1, self.conv2 = nn.Conv2d(i, o, 3, padding=1), nn.Conv2d(o, o, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, o)
        self.conv_shortcut = nn.Identity() if i == o else nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(e))[:, :, None, None]  # [b, o, H, W]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class Attention(nn.Module):
    """x [b, n, c] attends to context [b, m, k] → [b, n, c]."""

    attend: Callable[..., Tensor] = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, c: int, k: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(i, c, bias=False) for i in (c, k, k))
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        projected = (self.to_q(x), self.to_k(context), self.to_v(context))
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in projected)  # [b, a, n or m, c/a]
        return self.to_out[0](self.attend(q, k, v).transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.proj = nn.Linear(c, 8 * c)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)  # [b, n, 4c] each
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    def __init__(self, c: int, text: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(c) for _ in range(3))
        self.attn1, self.attn2 = Attention(c, c, heads), Attention(c, text, heads)
        self.ff = nn.ModuleDict({"net": nn.Sequential(GatedLinear(c), nn.Identity(), nn.Linear(4 * c, c))})

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.attn1(y := self.norm1(x), y)
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ff["net"](self.norm3(x))


class SpatialTransformer(nn.Module):
    """x [b, c, H, W] → the same; a position is a token. If the heads do not divide c, each has c/a channels, rounded
    down."""

    def __init__(self, c: int, sizes: Sizes) -> None:
        super().__init__()
        inner = c // sizes.heads * sizes.heads
        self.norm = nn.GroupNorm(sizes.groups, c, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(c, inner, 1), nn.Conv2d(inner, c, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, sizes.text, sizes.heads)])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x))  # [b, inner, H, W]
        tokens = self.transformer_blocks[0](y.flatten(2).mT, text)  # [b, HW, inner]
        return x + self.proj_out(tokens.mT.unflatten(2, y.shape[2:]))


class Resample(nn.Module):
    """Downwards each second position is left out; upwards positions were repeated before."""

    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride, padding=1)
