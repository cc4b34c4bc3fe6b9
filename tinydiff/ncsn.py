"""What NCSN and NCSNv2 (Song & Ermon 2019, 2020) add to a network: its noise levels, its loss, and how it is told them.

The levels sigma_1 > ... > sigma_L are geometric, gamma = sigma_{i-1} / sigma_i: an even grid of `VE(sigma_L, sigma_1)`.
Technique 1 of NCSNv2 chooses sigma_1, technique 2 gamma, and technique 4 the step size, all in closed form. Step
sizes here are that paper's, those of x + a score + sqrt(2 a) z: the eps of `samplers.annealed_langevin` is 2 a.

NCSN's loss, the mean over its levels of 1/2 E||sigma s(x + sigma z, sigma) + z||^2, is `denoising_loss` with the target
score, the weight `sigma_squared` and the times `level_times`, but for a factor dim / 2, as that takes means. Technique
3, s(x, sigma) = net(x) / sigma, is a network that is told no level (`untold`) with the target eps: the same up to the
sign of the network, and then the weight is 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# ---- the levels, and the network -----------------------------------------------------------------


def ladder_length(first: float, last: float, gamma: float) -> int:
    """L, the number of levels from first down to last in ratios of gamma, rounded to the nearest.

    Raises ValueError unless first > last > 0 and gamma > 1.
    """
    if not (first > last > 0 and gamma > 1):
        raise ValueError(f"needs first > last > 0 and gamma > 1; got {first=:g}, {last=:g}, {gamma=:g}")
    return 1 + round(math.log(first / last) / math.log(gamma))


def level_times(ts: Tensor) -> Callable[..., Tensor]:
    """Times drawn uniformly from the positive ones of a grid: the levels of NCSN's loss (Song & Ermon 2019, eq. 6)."""
    levels = ts[ts > 0]

    def times(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        return levels.to(device)[torch.randint(len(levels), (n,), generator=generator, device=device)]

    return times


def sigma_squared(c: Any) -> Tensor:
    """The weight of NCSN's loss on the score's error (Song & Ermon 2019, section 4.2): no level drowns the others."""
    return c.sigma**2


def untold(c: Any) -> Tensor:
    """A c_noise of zeros: the network must see the level from x itself (Song & Ermon 2020, technique 3)."""
    return torch.zeros_like(c.t)


@dataclass(frozen=True, eq=False)
class level_number:
    """A c_noise for a network with something of its own for each level: 0 for ts[0], 1 for ts[1], ..., the nearest."""

    ts: Tensor

    def __call__(self, c: Any) -> Tensor:
        levels = self.ts[self.ts > 0].to(c.t)
        return (c.t[:, None] - levels).abs().argmin(1)


class ByLevel(nn.Module):
    """A network with a table of labels, told its noise level as the label: a row of free weights for each level.

    In a U-Net the row becomes the scale and shift after each normalisation, as in the conditional instance
    normalisation of NCSN (Song & Ermon 2019, appendix A); there every normalisation has a table of its own, and a term
    for the means that it takes out. `net` is made with `classes` = the number of levels; `level_number` tells it.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.net(x, torch.zeros_like(level), y=level.round().long())


# ---- techniques 1, 2 and 4 -----------------------------------------------------------------------


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

    In many dimensions noise of level sigma has norm N(sqrt(dim) sigma, sigma^2 / 2). This is the share of level i
    that lies within three standard deviations of level i - 1:
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
