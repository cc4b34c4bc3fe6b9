"""Data in two dimensions, as float32 tensors of shape (n, 2) that are the same for the same seed.

Each set is centred and scaled by **fixed constants**, never by the mean and spread of the draw itself: two
draws of one set come from the same law, so that a metric between them measures chance and nothing else. Both
coordinates share one factor, which keeps shapes and noise isotropic. The points are independent. (Those of
scikit-learn's `make_moons` are not: it puts them at equal angles, so that its draws are more alike than
chance allows.)

| set | variance of the first and second coordinate, without noise | extent |
| --- | --- | --- |
| `swiss_roll` | 0.95, 1.05 | about 2.1 |
| `two_moons` | 1.51, 0.49 | about 2.1 |
| `checkerboard` | 1, 1 | 1.73 |
| `gaussian_ring` | radius^2 / 2 + std^2 (0.99, 0.99 by default) | about 1.8 |
| `gaussian_grid` | spacing^2 (side^2 - 1) / 12 + std^2 (0.98, 0.98 by default) | about 1.7 |
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

# make_swiss_roll puts t cos t and t sin t at t uniform on [1.5 pi, 4.5 pi]. The integrals are elementary:
# means 2 and 2 / (3 pi), variances 4.875 pi^2 - 4.25 and 4.875 pi^2 + 0.25 - (2 / (3 pi))^2. The scale is the
# root of the mean variance.
ROLL_MEAN = (2.0, 2.0 / (3.0 * math.pi))
ROLL_SCALE = math.sqrt(4.875 * math.pi**2 - 2.0 - 2.0 / (9.0 * math.pi**2))  # 6.789

# Half circles of radius 1 around (0, 0) and (1, 1/2): means 1/2 and 1/4, variances 3/4 and 9/16 - 1/pi.
MOONS_MEAN = (0.5, 0.25)
MOONS_SCALE = math.sqrt((0.75 + 0.5625 - 1.0 / math.pi) / 2.0)  # 0.705


def swiss_roll(n: int, noise: float = 0.05, seed: int = 0) -> Float[Tensor, "n 2"]:
    """Coordinates 0 and 2 of scikit-learn's `make_swiss_roll`, less `ROLL_MEAN`, over `ROLL_SCALE`.

    `noise` is the standard deviation of the Gaussian noise in the units of the result, in which neighbouring
    turns lie 0.93 apart. Returns (n, 2). Raises ValueError if n < 1 or noise < 0.
    """
    _check(n, noise=noise)
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(n, noise=noise * ROLL_SCALE, random_state=seed)
    return ((torch.from_numpy(points[:, [0, 2]]) - torch.tensor(ROLL_MEAN)) / ROLL_SCALE).float()


def two_moons(n: int, noise: float = 0.07, seed: int = 0) -> Float[Tensor, "n 2"]:
    """Two interleaved half circles with random angles, less `MOONS_MEAN`, over `MOONS_SCALE`.

    `noise` is the standard deviation of the Gaussian noise in the units of the result. Returns (n, 2).
    Raises ValueError if n < 1 or noise < 0.
    """
    _check(n, noise=noise)
    g = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(n, generator=g)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.tensor([1.0, 0.5]) - upper  # a half turn of the upper moon about (1/2, 1/4)
    moons = torch.where(torch.rand(n, 1, generator=g) < 0.5, upper, lower)
    return (moons - torch.tensor(MOONS_MEAN)) / MOONS_SCALE + noise * torch.randn(n, 2, generator=g)


def checkerboard(n: int, cells: int = 4, seed: int = 0) -> Float[Tensor, "n 2"]:
    """Uniform on every other square of a board of cells x cells that covers [-sqrt 3, sqrt 3]^2.

    Each coordinate alone is uniform, so its variance is exactly 1. Returns (n, 2).
    Raises ValueError if n < 1 or if `cells` is not an even number of at least 2.
    """
    _check(n)
    if cells < 2 or cells % 2:
        raise ValueError(f"cells must be an even number of at least 2, got {cells}")
    g = torch.Generator().manual_seed(seed)
    column = torch.randint(cells, (n,), generator=g)
    row = 2 * torch.randint(cells // 2, (n,), generator=g) + column % 2
    unit = (torch.stack([column, row], dim=1) + torch.rand(n, 2, generator=g)) / cells
    return math.sqrt(3.0) * (2.0 * unit - 1.0)


def ring_means(modes: int = 8, radius: float = 1.4) -> Float[Tensor, "k 2"]:
    """Centres of `gaussian_ring`: equally spaced on a circle, the first at (radius, 0), counter-clockwise.

    Raises ValueError if modes < 1 or radius <= 0.
    """
    _check(modes, name="modes")
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")
    angle = 2.0 * math.pi * torch.arange(modes) / modes
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def grid_means(side: int = 5, spacing: float = 0.7) -> Float[Tensor, "k 2"]:
    """Centres of `gaussian_grid`: a square grid around the origin, row by row from the lower left.

    Raises ValueError if side < 1 or spacing <= 0.
    """
    _check(side, name="side")
    if not spacing > 0:
        raise ValueError(f"spacing must be positive, got {spacing}")
    line = spacing * (torch.arange(side) - (side - 1) / 2)
    return torch.cartesian_prod(line, line).flip(1)


def gaussian_ring(
    n: int,
    modes: int = 8,
    radius: float = 1.4,
    std: float = 0.1,
    weights: Float[Tensor, " k"] | None = None,
    seed: int = 0,
) -> Float[Tensor, "n 2"]:
    """Gaussians on a circle: draws from `GaussianMixture(ring_means(modes, radius), std, weights, schedule)`.

    `weights` need not sum to one; None means equal. Returns (n, 2).
    Raises ValueError if n or modes < 1, radius <= 0, std < 0, or the weights do not fit.
    """
    return _mixture(n, ring_means(modes, radius), std, weights, seed)


def gaussian_grid(
    n: int,
    side: int = 5,
    spacing: float = 0.7,
    std: float = 0.07,
    weights: Float[Tensor, " k"] | None = None,
    seed: int = 0,
) -> Float[Tensor, "n 2"]:
    """Gaussians on a grid: draws from `GaussianMixture(grid_means(side, spacing), std, weights, schedule)`.

    With side=3, spacing=1.2 keeps the variance near 1. `weights` as in `gaussian_ring`. Returns (n, 2).
    Raises ValueError if n or side < 1, spacing <= 0, std < 0, or the weights do not fit.
    """
    return _mixture(n, grid_means(side, spacing), std, weights, seed)


def _mixture(n: int, means: Tensor, std: float, weights: Tensor | None, seed: int) -> Tensor:
    _check(n, std=std)
    weights = torch.ones(len(means)) if weights is None else weights
    if len(weights) != len(means) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"weights must be {len(means)} numbers >= 0 with a positive sum, got {weights.tolist()}")
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(weights.float(), n, replacement=True, generator=g)
    return means[which] + std * torch.randn(n, 2, generator=g)


def _check(count: int, name: str = "n", **spreads: float) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    for key, value in spreads.items():
        if not value >= 0:  # written so that NaN fails too
            raise ValueError(f"{key} must be zero or more, got {value}")
