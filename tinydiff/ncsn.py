"""Noise levels and step sizes in closed form: techniques 1, 2 and 4 of NCSNv2 (Song & Ermon 2020).

The levels sigma_1 > ... > sigma_L are geometric, gamma = sigma_{i-1} / sigma_i. Technique 1 chooses sigma_1, technique
2 chooses gamma, and technique 4 the step size. Step sizes here are the paper's, those of x + a score + sqrt(2 a) z: the
eps of `samplers.annealed_langevin` is 2 a.
"""

import math

import torch
from torch import Tensor


def largest_distance(data: Tensor, chunk: int = 1024) -> float:
    """The largest Euclidean distance between two of the data (n, ...): sigma_1 by technique 1 (Song & Ermon 2020).

    Raises ValueError for fewer than two data.
    """
    if len(data) < 2:
        raise ValueError(f"data must have at least two rows; got shape {tuple(data.shape)}")
    flat = data.flatten(1)
    exact = "donot_use_mm_for_euclid_dist"  # by differences: the faster way rounds
    return max(torch.cdist(rows, flat, compute_mode=exact).max().item() for rows in flat.split(chunk))


def ladder_overlap(dim: int, gamma: float) -> float:
    """How far the shells of neighbouring levels overlap (Song & Ermon 2020, the left side of technique 2).

    In many dimensions noise of level sigma has norm N(sqrt(dim) sigma, sigma^2 / 2). This is the share of level i - 1
    that lies within three standard deviations of level i:
    Phi(sqrt(2 dim) (gamma - 1) + 3 gamma) - Phi(sqrt(2 dim) (gamma - 1) - 3 gamma).
    """
    shift = math.sqrt(2 * dim) * (gamma - 1)
    low, high = shift - 3 * gamma, shift + 3 * gamma
    return (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2


def ladder_ratio(dim: int, overlap: float = 0.5) -> float:
    """gamma > 1 for which `ladder_overlap` is `overlap` (technique 2); the ladder is then of

        L = 1 + log(sigma_1 / sigma_L) / log(gamma)  levels.

    Raises ValueError where there is no such gamma: in four dimensions or fewer the levels overlap by 0.997 however far
    they lie apart.
    """
    if dim <= 4:
        raise ValueError(f"no ratio has this overlap in {dim} dimensions (it takes five): choose the levels by hand")
    if not 0 < overlap < ladder_overlap(dim, 1.0):
        raise ValueError(f"overlap must lie between 0 and {ladder_overlap(dim, 1.0):.4f}; got {overlap}")
    low, high = 1.0, 2.0
    while ladder_overlap(dim, high) > overlap:
        high *= 2
    for _ in range(100):  # bisection: the overlap falls through this value once
        gamma = (low + high) / 2
        low, high = (gamma, high) if ladder_overlap(dim, gamma) > overlap else (low, gamma)
    return gamma


def langevin_ratio(a: float, sigma: float, gamma: float, steps: int) -> float:
    """r = s^2 / sigma^2, with s^2 the variance after `steps` steps of size a at level sigma from the level above.

        r = (1 - a/sigma^2)^(2 steps) (gamma^2 - b) + b,    b = 2a / (sigma^2 - sigma^2 (1 - a/sigma^2)^2)

    (Song & Ermon 2020, proposition 3), for data that are one point, so that the score is -x / sigma^2. 1 is right.
    """
    u = a / sigma**2
    b = 1 / (1 - u / 2)  # the same as above, without its 0/0 for small a
    return (1 - u) ** (2 * steps) * (gamma**2 - b) + b


def best_step(sigma: float, gamma: float, steps: int) -> float:
    """The step size a at the last level sigma for which |r - 1| is least (technique 4). r stays above 1.

    Raises ValueError unless sigma > 0, gamma > 1 and steps is at least 1.
    """
    if not (sigma > 0 and gamma > 1 and steps >= 1):
        raise ValueError(f"needs sigma > 0, gamma > 1 and steps >= 1; got {sigma=:g}, {gamma=:g}, {steps=}")
    low, high = 0.0, sigma**2  # a larger step overshoots
    for _ in range(200):  # r falls, then rises: drop the third that is higher
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if abs(langevin_ratio(one, sigma, gamma, steps) - 1) < abs(langevin_ratio(two, sigma, gamma, steps) - 1):
            high = two
        else:
            low = one
    return (low + high) / 2
