"""Solutions of exercises 02 (Improved DDPM), right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td
from tinydiff import hybrid, likelihood

F64 = torch.float64

# ---- the decoder of pixels ---------------------------------------------------------------------------


def discretised(
    x, mean, std, levels, half=None, lower_open=True, upper_open=True, spread=lambda s: s, floor=1e-12, outer=None
):
    half = 1 / (levels - 1) if half is None else half(levels)
    low, high = outer(x) if outer else (x < -1 + half, x > 1 - half)
    cdf = lambda v: torch.special.ndtr((v - mean) / spread(std))  # noqa: E731
    upper = torch.where(high, 1.0, cdf(x + half)) if upper_open else cdf(x + half)
    lower = torch.where(low, 0.0, cdf(x - half)) if lower_open else cdf(x - half)
    return (upper - lower).clamp(min=floor).log()


def by_library(x, mean, std, levels):
    exact = likelihood.discretised_log_likelihood(x, mean, std**2, 1 / (levels - 1))  # the library goes on below 1e-12
    return exact.clamp(min=math.log(1e-12))


def by_distributions(x, mean, std, levels):
    """The edges of the bins from -inf to inf, then a difference."""
    gap = 2 / (levels - 1)
    edges = torch.linspace(-1 - gap / 2, 1 + gap / 2, levels + 1, dtype=x.dtype)
    edges[0], edges[-1] = -math.inf, math.inf
    k = ((x + 1) / gap).round().long()
    cdf = torch.distributions.Normal(mean, std).cdf
    mass = torch.where(k == levels - 1, 1.0, cdf(edges[k + 1].clamp(max=9))) - torch.where(
        k == 0, 0.0, cdf(edges[k].clamp(min=-9))
    )
    return torch.log(mass.clamp(min=1e-12))


DISCRETISED_MUTANTS = {
    "8-bit bins": (lambda *a: discretised(*a, half=lambda n: 1 / 255), "mass of its bin"),
    "a whole gap to each side": (lambda *a: discretised(*a, half=lambda n: 2 / (n - 1)), "mass of its bin"),
    "levels gaps": (lambda *a: discretised(*a, half=lambda n: 1 / n), "mass of its bin"),
    "closed below": (lambda *a: discretised(*a, lower_open=False), "all the mass below"),
    "closed above": (lambda *a: discretised(*a, upper_open=False), "all the mass above"),
    "variance for std": (lambda *a: discretised(*a, spread=lambda s: s**2), "mass of its bin"),
    "density times width": (
        lambda x, m, s, n: torch.distributions.Normal(m, s).log_prob(x) + math.log(2 / (n - 1)),
        "mass of its bin",
    ),
    "bits": (lambda *a: discretised(*a) / math.log(2), "mass of its bin"),
    "summed": (lambda *a: discretised(*a).sum(1), "has shape"),
    "no floor": (lambda *a: discretised(*a, floor=0.0), "is finite"),
    "a floor of 1e-30": (lambda *a: discretised(*a, floor=1e-30), "taken to be 1e-12"),
    "outer levels exactly": (lambda *a: discretised(*a, outer=lambda x: (x == -1, x == 1)), "the outer ones too"),
    "outer levels by 0.99": (lambda *a: discretised(*a, outer=lambda x: (x < -0.99, x > 0.99)), "the outer ones too"),
    "a floor of 1e-8": (lambda *a: discretised(*a, floor=1e-8), "next to no mass"),
    "float32": (lambda *a: discretised(*a).float(), "dtype"),
}

# ---- steps drawn by their losses ---------------------------------------------------------------------


def importance(history, uniform, size=lambda h: h.square().mean(1).sqrt(), scale=len):
    s, T = size(history), len(history)
    p = (1 - uniform) * s / s.sum() + uniform / T
    return p, 1 / (scale(history) * p)


def importance_by_norm(history, uniform):
    p = torch.nn.functional.normalize(torch.linalg.vector_norm(history, dim=1), p=1, dim=0)
    p = torch.lerp(p, torch.full_like(p, 1 / len(p)), uniform)
    return p, torch.full_like(p, 1 / len(p)) / p


def importance_by_library(history, uniform):
    T, n = history.shape
    by_size, t = hybrid.LossSecondMoment(T, n, uniform), torch.arange(1, T + 1, dtype=F64) / T
    for column in history.T:
        by_size.update(t, column)
    return by_size.p, by_size.weight(t)


IMPORTANCE_MUTANTS = {
    "of the mean": (lambda h, u: importance(h, u, lambda h: h.mean(1)), "smaller second moment"),
    "no root": (lambda h, u: importance(h, u, lambda h: h.square().mean(1)), "smaller second moment"),
    "uniform": (lambda h, u: importance(h, u, lambda h: torch.ones(len(h), dtype=F64)), "whose losses were 0"),
    "never mixed": (lambda h, u: importance(h, 0.0), "whose losses were 0"),
    "uniform added to each": (
        lambda h, u: ((p := importance(h, 0.0)[0] + u) / p.sum(), 1 / (len(h) * p)),
        "whose losses were 0|p sums to 1",
    ),
    "weights 1 / p": (lambda h, u: importance(h, u, scale=lambda h: 1), "weighted mean over p is the plain mean"),
    "no weights": (lambda h, u: (importance(h, u)[0], torch.ones(len(h), dtype=F64)), "is the plain mean"),
    "weights before mixing": (lambda h, u: (importance(h, u)[0], importance(h, 0.0)[1]), "is the plain mean"),
    "over the history": (
        lambda h, u: importance(h, u, lambda h: h.square().mean(0).sqrt()),
        "has shape|the function runs",
    ),
    "p only": (lambda h, u: importance(h, u)[0], "two things"),
}

EXERCISES = {
    "discretised_log_prob": (
        td.check.discretised_log_prob,
        [discretised, by_library, by_distributions],
        DISCRETISED_MUTANTS,
    ),
    "importance": (
        td.check.importance,
        [importance, importance_by_norm, importance_by_library],
        IMPORTANCE_MUTANTS,
    ),
}
