"""Tables of betas for `DiscreteVP`: the share of noise that each of T steps adds. (T,), float64."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def linear_betas(steps: int, start: float = 1e-4, end: float = 0.02) -> Float[Tensor, " T"]:
    """DDPM's betas, linear from start to end at T = 1000; for other T scaled by 1000 / T, and at most 0.999."""
    scale = 1000 / _positive(steps)
    return torch.linspace(start * scale, end * scale, steps, dtype=torch.float64).clamp(max=0.999)


def scaled_linear_betas(steps: int, start: float = 0.00085, end: float = 0.012) -> Float[Tensor, " T"]:
    """Latent diffusion's betas: the square root is linear (Rombach et al. 2022, official code)."""
    return torch.linspace(start**0.5, end**0.5, _positive(steps), dtype=torch.float64) ** 2


def cosine_betas(steps: int, s: float = 0.008, max_beta: float = 0.999) -> Float[Tensor, " T"]:
    """Improved DDPM's cosine schedule (Nichol & Dhariwal 2021, eq. 17): alpha-bar is a cosine *squared*."""
    k = torch.arange(_positive(steps) + 1, dtype=torch.float64)
    abar = ((k / steps + s) / (1 + s) * math.pi / 2).cos() ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=max_beta)


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}")
    return steps
