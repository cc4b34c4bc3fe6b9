"""The Frechet distance: how far apart two samples are if each is taken for a Gaussian. See `features` for its place.

Not FID, which is this number for one network's features of images: that is in `inception`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.metrics.features import against_n
from tinydiff.metrics.samples import _flat


class Moments(NamedTuple):
    """What the Frechet distance knows of a sample: its mean (d,), covariance (d, d), float64, and number of points.

    The covariance has divisor n - 1. Statistics of a reference can be kept in place of its features:
    `safetensors.torch.save_file(m.tensors(), path)`, then `Moments.from_tensors(load_file(path))`.
    """

    mean: Tensor
    cov: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> "Moments":
        """Of one tensor (n, d), or of batches of it one after another, in any sizes.

        Raises ValueError for fewer than two points, batches of different widths, or values that are not finite.
        Source of the update: Chan, Golub and LeVeque 1983. A sum of squares less n mean^2 would lose the digits
        of features that are far from 0.
        """
        n, mean, scatter = 0, torch.zeros(()), torch.zeros(())
        for batch in [features] if isinstance(features, Tensor) else features:
            x = _flat(batch, "features")
            if n and x.shape[1] != len(mean):
                raise ValueError(f"features must have {len(mean)} numbers a point in every batch, got {x.shape[1]}")
            gap, inside, m = x.mean(dim=0) - mean, x - x.mean(dim=0), len(x)
            scatter = scatter + inside.T @ inside + gap.outer(gap) * (n * m / (n + m))
            mean, n = mean + gap * (m / (n + m)), n + m
        if n < 2:
            raise ValueError(f"features must hold at least 2 points, got {n}")
        return cls(mean, scatter / (n - 1), n)

    def tensors(self) -> dict[str, Tensor]:
        return dict(mean=self.mean, cov=self.cov, n=torch.tensor(self.n))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Moments":
        return cls(tensors["mean"], tensors["cov"], int(tensors["n"]))


def frechet_distance(x: Float[Tensor, "n *d"] | Moments, y: Float[Tensor, "m *d"] | Moments) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2).

    Not FID, which is this number for one network's features of 50,000 images: see `inception_fid`.
    For equal laws it is not 0 on average. If they are Gaussian with eigenvalues l_i of the covariance, it is to first
    order (1/n + 1/m) (5/4 sum_i l_i + 1/2 sum_ij l_i l_j / (l_i + l_j)): for l_i = 1 and n = m about d^2 / (2 n), so
    two values at different n cannot be compared. It is defined for n <= d too, but then C is singular, and the value
    is mostly this bias.

    Raises ValueError for different widths, fewer than two points, or values that are not finite.
    Source: Frechet 1957, Dowson and Landau 1982; for images Heusel et al. 2017, eq. 6.
    """
    x, y = _moments(x, "x"), _moments(y, "y")
    if len(x.mean) != len(y.mean):
        raise ValueError(f"y must have {len(x.mean)} numbers a point, as x, got {len(y.mean)}")
    # With B = C1^1/2 C2^1/2 the matrix under the root is B B^T, so the trace of its root is the sum of the singular
    # values of B. Those keep the digits that eigenvalues of B B^T lose where they are near 0: no C needs to be regular.
    shared = torch.linalg.svdvals(_root(x.cov) @ _root(y.cov)).sum()
    return ((x.mean - y.mean).square().sum() + x.cov.trace() + y.cov.trace() - 2 * shared).item()


class Extrapolated(NamedTuple):
    value: float  # for infinitely many points
    slope: float  # the value at n points is about value + slope / n


def frechet_extrapolated(
    x: Float[Tensor, "n *d"], y: Float[Tensor, "m *d"] | Moments, sizes: list[int] | None = None, seed: int = 0
) -> Extrapolated:
    """The Frechet distance for infinitely many points: a line in 1 / n, fitted to random parts of both samples.

    Free of the bias of order 1 / n only: parts that are not much larger than d leave some. If y is `Moments`, parts
    are of x alone, and the bias from y.n points stays.

    Args:
        sizes: of the parts; by default 15, evenly spaced from a fifth of the smaller sample to all of it.

    Raises ValueError as `frechet_distance` and `against_n` do, and for fewer than two different sizes.
    Source: Chong and Forsyth 2020 (there 15 sizes from 5,000 to 50,000, and y fixed).
    """
    fixed = isinstance(y, Moments)
    if sizes is None:
        most = len(x) if fixed else min(len(x), len(y))
        sizes = [round(n) for n in torch.linspace(max(2, most / 5), most, 15).tolist()]
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes must hold at least 2 different ones, got {sizes}")
    metric = (lambda part, _: frechet_distance(part, y)) if fixed else frechet_distance
    values = against_n(metric, x, x if fixed else y, sizes, repeats=1, seed=seed).values
    one_over_n = 1 / torch.tensor(sizes, dtype=values.dtype)
    line = torch.stack([torch.ones_like(one_over_n), one_over_n], dim=1)
    return Extrapolated(*torch.linalg.lstsq(line, values).solution.flatten().tolist())


def _moments(features: Tensor | Moments, name: str) -> Moments:
    return features if isinstance(features, Moments) else Moments.of(_flat(features, name, smallest=2))


def _root(c: Tensor) -> Tensor:
    """The symmetric root of a covariance; rounding makes some eigenvalues slightly negative."""
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
