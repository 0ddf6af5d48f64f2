"""Noise for latents, and what a model learns from it.

    x₀ latents   ε noise   t from 0 to T − 1   ᾱ_t = Π (1 − β_s) over s ≤ t   SNR_t = ᾱ_t/(1 − ᾱ_t)

    x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε                              Ho et al. 2020, equation 4
    ε-prediction learns ε                                   Ho et al. 2020, equation 14
    v-prediction learns v = √ᾱ_t ε − √(1−ᾱ_t) x₀            Salimans & Ho 2022, section 4 and appendix D

Min-SNR-γ (Hang et al. 2023, section 3.4) weighs the error of x₀ by min(SNR_t, γ). In terms of the two targets, with

    |x₀ − x̂₀|² = |ε − ε̂|²/SNR_t = |v − v̂|²/(SNR_t + 1)     w_t = min(SNR_t, γ)/SNR_t   or   min(SNR_t, γ)/(SNR_t + 1)
"""

import torch
from torch import Tensor

T = 1000
FIRST, LAST = 0.00085, 0.012  # β of Stable Diffusion, whose √β grows linearly


def alphas_bar(dtype: torch.dtype) -> Tensor:
    """ᾱ of all timesteps, [T]."""
    betas = torch.linspace(FIRST**0.5, LAST**0.5, T, dtype=dtype) ** 2  # [T]
    return torch.cumprod(1 - betas, 0)


def noised(x0: Tensor, noise: Tensor, a: Tensor) -> Tensor:
    """x_t [b, 4, H, W]; a [b] is ᾱ_t of each."""
    a = a[:, None, None, None]
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def target(x0: Tensor, noise: Tensor, a: Tensor, prediction: str) -> Tensor:
    """ε or v, [b, 4, H, W]."""
    if prediction == "epsilon":
        return noise
    a = a[:, None, None, None]
    return a.sqrt() * noise - (1 - a).sqrt() * x0


def weights(a: Tensor, prediction: str, gamma: float) -> Tensor:
    """w_t of each, [b]; γ = 0: all are 1."""
    if not gamma:
        return torch.ones_like(a)
    snr = a / (1 - a)  # [b]
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def decay(n: int, limit: float) -> float:
    """The share of the old average in step n = 1, 2, …: it starts with the first step's weights and forgets them soon,
    as min(limit, n/(9 + n)) is small for small n."""
    return 0.0 if n == 1 else min(limit, n / (9 + n))
