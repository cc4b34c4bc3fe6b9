"""Checks of exercises 15: metrics and what they are worth. Each compares with a closed form or with plain loops."""

import itertools
from collections.abc import Callable
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from tinydiff.check.core import STANDARD_ERRORS, CheckFailed, call, fail, is_close, is_tensor_like, right

F64 = torch.float64
ONE_NUMBER = "one number comes back, a float or a tensor without dimensions (shape ())"
MEANS = "the squared distance of the two means is a term of its own, beside the covariances"
STDS = (
    "in one dimension the covariances add (std1 - std2)^2 = v1 + v2 - 2 root(v1 v2); along common axes these add up. "
    "Nothing is divided by the number of dimensions, and no root is taken of the whole"
)
ROOT = (
    "the root is that of a matrix, R with R R = C1^1/2 C2 C1^1/2; its trace is the sum of the roots of the "
    "eigenvalues. The product of the two roots has that trace only if C1 and C2 share their axes"
)
SINGULAR = (
    "a covariance may be singular: its eigenvalues are 0, or by rounding just below it. So no inverse, no Cholesky "
    "factor, and clamp before the root"
)
FAIR = (
    "k(x_i, x_i) is always large: a point paired with itself says nothing of the law. Sum over the pairs of different "
    "points, and divide by the number of those. An estimate without bias may come out negative: leave it so"
)
KERNEL = "k(a, b) = (a.b / d + 1)^3, with d the number of coordinates; three means: within x, within y, and across"
ACROSS = "across x and y all n m pairs count; the samples may have different sizes"
BALLS = (
    "the radius around a data point is the distance to its k-th nearest *other* data point: its distance to itself, 0, "
    "is the first of the sorted row"
)
ANY = "a sample counts, once, if it lies in any ball: that of a far point may be large"
WHOSE = "the balls are around the data, and the share is of the samples"
EXACT = (
    "a copy is at distance 0, and its ball may have the radius 0. torch.cdist takes a matrix product for more than 25 "
    "points, which loses that: the hint of the exercise names the way round it"
)
CLOSED = "a ball is closed: a sample at the very radius is inside"
LINE = "the line is in 1 / n: what is its height where 1 / n is 0?"
FIT = "least squares over all sizes: the residuals sum to 0, and so do the residuals times 1 / n"
PAPER = "what comes in at the edge is paper, -1, not 0, and not the other edge, as torch.roll has it"
MOVES = f"all (2 reach + 1)^2 moves count, along both axes at once too, and the move by nothing; {PAPER}"
LEAVES = f"the images of x move, and the training images stay: what leaves at an edge is lost; {PAPER}"
NEAREST = "the root of the summed squares over all pixels, then the smallest over the training images and the moves"


def frechet(fn: Callable) -> None:
    """Exercise 2: fn(mean1, cov1, mean2, cov2) -> the Frechet distance of two Gaussians, one number."""
    name, g = "frechet", torch.Generator().manual_seed(0)
    m1, m2 = torch.randn(2, 4, generator=g, dtype=F64)
    B = torch.randn(4, 4, generator=g, dtype=F64)
    C1 = B @ B.T / 4
    out = _number(name, fn, "equal covariances, different means, d = 4", m1, C1, m2, C1)
    _is(name, "equal covariances: |m1 - m2|^2", "d = 4", out, (m1 - m2).square().sum(), MEANS)
    a, b = 0.3 + torch.rand(2, 5, generator=g, dtype=F64)
    zero = torch.zeros(5, dtype=F64)
    out = _number(name, fn, "diagonal covariances", zero, a.diag(), zero, b.diag())
    want = (a.sqrt() - b.sqrt()).square().sum()
    _is(name, "diagonal covariances: the sum of (std1 - std2)^2", "d = 5, equal means", out, want, STDS)
    # x -> A x with A symmetric and positive is the gradient of a convex function, so it is the optimal transport
    R = torch.randn(4, 4, generator=g, dtype=F64)
    A = R @ R.T / 4 + 0.1 * torch.eye(4, dtype=F64)
    for C, given, hint in (
        (C1, "C2 = A C1 A, axes that are not shared, d = 4", ROOT),
        (B[:, :2] @ B[:, :2].T, "C2 = A C1 A with C1 of rank 2, d = 4", SINGULAR),
    ):
        want = (m1 - m2).square().sum() + C.trace() + (A @ C @ A).trace() - 2 * (A @ C).trace()
        for args in ((m1, C, m2, A @ C @ A), (m2, A @ C @ A, m1, C)):
            try:
                out = _number(name, fn, given, *args)
            except CheckFailed as error:
                if "LinAlgError" in str(error):
                    fail(name, "the function runs", given, "a LinAlgError", SINGULAR)
                raise
            _is(name, "the cost of the best transport, known in closed form, either way round", given, out, want, hint)
    right(name, 5)


def kid_unbiased(fn: Callable) -> None:
    """Exercise 3: fn(x, y) -> the unbiased estimate of the squared MMD with k(a, b) = (a.b / d + 1)^3, one number."""
    name, g = "kid_unbiased", torch.Generator().manual_seed(0)
    draw = lambda n, d: torch.randn(n, d, generator=g, dtype=F64)  # noqa: E731
    given = "600 pairs of samples of one Gaussian, 5 and 6 points, d = 4"
    values = torch.stack([_number(name, fn, given, draw(5, 4), draw(6, 4)) for _ in range(600)])
    allowed = STANDARD_ERRORS * values.std().item() / len(values) ** 0.5
    if not abs(values.mean().item()) <= allowed:
        came = f"{values.mean().item():.4f} on average, {int((values < 0).sum())} of 600 below 0"
        fail(name, f"equal laws: 0 on average (to {allowed:.4f})", given, came, FAIR)
    for n, m, d in ((5, 5, 3), (4, 7, 2), (6, 2, 5)):
        x, y = draw(n, d), draw(m, d) + 0.5
        given = f"{n} and {m} points, d = {d}"
        want, hint = _kid(x, y), ACROSS if n != m else KERNEL
        _is(name, "the value of plain loops over pairs", given, _number(name, fn, given, x, y), want, hint)
        _is(name, "x and y may change places", given, _number(name, fn, given, y, x), want, ACROSS)
    right(name, 4)


def _kid(x: Tensor, y: Tensor) -> Tensor:
    k = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
    within = [
        torch.stack([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]).mean() for z in (x, y)
    ]
    return within[0] + within[1] - 2 * torch.stack([k(a, b) for a in x for b in y]).mean()


def precision(fn: Callable) -> None:
    """Exercise 4: fn(samples, data, k) -> the share of the samples that lie in the balls of the data, one number."""
    name, g = "precision", torch.Generator().manual_seed(0)
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0]], dtype=F64)  # radii for k = 1: 1, 1, 1, 8
    for points, k, want, what, hint in (
        ([0.3, 0.35, 0.4], 2, 1.0, "all three samples lie among the data", WHOSE),
        ([-1.9, -2.1, 18.5, 3.5], 2, 0.75, "the radii are 2, 1, 2 and 9", BALLS),
        ([0.5, -0.9, -1.5, 4.5], 1, 0.75, "the last lies in the ball of 10, which reaches from 2 to 18", ANY),
        ([-1.0, 18.0], 1, 1.0, "at the very edge of a ball is inside", CLOSED),
    ):
        given = f"data 0, 1, 2, 10; samples {', '.join(f'{p:g}' for p in points)}; k = {k}"
        out = _number(name, fn, given, torch.tensor(points, dtype=F64)[:, None], line, k)
        _is(name, f"{want:g}: {what}", given, out, torch.tensor(want), hint)
    data = torch.randn(30, 3, generator=g, dtype=F64)
    for n, k, scale in ((50, 1, 1.0), (20, 3, 1.5), (40, 5, 2.0), (25, 29, 3.0)):
        samples = scale * torch.randn(n, 3, generator=g, dtype=F64)
        given = f"{n} samples, 30 data points, d = 3, k = {k}"
        out = _number(name, fn, given, samples, data, k)
        _is(name, "the share of plain loops", given, out, _precision(samples, data, k), WHOSE)
    thrice = (10 + torch.randn(30, 3, generator=g)).repeat(3, 1)
    given = "30 data points in float32, each of them three times; 30 copies and 30 points 0.002 aside; k = 2"
    out = _number(name, fn, given, torch.cat([thrice[:30], thrice[:30] + 0.002]), thrice, 2)
    _is(name, "0.5: every radius is 0, and only the copies are inside", given, out, torch.tensor(0.5), EXACT)
    right(name, 5)


def _precision(samples: Tensor, data: Tensor, k: int) -> Tensor:
    radii = [sorted((a - b).norm().item() for j, b in enumerate(data) if j != i)[k - 1] for i, a in enumerate(data)]
    inside = [any((s - a).norm().item() <= r for a, r in zip(data, radii, strict=True)) for s in samples]
    return torch.tensor(sum(inside) / len(inside), dtype=F64)


def extrapolate(fn: Callable) -> None:
    """Exercise 1: fn(sizes, values) -> the height at 1 / n = 0 of the line through (1 / n, value), by least squares."""
    name, g = "extrapolate", torch.Generator().manual_seed(0)
    sizes = torch.tensor([100.0, 150.0, 400.0, 1000.0], dtype=F64)
    for value, slope in ((0.0, 180.0), (2.5, 60.0), (-0.1, 200.0)):
        given = f"values {value:g} + {slope:g} / n at n = {[int(n) for n in sizes]}"
        out = _number(name, fn, given, sizes, value + slope / sizes)
        _is(name, f"{value:g}, exactly: the values lie on the line", given, out, torch.tensor(value, dtype=F64), LINE)
    for count in (2, 5, 12):
        sizes = 100 + 900 * torch.rand(count, generator=g, dtype=F64)
        values = 0.7 + 90 / sizes + 0.1 * torch.randn(count, generator=g, dtype=F64)
        u = 1 / sizes
        slope = ((u - u.mean()) * (values - values.mean())).sum() / (u - u.mean()).square().sum()
        given = f"{count} sizes in no order, values with noise"
        out = _number(name, fn, given, sizes, values)
        _is(name, "the line of least squares", given, out, values.mean() - slope * u.mean(), FIT)
    right(name, 3)


def nearest_shifted(fn: Callable) -> None:
    """Exercise 5: fn(x, train, reach) -> (n,) distances to the nearest training image over all moves of x by up to
    `reach` pixels along each axis, with paper (-1) coming in."""
    name, g = "nearest_shifted", torch.Generator().manual_seed(0)
    train = -torch.ones(6, 1, 9, 8, dtype=F64)
    train[:, :, 3:6, 3:5] = torch.rand(6, 1, 3, 2, generator=g, dtype=F64)  # paper all round, three pixels wide
    x = -torch.ones(4, 1, 9, 8, dtype=F64)
    x[:, :, 2:7, 2:6] = torch.rand(4, 1, 5, 4, generator=g, dtype=F64)
    zero = torch.zeros(6, dtype=F64)
    out = call(name, fn, x, train, 0)
    is_tensor_like(name, "the distances", out, torch.empty(4, dtype=F64), "one number for each sample, in x's dtype")
    want = torch.stack([(x - t).square().sum((1, 2, 3)).sqrt() for t in train]).amin(0)
    is_close(name, "reach 0 is the plain nearest distance", "4 samples, 6 training images", out, want, NEAREST, 1e-6)
    for dy, dx in ((0, 1), (-1, 0), (1, 1), (1, -2), (-2, 2)):
        reach, given = max(abs(dy), abs(dx)), f"copies moved by {dy} rows and {dx} columns"
        moved = torch.roll(train, (dy, dx), (2, 3))  # paper all round: nothing of the picture leaves
        out = call(name, fn, moved, train, reach)
        is_close(name, f"0 with reach {reach}", given, out, zero, MOVES, 1e-6)
        if not (call(name, fn, moved, train, reach - 1) > 1e-3).all():
            fail(name, f"above 0 with reach {reach - 1}", given, "a distance of 0", "no move goes beyond `reach`")
    full = -1 + torch.rand(3, 2, 5, 6, generator=g, dtype=F64)  # up to the edge, so a part of it leaves when it moves
    real = torch.cat([_shifted(full[:1], 1, 0), _shifted(full[1:2], -1, 1), _shifted(full[2:], 2, -2)])
    for reach in (2, 1):
        given = f"training images that are images of x moved, with what left at the edge lost; reach {reach}"
        out, want = call(name, fn, full, real, reach), _nearest(full, real, reach)
        is_close(name, "the smallest distance over all moves of x", given, out, want, LEAVES, 1e-6)
    out = call(name, fn, full.float(), real.float(), 1)
    is_tensor_like(name, "the distances of images in float32", out, torch.empty(3), "the dtype of x, whatever it is")
    right(name, 5)


def _shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    h, w = x.shape[2:]
    moved = -torch.ones_like(x)
    to, come = (slice(max(0, dy), h + min(0, dy)), slice(max(0, -dy), h + min(0, -dy)))
    across, was = (slice(max(0, dx), w + min(0, dx)), slice(max(0, -dx), w + min(0, -dx)))
    moved[:, :, to, across] = x[:, :, come, was]
    return moved


def _nearest(x: Tensor, train: Tensor, reach: int) -> Tensor:
    found = []
    for dy, dx in itertools.product(range(-reach, reach + 1), repeat=2):
        moved = _shifted(x, dy, dx)
        found += [(moved - t).square().sum((1, 2, 3)).sqrt() for t in train]
    return torch.stack(found).amin(0)


def _number(name: str, fn: Callable, given: str, *args: Any) -> Tensor:
    out = call(name, fn, *args)
    if not isinstance(out, Tensor | SupportsFloat) or getattr(out, "shape", ()):
        came = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        fail(name, "one number comes back", given, came, ONE_NUMBER)
    return torch.as_tensor(out).double()


def _is(name: str, prop: str, given: str, out: Tensor, want: Tensor, hint: str) -> None:
    is_close(name, prop, given, out, want.double(), hint, 1e-6)
