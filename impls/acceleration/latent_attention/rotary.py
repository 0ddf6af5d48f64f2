"""Rotary positions whose pairs are neighbours, as in DeepSeek's models."""

import torch
from torch import Tensor


def rotated(x: Tensor, theta: float) -> Tensor:
    """RoPE (Su et al. 2021, equation 34) on [b, heads, s, d]: dimensions 2i and 2i + 1 turn by position · θ^(−2i/d).
    The firsts of the pairs then come before the seconds: for scores one order is as good as another."""
    wide = torch.promote_types(x.dtype, torch.float32)
    s, d = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / d)
    angle = torch.outer(torch.arange(s, device=x.device, dtype=torch.float32), frequency).to(wide)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., ::2], x[..., 1::2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
