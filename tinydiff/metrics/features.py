"""Is this sample a draw from that law, as a network sees it? Comparisons of features, and what chance gives.

Features are tensors (n, d): what a layer of a trained network says of each image, or any other numbers. A value
can be compared only with others of the same features, and of the same n too unless it is 0 on average.
x is the sample, y the real data. The work is done on the CPU in float64.

| metric | for perfect samples | sees |
| --- | --- | --- |
| `frechet_distance` | above 0, by about c / n | mean and covariance only |
| `frechet_extrapolated` | 0 on average, to first order in 1 / n | the same |
| `kid` | 0 on average for every n | the first three moments |
| `precision_recall` | below 1, by how much depends on the law and n | samples off the data; data without samples |
| `density_coverage` | 1, and about 1 - 2^-k, for any law | the same, with less weight on outliers |

None of them tells a model from a copy of the data it is compared with: `memorisation` does. For the floor at n
points of a finite pool of real features, compare disjoint halves: `against_n(metric, real[:half], real[half:], [n])`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.metrics.samples import ROWS, _distances, _pair

# ---- a kernel ----------------------------------------------------------------------------------------


def kid(x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"]) -> float:
    """Squared maximum mean discrepancy under k(a, b) = (a.b / d + 1)^3, without bias: 0 on average for equal laws.

    So it is sometimes negative, and two values at different n can be compared. It is 0 for all laws that share
    their moments up to the third, and grows with the scale of the features to the sixth power.
    Raises ValueError for different widths, fewer than two points, or values that are not finite.
    Source: Binkowski et al. 2018; Gretton et al. 2012, eq. 3. A U-statistic, as `energy_distance` is.
    """
    x, y = _pair(x, y, smallest=2)
    n, m = len(x), len(y)
    within = _sum_of_others(x) / (n * (n - 1)) + _sum_of_others(y) / (m * (m - 1))
    return within - 2 * _sum_of_kernels(x, y) / (n * m)


class Estimate(NamedTuple):
    mean: float
    error: float  # standard error of the mean


def kid_blocks(x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"], size: int = 1000, seed: int = 0) -> Estimate:
    """`kid` of disjoint random blocks of `size` points, as many as the smaller sample has: mean and standard error.

    The paper's 100 blocks of 1,000 may share points, and then err together: in a trial (100 of 200 out of 2,000)
    the mean varied 1.5 times as much as their spread says. Disjoint blocks are independent. For equal laws their
    mean is noisier than `kid` of the whole, by the root of the number of blocks.
    Raises ValueError as `kid` does, and for a size that leaves fewer than two blocks.
    """
    x, y = _pair(x, y, smallest=4)
    blocks = min(len(x), len(y)) // max(size, 1)
    if size < 2 or blocks < 2:
        raise ValueError(f"size must lie in [2, {min(len(x), len(y)) // 2}], for at least two blocks, got {size}")
    g = torch.Generator().manual_seed(seed)
    x, y = (z[torch.randperm(len(z), generator=g)[: blocks * size]].split(size) for z in (x, y))
    values = torch.tensor([kid(a, b) for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    return Estimate(values.mean().item(), values.std().item() / blocks**0.5)


# ---- nearest neighbours ------------------------------------------------------------------------------


class PrecisionRecall(NamedTuple):
    precision: float  # share of the samples inside the data's balls, in [0, 1]
    recall: float  # share of the data inside the samples' balls, in [0, 1]


def precision_recall(x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"], k: int = 5) -> PrecisionRecall:
    """Is each sample within the data, and each data point within the samples? A sample fills the balls around its
    points that reach their k-th nearest neighbour in the same sample.

    One outlier of the data has a large ball, and all samples in it count as precise; k = 5 is more lenient than the
    paper's 3. A ball is closed, so copies are inside even where the data hold a point k + 1 times.
    Raises ValueError for different widths, k outside [1, points - 1], or values that are not finite.
    Source: Kynkaanniemi et al. 2019, section 2.
    """
    x, y = _pair(x, y)
    around_x, around_y = _radii(x, k, "x"), _radii(y, k, "y")
    precise, recalled = 0, torch.zeros(len(y), dtype=torch.bool)
    for rows, radii in zip(x.split(ROWS), around_x.split(ROWS), strict=True):
        distances = _distances(rows, y)
        precise += (distances <= around_y).any(dim=1).sum().item()
        recalled |= (distances <= radii[:, None]).any(dim=0)
    return PrecisionRecall(precise / len(x), recalled.double().mean().item())


class DensityCoverage(NamedTuple):
    density: float  # 1 on average for equal laws, and not bounded by 1
    coverage: float  # in [0, 1]


def density_coverage(x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"], k: int = 5) -> DensityCoverage:
    """How many of the data's balls hold each sample, over k; and the share of the data's balls that hold a sample.

    Both use balls around the data alone (radius: the k-th nearest other data point), which no sample can inflate.
    For equal laws, whatever they are, the expected density is 1 and the expected coverage is
    1 - prod_{l=1..k} (m - l) / (n + m - l), about 1 - 2^-k for n = m: a ball around y is empty if the k points
    nearest to it, of all n + m - 1, are data. Copies of the data have density (k + 1) / k, since a ball is closed.
    Raises ValueError as `precision_recall` does.
    Source: Naeem et al. 2020, section 3.
    """
    x, y = _pair(x, y)
    radii = _radii(y, k, "y")
    held, covered = 0, torch.zeros(len(y), dtype=torch.bool)
    for rows in x.split(ROWS):
        inside = _distances(rows, y) <= radii
        held, covered = held + inside.sum().item(), covered | inside.any(dim=0)
    return DensityCoverage(held / (k * len(x)), covered.double().mean().item())


# ---- how a metric depends on the number of points ----------------------------------------------------


class AgainstN(NamedTuple):
    sizes: list[int]
    values: Tensor  # (sizes, repeats), float64; (sizes, repeats, numbers) for a metric of several numbers

    @property
    def mean(self) -> Tensor:
        return self.values.mean(dim=1)

    @property
    def std(self) -> Tensor:
        return self.values.std(dim=1)


def against_n(
    metric: Callable[..., float | tuple[float, ...]],
    x: Float[Tensor, "n *d"],
    y: Float[Tensor, "m *d"],
    sizes: list[int],
    repeats: int = 5,
    seed: int = 0,
) -> AgainstN:
    """The metric between random parts of x and y, of the same size, for each of the sizes.

    Parts of one size overlap where repeats * size exceeds the sample: then `std` is too small, and 0 for all of it.
    Raises ValueError for a size outside [1, points of the smaller sample], or repeats < 1.
    """
    most = min(len(x), len(y))
    if bad := [n for n in sizes if not 1 <= n <= most]:
        raise ValueError(f"sizes must lie in [1, {most}], got {bad}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    g = torch.Generator().manual_seed(seed)
    part = lambda z, n: z[torch.randperm(len(z), generator=g)[:n].to(z.device)]  # noqa: E731
    values = [[metric(part(x, n), part(y, n)) for _ in range(repeats)] for n in sizes]
    return AgainstN(list(sizes), torch.tensor(values, dtype=torch.float64))


def _kernel(dots: Tensor, d: int) -> Tensor:
    return (dots / d + 1) ** 3


def _sum_of_kernels(x: Tensor, y: Tensor) -> float:
    return sum(_kernel(rows @ y.T, x.shape[1]).sum().item() for rows in x.split(ROWS))


def _sum_of_others(x: Tensor) -> float:
    """Over all pairs of different points."""
    return _sum_of_kernels(x, x) - _kernel(x.square().sum(dim=1), x.shape[1]).sum().item()


def _radii(x: Tensor, k: int, name: str) -> Tensor:
    """Distance from each point to its k-th nearest neighbour; the point itself, at distance 0, is not one."""
    if not 1 <= k < len(x):
        raise ValueError(f"k must lie in [1, {len(x) - 1}], as {name} has {len(x)} points, got {k}")
    return torch.cat([_distances(rows, x).topk(k + 1, largest=False).values[:, -1] for rows in x.split(ROWS)])
