"""Is this sample a draw from that law? Distances between samples, and what chance alone would give.

Samples are tensors (n, ...), flattened but for the first dimension. The work is done on the CPU in float64.

**Chamfer distance alone must not be used.** It asks of a point only how near its nearest neighbour is, so it
sees neither density nor copying, and fears a harmless blur as much as both. In a published assignment with a
pass mark of 20, fresh data scored 0.38, 205 memorised points 19.3, 90 % of the mass on one half 3.2: all
pass. Here (2,048 points of `swiss_roll`, three seeds; tests/test_metrics.py asserts the order):

| sample, against fresh data | `chamfer` x 2048 | `energy_distance` | `memorisation` |
| --- | --- | --- | --- |
| fresh data | 2.0 to 2.1 | -0.001 to 0.000 | 0.49 to 0.51 |
| blurred by 0.07 | 4.4 to 4.9 | -0.001 to 0.001 | 0.37 to 0.39 |
| 90 % of the mass on one half | 4.2 to 4.3 | 0.33 to 0.36 | 0.49 to 0.50 |
| 205 training points, repeated | 9.7 to 12.1 | 0.003 to 0.012 | 1.00 |
| all training points, copied | 2.0 to 2.1 | -0.001 to 0.001 | 1.00 |
| standard normal | 303 to 327 | 0.020 to 0.024 | 0.07 to 0.09 |

The last but one row passes every distance there is: only a measure of copying tells a model from a copy.
"""

import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinydiff.datasets.digits import digits

ROWS = 1024  # rows of a distance matrix at a time: 80 MB against 10,000 points


def energy_distance(x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"]) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without bias: 0 on average for equal laws, so sometimes negative.

    The expectation is 0 only for equal laws. In one dimension it is twice the integral of (F - G)^2.
    Raises ValueError for samples of different shapes, fewer than two points, or values that are not finite.
    Source: Szekely and Rizzo 2013. A U-statistic: no point is paired with itself.
    """
    x, y = _pair(x, y, smallest=2)
    n, m = len(x), len(y)
    within = _sum_of_distances(x, x) / (n * (n - 1)) + _sum_of_distances(y, y) / (m * (m - 1))
    return 2.0 * _sum_of_distances(x, y) / (n * m) - within


def sliced_wasserstein(
    x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"], projections: int = 128, seed: int = 0
) -> float:
    """Root mean square, over random directions, of the 2-Wasserstein distance between the projected samples.

    In one dimension the optimal plan pairs sorted values, so both samples must have the same size. A shift by
    v gives |v| / sqrt(d), up to the draw of the directions, which `seed` fixes.
    Raises ValueError as `energy_distance` does, for different sizes, and for projections < 1.
    Source: Bonneel et al. 2015.
    """
    x, y = _pair(x, y)
    _same_size(x, y)
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=g, dtype=x.dtype)
    directions = directions / directions.norm(dim=0)
    gaps = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
    return gaps.square().mean().sqrt().item()


def mode_weights(x: Float[Tensor, "n *d"], means: Float[Tensor, "k *d"]) -> Float[Tensor, " k"]:
    """Share of the samples that lie nearest to each mean; the shares sum to one."""
    x, means = _pair(x, means, names=("x", "means"))
    nearest = torch.cat([torch.cdist(rows, means).argmin(dim=1) for rows in x.split(ROWS)])
    return torch.bincount(nearest, minlength=len(means)).float() / len(x)


class TwoSample(NamedTuple):
    accuracy: float  # in [0, 1]
    z: float  # its distance from 1/2 in standard errors


def classifier_two_sample_test(x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"], seed: int = 0) -> TwoSample:
    """How often a k-nearest-neighbour classifier, shown one half of x and y, tells the other halves apart.

    1/2 means that it cannot. Then z = (accuracy - 1/2) sqrt(4 N), with N test points, is standard normal.
    One split, drawn by `seed`, as in the paper: with five-fold cross-validation z had a standard deviation of
    1.3 to 1.4 for equal laws, as neighbours vote on each other. k is the root of the training size.
    Raises ValueError as `energy_distance` does, for different sizes, and for fewer than ten points each.
    Source: Lopez-Paz and Oquab 2017, section 3.
    """
    x, y = _pair(x, y, smallest=10)
    _same_size(x, y)
    from sklearn.neighbors import KNeighborsClassifier

    g = torch.Generator().manual_seed(seed)
    x, y = (z[torch.randperm(len(z), generator=g)] for z in (x, y))
    half, rest = len(x) // 2, len(x) - len(x) // 2
    k = int((2 * half) ** 0.5) | 1  # odd: no ties
    classifier = KNeighborsClassifier(k).fit(torch.cat([x[:half], y[:half]]), [0] * half + [1] * half)
    accuracy = float(classifier.score(torch.cat([x[half:], y[half:]]), [0] * rest + [1] * rest))
    return TwoSample(accuracy, (accuracy - 0.5) * (4 * 2 * rest) ** 0.5)


def nearest_distance(x: Float[Tensor, "n *d"], train: Float[Tensor, "m *d"]) -> Float[Tensor, " n"]:
    """Distance from each sample to the training point nearest to it."""
    x, train = _pair(x, train, names=("x", "train"))
    return torch.cat([_distances(rows, train).min(dim=1).values for rows in x.split(ROWS)]).float()


def memorisation(x: Float[Tensor, "n *d"], train: Float[Tensor, "m *d"], fresh: Float[Tensor, "l *d"]) -> float:
    """P(a sample lies nearer to the training data than a fresh draw does), ties counted half.

    0.5: as new as fresh data. 1: every sample is a copy. Below 0.5: the samples are off the data (blurred).
    `fresh` is data that the model has not seen, from the same source as `train`.
    Source: Meehan, Chaudhuri and Dasgupta 2020 (their test also looks at each cell of space).
    """
    mine = nearest_distance(x, train)
    theirs = nearest_distance(fresh, train).sort().values
    at_least = len(theirs) - torch.searchsorted(theirs, mine)
    more = len(theirs) - torch.searchsorted(theirs, mine, right=True)
    return (at_least + more).double().mean().item() / (2 * len(theirs))


def chamfer(x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"]) -> float:
    """Mean squared distance to the nearest point, x to y plus y to x. Never use it alone: see above."""
    return (nearest_distance(x, y).square().mean() + nearest_distance(y, x).square().mean()).item()


def floor(metric: Callable[..., float], draw: Callable[..., Tensor], n: int, pairs: int = 9, seed: int = 0) -> float:
    """What `metric` gives for perfect samples of n points: its median over pairs of independent fresh draws.

    `draw(n, seed=...)` returns data; the seeds used are `seed`, ..., `seed + 2 pairs - 1`.
    An unbiased metric has a median near 0: take its size, `lambda x, y: abs(energy_distance(x, y))`.
    Of a metric of several numbers take one, `lambda x, y: precision_recall(x, y).recall`.
    Raises ValueError if pairs < 1.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    seeds = range(seed, seed + 2 * pairs, 2)
    return statistics.median(metric(draw(n, seed=s), draw(n, seed=s + 1)) for s in seeds)


def read_digits(images: Float[Tensor, "n 1 8 8"]) -> Int[Tensor, " n"]:
    """Labels that a support vector machine, fitted to all 1,797 real digits, reads from images in [-1, 1].

    It always answers, also for noise: use it on conditional samples, beside a distance to real digits.
    Raises ValueError if the images are not (n, 1, 8, 8) or not finite.
    """
    if images.shape[1:] != (1, 8, 8):
        raise ValueError(f"images must have shape (n, 1, 8, 8), got {tuple(images.shape)}")
    return torch.from_numpy(_digit_reader().predict(_flat(images, "images").numpy())).long()


def digit_accuracy(images: Float[Tensor, "n 1 8 8"], y: Int[Tensor, " m"]) -> float:
    """Share of the images that `read_digits` reads as the label they were asked for."""
    if len(y) != len(images):
        raise ValueError(f"y must hold one label for each of the {len(images)} images, got {len(y)}")
    return (read_digits(images) == y.cpu()).double().mean().item()


@functools.cache
def _digit_reader():
    from sklearn.svm import SVC

    real = digits()
    return SVC().fit(real.x0.flatten(1).double().numpy(), real.y.numpy())


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # the fast path through a matrix product does not give 0 for equal points, which copying is about
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _sum_of_distances(x: Tensor, y: Tensor) -> float:
    return sum(_distances(rows, y).sum().item() for rows in x.split(ROWS))


def _flat(x: Tensor, name: str, smallest: int = 1) -> Tensor:
    if x.ndim < 1 or len(x) < smallest:
        raise ValueError(f"{name} must hold at least {smallest} points, got shape {tuple(x.shape)}")
    flat = x.detach().cpu().double().reshape(len(x), -1)
    if bad := int((~flat.isfinite()).sum()):
        raise ValueError(f"{name} must be finite, got {bad} values that are nan or infinite")
    return flat


def _pair(x: Tensor, y: Tensor, smallest: int = 1, names: tuple = ("x", "y")) -> tuple[Tensor, Tensor]:
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"{names[1]} must hold points of shape {(*x.shape[1:],)}, got {(*y.shape[1:],)}")
    return _flat(x, names[0], smallest), _flat(y, names[1], smallest)


def _same_size(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"y must have as many points as x, {len(x)}, got {len(y)}; draw or drop some")
