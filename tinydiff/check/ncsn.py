"""Checks of exercises 05: noise levels, the floor of the loss, inpainting. Each compares with another computation."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinydiff.check.core import STANDARD_ERRORS, CheckFailed, call, fail, is_close, is_tensor_like, right

ENDS = "both ends are levels: the first is sigma_1 and the last is sigma_L"
EVEN = "levels fall by one factor throughout; equal differences are another ladder"
COUNT = "L levels have L - 1 ratios between them; round their number to the nearest whole one"
FLOOR = (
    "the best score is that of the smoothed data, N(m, s^2 + sigma^2) in each coordinate; x - m and z are correlated, "
    "so mind the product when you square the sum"
)
HALF = "everything but a factor 2 is there: the loss has a factor 1/2"
SUM = "right for one coordinate only: the loss is summed over the dim coordinates"
ZERO = "s may be 0: multiply out, so that nothing is divided by s; what is left to learn of data that are one point?"
DIGITS = "right to a few digits only: halve the bracket until gamma has ten, fifty times from a bracket of 1"
PASTE = "the known part is noised to sigma once, with z0, and put in place after every step; mask is True where known"
STEP = "step a sigma^2 / sigma_last^2; x + step score + sqrt(2 step) z, for what is not known"
OVERLAP = "the left side falls as gamma grows; does your bracket hold the answer, and is each Phi that of the normal?"


def ladder(fn: Callable) -> None:
    """Exercise 1: fn(first, last, gamma) -> (L,) levels, float64, in equal ratios as near to gamma as can be."""
    name = "ladder"
    for first, last, gamma, n in (
        (8.0, 0.5, 2.0, 5),
        (50.0, 0.01, 1.0376, 232),
        (1.0, 0.01, 1.67, 10),
        (5.0, 1.0, 1.3, 7),
    ):
        out = call(name, fn, first, last, gamma)
        given = f"first = {first:g}, last = {last:g}, gamma = {gamma:g}"
        if isinstance(out, Tensor) and out.ndim == 1 and len(out) != n:
            fail(name, f"the ladder has {n} levels", given, f"shape {tuple(out.shape)}", COUNT)
        is_tensor_like(name, f"the ladder ({given})", out, torch.empty(n, dtype=torch.float64), COUNT)
        is_close(name, "it starts at first", given, out[:1], torch.tensor([first]).double(), ENDS, 1e-9)
        is_close(name, "it ends at last", given, out[-1:], torch.tensor([last]).double(), ENDS, 1e-9)
        ratios = out[:-1] / out[1:]
        is_close(name, "all ratios are equal", given, ratios, ratios.mean().expand_as(ratios), EVEN, 1e-9)
    right(name, 4)


def loss_floor(fn: Callable) -> None:
    """Exercise 2: fn(s, sigma, dim) -> the least NCSN loss at level sigma, for N(m, s^2) in dim coordinates."""
    name, n = "loss_floor", 200_000
    g = torch.Generator().manual_seed(0)
    for s, sigma, dim in ((1.0, 1.0, 1), (0.5, 0.1, 1), (0.5, 3.0, 2), (2.0, 0.7, 3), (0.0, 0.4, 2)):
        given = f"s = {s:g}, sigma = {sigma:g}, dim = {dim}"
        try:
            out = call(name, fn, s, sigma, dim)
        except CheckFailed as error:
            if isinstance(error.__context__, ZeroDivisionError):
                fail(name, "the function runs", given, "ZeroDivisionError", ZERO)
            raise
        value = torch.as_tensor(out, dtype=torch.float64)
        if value.ndim:
            fail(name, "the answer is one number", given, f"shape {tuple(value.shape)}", "return a number, not a batch")
        z = torch.randn(n, dim, generator=g, dtype=torch.float64)
        x = s * torch.randn(n, dim, generator=g, dtype=torch.float64) + sigma * z
        # the least squares of z on x, whatever the score's formula: the residual is the floor
        slope = (z * x).sum() / (x * x).sum()
        draws = ((z - slope * x) ** 2).sum(1) / 2
        least, margin = draws.mean().item(), STANDARD_ERRORS * draws.std().item() / n**0.5 + 1e-9
        if not abs(value.item() - least) <= margin:
            hint = FLOOR
            if s == 0:
                hint = ZERO
            elif abs(value.item() - 2 * least) <= 2 * margin:
                hint = HALF
            elif dim > 1 and abs(dim * value.item() - least) <= margin:
                hint = SUM
            prop = f"the least loss that {n:,} draws allow: {least:.4f}, give or take {margin:.4f}"
            fail(name, prop, given, f"{value.item():.4f}", hint)
    # the draws leave a percent or so of room; at s = sigma half of z's variance is seen, and this is exact
    value = float(call(name, fn, 0.7, 0.7, 4))
    if not abs(value - 1.0) <= 1e-6:
        prop, given = "half of the variance of z is left where s = sigma", "s = 0.7, sigma = 0.7, dim = 4"
        fail(name, prop, given, f"a loss of {value:.6f}", "nearly right: look for a stray factor")
    right(name, 3)


def fill_level(fn: Callable) -> None:
    """Exercise 3: fn(score, x, known, mask, sigma, sigma_last, a, z0, zs) -> x after one level of inpainting.

    score(x) is the score at this level; mask (b, d) is True where `known` is known; z0 (b, d) is the noise for what is
    known, zs (T, b, d) that of the T steps, in NCSNv2's convention.
    """
    name = "fill_level"
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    x, known, z0, zs = draw(5, 3), draw(5, 3), draw(5, 3), draw(4, 5, 3)
    mask = torch.tensor([[True, False, False]] * 3 + [[False, True, True]] * 2)
    sigma, last, a = 0.6, 0.2, 0.004
    seen: list[Tensor] = []

    def score(x: Tensor) -> Tensor:  # couples the coordinates, so that what is pasted matters for the rest
        seen.append(x.clone())
        return -(x + 0.5 * x.roll(1, -1)) / (1 + sigma**2)

    out = call(name, fn, score, x, known, mask, sigma, last, a, z0, zs)
    given = f"x (5, 3), sigma = {sigma}, sigma_last = {last}, a = {a}, 4 steps"
    is_tensor_like(name, "x", out, x, "return x after the last step of the level")
    want_known = known + sigma * z0
    is_close(name, "the known part is known + sigma z0", given, out[mask], want_known[mask], PASTE, 1e-9)
    if len(seen) != len(zs):
        fail(
            name,
            "the score is asked once a step",
            given,
            f"{len(seen)} calls for {len(zs)} steps",
            "one step for each z",
        )
    is_close(name, "the first step starts from x", given, seen[0], x, "nothing is pasted before the first step", 1e-9)
    for k in range(1, len(zs)):
        part = seen[k][mask]
        is_close(name, f"in step {k + 1} the score sees the known part", given, part, want_known[mask], PASTE, 1e-9)
    # each step of the free part, read off what the score saw: (drift, noise) from the increments
    for k, (before, after) in enumerate(zip(seen, [*seen[1:], out], strict=True)):
        moved = (after - before)[~mask]
        pull = (-(before + 0.5 * before.roll(1, -1)) / (1 + sigma**2))[~mask]
        parts = torch.stack([pull, zs[k][~mask]], 1)
        drift, noise = torch.linalg.lstsq(parts, moved[:, None]).solution[:, 0]
        ratio = torch.tensor([a * 9.0], dtype=torch.float64)
        is_close(name, f"step {k + 1} moves the rest by step x score", given, drift[None], ratio, STEP, 1e-6)
        is_close(name, f"step {k + 1} adds sqrt(2 step) z", given, noise[None] ** 2, 2 * ratio, STEP, 1e-6)
    right(name, 5)


def overlap_ratio(fn: Callable) -> None:
    """Exercise 4: fn(dim, overlap) -> gamma of technique 2; dim at least 5, overlap in (0, 0.997)."""
    name = "overlap_ratio"
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    for dim, overlap in ((64, 0.5), (784, 0.5), (3072, 0.5667), (5, 0.5), (64, 0.95), (12_288, 0.05)):
        out = call(name, fn, dim, overlap)
        given = f"dim = {dim}, overlap = {overlap}"
        gamma = torch.as_tensor(out, dtype=torch.float64)
        if gamma.ndim or not gamma > 1:
            fail(name, "gamma is one number above 1", given, f"{out}", "levels fall, and sigma_{i-1} / sigma_i = gamma")
        shift = math.sqrt(2 * dim) * (gamma - 1)
        came = normal.cdf(shift + 3 * gamma) - normal.cdf(shift - 3 * gamma)
        if not abs(came - overlap) <= 1e-9:  # gamma to ten digits or so
            fail(
                name,
                f"technique 2's equation holds: its left side is {overlap} (to one in a billion)",
                given,
                f"gamma = {gamma.item():.10f}, where the left side is {came.item():.10f}",
                DIGITS if abs(came - overlap) <= 1e-4 else OVERLAP,
            )
    right(name, 2)
