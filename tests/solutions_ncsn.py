"""Solutions of exercises 05, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td
from tinydiff import ncsn

F64 = torch.float64

# ---- exercise 1 --------------------------------------------------------------------------------------


def ladder(first, last, gamma):
    ratios = round(math.log(first / last) / math.log(gamma))
    return first * (last / first) ** (torch.arange(ratios + 1, dtype=F64) / ratios)


def ladder_by_library(first, last, gamma):
    S = td.VE(last, first)
    return S.sigma(td.grid(S, ncsn.ladder_length(first, last, gamma))[:-1])


LADDER_MUTANTS = {
    "one level short": (lambda f, la, g: ladder(f, la, g)[:-1], "shape.*L - 1 ratios"),
    "rounded down": (
        lambda f, la, g: torch.logspace(
            math.log10(f), math.log10(la), 1 + int(math.log(f / la) / math.log(g)), dtype=F64
        ),
        "first = .*gamma = .*shape",
    ),
    "linear": (lambda f, la, g: torch.linspace(f, la, len(ladder(f, la, g)), dtype=F64), "all ratios are equal"),
    "upside down": (lambda f, la, g: ladder(f, la, g).flip(0), "it starts at first"),
    "misses the end": (lambda f, la, g: f * g ** -torch.arange(len(ladder(f, la, g)), dtype=F64), "it ends at last"),
    "variances": (lambda f, la, g: ladder(f, la, g) ** 2, "it starts at first"),
    "float32": (lambda f, la, g: ladder(f, la, g).float(), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def loss_floor(s, sigma, dim):
    return dim / 2 * s**2 / (s**2 + sigma**2)


def loss_floor_by_ratio(s, sigma, dim):
    return torch.tensor(dim) / 2 * (1 - sigma**2 / (s**2 + sigma**2))


def loss_floor_by_score(s, sigma, dim):
    length = torch.tensor(dim / (s**2 + sigma**2))  # E |score|^2
    return (dim - sigma**2 * length) / 2


FLOOR_MUTANTS = {
    "zero": (lambda s, g, d: 0.0, "the least loss"),
    "no half": (lambda s, g, d: 2 * loss_floor(s, g, d), "give or take.*factor 1/2"),
    "mean over coordinates": (lambda s, g, d: loss_floor(s, g, 1), "the least loss.*summed over the dim"),
    "a percent too much": (lambda s, g, d: 1.01 * loss_floor(s, g, d), "half of the variance.*stray factor"),
    "covariance forgotten": (lambda s, g, d: d / 2 * (1 + g**2 / (s**2 + g**2)), "the least loss.*correlated"),
    "divides by s": (lambda s, g, d: d / 2 / (1 + g**2 / s**2), "ZeroDivisionError.*multiply out"),
    "not 0 for one point": (lambda s, g, d: loss_floor(s, g, d) if s else 0.1, "multiply out"),
    "the other way round": (lambda s, g, d: d / 2 * g**2 / (s**2 + g**2), "the least loss"),
    "standard deviations": (lambda s, g, d: d / 2 * s / (s + g), "the least loss"),
    "not weighted": (lambda s, g, d: loss_floor(s, g, d) / g**2, "the least loss"),
    "score of the clean data": (lambda s, g, d: (d - g**2 * d / s**2) / 2 if s else 0.0, "the least loss"),
    "one for each coordinate": (lambda s, g, d: torch.full((d,), loss_floor(s, g, 1)), "one number"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def fill_level(score, x, known, mask, sigma, sigma_last, a, z0, zs):
    step = a * sigma**2 / sigma_last**2
    noised = known + sigma * z0
    for z in zs:
        x = x + step * score(x) + (2 * step) ** 0.5 * z
        x = torch.where(mask, noised, x)
    return x


def fill_level_by_products(score, x, known, mask, sigma, sigma_last, a, z0, zs):
    m, eps = mask.to(x), 2 * a * (sigma / sigma_last) ** 2
    for k in range(len(zs)):
        moved = x + eps / 2 * score(x) + math.sqrt(eps) * zs[k]
        x = (1 - m) * moved + m * (known + sigma * z0)
    return x


def fill_with(noise=1.0, drift=1.0, level=2, paste="each", invert=False, fresh=False):
    def f(score, x, known, mask, sigma, sigma_last, a, z0, zs):
        mask = ~mask if invert else mask
        step = a * (sigma / sigma_last) ** level
        for k, z in enumerate(zs):
            noised = known + sigma * (zs[k] if fresh else z0)
            if paste == "before":
                x = torch.where(mask, noised, x)
            x = x + drift * step * score(x) + (2 * noise * step) ** 0.5 * z
            if paste == "each" or (paste == "end" and k == len(zs) - 1):
                x = torch.where(mask, noised, x)
        return x

    return f


def fill_clean(score, x, known, mask, sigma, sigma_last, a, z0, zs):
    return fill_level(score, x, known, mask, sigma, sigma_last, a, 0 * z0, zs)


def fill_in_place(score, x, known, mask, sigma, sigma_last, a, z0, zs):
    x[mask] = (known + sigma * z0)[mask]
    return fill_level(score, x, known, mask, sigma, sigma_last, a, z0, zs)


FILL_MUTANTS = {
    "NCSN's convention": (fill_with(noise=0.5, drift=0.5), "moves the rest"),
    "noise without the 2": (fill_with(noise=0.5), "adds sqrt"),
    "step not scaled": (fill_with(level=0), "moves the rest"),
    "scaled by sigma, not its square": (fill_with(level=1), "moves the rest"),
    "score subtracted": (fill_with(drift=-1.0), "moves the rest"),
    "pasted at the end only": (fill_with(paste="end"), "the score sees the known part"),
    "pasted before the step only": (fill_with(paste="before"), "the known part is known"),
    "mask upside down": (fill_with(invert=True), "the known part is known.*True where known"),
    "noised afresh": (fill_with(fresh=True), "the known part is known"),
    "known part without noise": (fill_clean, "the known part is known"),
    "changed in place": (fill_in_place, "changed in place"),
    "one step too few": (lambda *a: fill_level(*a[:-1], a[-1][:-1]), "once a step"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def side(dim, gamma, k=3.0):
    phi = lambda v: (1 + math.erf(v / math.sqrt(2))) / 2  # noqa: E731
    shift = math.sqrt(2 * dim) * (gamma - 1)
    return phi(shift + k * gamma) - phi(shift - k * gamma)


def overlap_ratio(dim, overlap, f=side, n=100):
    low, high = 1.0, 1000.0
    for _ in range(n):
        middle = (low + high) / 2
        low, high = (middle, high) if f(dim, middle) > overlap else (low, middle)
    return middle


OVERLAP_MUTANTS = {
    "dim, not 2 dim": (lambda d, c: overlap_ratio(d, c, lambda n, g: side(n / 2, g)), "equation holds"),
    "shells of two deviations": (lambda d, c: overlap_ratio(d, c, lambda n, g: side(n, g, 2.0)), "equation holds"),
    "bracket too small": (lambda d, c: min(overlap_ratio(d, c), 1.2), "equation holds.*bracket"),
    "wrong half kept": (lambda d, c: overlap_ratio(d, c, lambda n, g: 1 - side(n, g)), "."),
    "not the normal's Phi": (
        lambda d, c: overlap_ratio(d, c, lambda n, g: side(n / 2, (g - 1) / 2**0.5 + 1)),
        "equation holds",
    ),
    "three digits": (lambda d, c: round(overlap_ratio(d, c), 3), "equation holds"),
    "25 bisections": (lambda d, c: overlap_ratio(d, c, n=25), "equation holds.*few digits"),
    "one over gamma": (lambda d, c: 1 / overlap_ratio(d, c), "above 1"),
    "gamma - 1": (lambda d, c: overlap_ratio(d, c) - 1, "."),
}

EXERCISES = {
    "ladder": (td.check.ladder, [ladder, ladder_by_library], LADDER_MUTANTS),
    "loss_floor": (td.check.loss_floor, [loss_floor, loss_floor_by_score, loss_floor_by_ratio], FLOOR_MUTANTS),
    "fill_level": (td.check.fill_level, [fill_level, fill_level_by_products], FILL_MUTANTS),
    "overlap_ratio": (td.check.overlap_ratio, [overlap_ratio, ncsn.ladder_ratio], OVERLAP_MUTANTS),
}
