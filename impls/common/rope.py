"""Rotary position embeddings (Su et al. 2021, "RoFormer", eq. 34), with frequencies changed for longer contexts.

    θ_i = base^(−2i/d)       i = 0 … d/2 − 1; a pair turns by m θ_i at position m, and 2π/θ_i positions are a whole turn

    linear   θ_i / s                                                 Chen et al. 2023, "Position Interpolation", eq. 3
    llama3   θ_i, where it turns more than β times within L positions; θ_i / s, where less than α times; in between
             (1 − γ) θ_i / s + γ θ_i, γ = (turns − α)/(β − α)        Llama Team 2024, "The Llama 3 Herd of Models"
    yarn     the same blend with γ falling linearly in i between the pairs that turn β_fast and β_slow times, and cos,
             sin times 0.1 ln s + 1                                  Peng et al. 2023, "YaRN", definition 3

    d head_dim   s factor   L original_max_position_embeddings   α low_freq_factor   β high_freq_factor

All is computed in float32, in Transformers' order of operations, whatever the model's precision: the angles define the
model.
"""

import math

import torch
from torch import Tensor

from harness.spec import ModelConfig, RopeScaling


def rope_table(
    length: int, config: ModelConfig, device: torch.device, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin, [length, d], in float32. ``positions`` [length] in the sequence, if they are not 0, 1, 2, …"""
    positions = torch.arange(length, device=device) if positions is None else positions
    angle = torch.outer(positions.to(device, torch.float32), frequencies(config, device))
    angle = torch.cat((angle, angle), dim=-1)
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return angle.cos(), angle.sin()
    # Queries and keys both carry the factor, so that their products carry its square.
    factor = scaling.attention_factor or max(0.1 * math.log(scaling.factor) + 1.0, 1.0)
    return angle.cos() * factor, angle.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (eq. 34) on [b, heads, s, d], with the halves of d as pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """θ, [d/2]."""
    d, scaling = config.head_dim, config.rope_scaling
    period = config.rope_theta ** (torch.arange(0, d, 2, device=device, dtype=torch.float32) / d)  # [d/2], over 2π
    theta = 1.0 / period
    if scaling is None:
        return theta
    if scaling.rope_type == "linear":
        return theta / scaling.factor
    if scaling.rope_type == "llama3":
        return llama3(theta, scaling)
    kept = 1 - ramp(config, scaling, device)  # γ, [d/2]
    return 1.0 / (scaling.factor * period) * (1 - kept) + theta * kept


def llama3(theta: Tensor, scaling: RopeScaling) -> Tensor:
    """[d/2] → [d/2]"""
    wavelength, context = 2 * math.pi / theta, scaling.original_max_position_embeddings  # [d/2], L
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    slow, fast = wavelength > context / low, wavelength < context / high
    kept = (context / wavelength - low) / (high - low)  # γ, [d/2]
    between = (1 - kept) * theta / scaling.factor + kept * theta
    return torch.where(slow, theta / scaling.factor, torch.where(fast, theta, between))


def ramp(config: ModelConfig, scaling: RopeScaling, device: torch.device) -> Tensor:
    """From 0 at the pair that turns β_fast times within L positions to 1 at the one that turns β_slow times, [d/2]."""
    d, context = config.head_dim, scaling.original_max_position_embeddings

    def pair(turns: float) -> float:
        return d * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    high += 0.001 if low == high else 0
    return ((torch.arange(d // 2, dtype=torch.float32, device=device) - low) / (high - low)).clamp(0, 1)
