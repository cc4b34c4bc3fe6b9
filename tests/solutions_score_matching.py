"""Solutions of exercises 04, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td

grad = torch.autograd.grad


# ---- exercise 1 --------------------------------------------------------------------------------------


def energy_score(energy, x):
    x = x if x.requires_grad else x.detach().requires_grad_()
    return -grad(energy(x).sum(), x, create_graph=True)[0]


def energy_score_by_func(energy, x):
    """One datum at a time through torch.func, then stacked."""
    return torch.func.vmap(torch.func.grad(lambda v: -energy(v[None])[0]))(x)


def energy_score_on_the_input(energy, x):
    return -grad(energy(x.requires_grad_()).sum(), x, create_graph=True)[0]


ENERGY_MUTANTS = {
    "sign": (lambda e, x: -energy_score(e, x), "gradient in x of log p.*high energy is low probability"),
    "no create_graph": (
        lambda e, x: -grad(e(y := x.detach().requires_grad_()).sum(), y)[0],
        "a tensor without a graph",
    ),
    "detached": (lambda e, x: energy_score(e, x).detach(), "a tensor without a graph"),
    "gradient of the mean": (lambda e, x: energy_score(e, x) / len(x), "gradient in x of log p.*size of the batch"),
    "logarithm of the exponential": (
        lambda e, x: energy_score(lambda y: -torch.exp(-e(y)).log(), x),
        "a constant added to E changes nothing.*goes into Z",
    ),
    "no leaf": (
        lambda e, x: -grad(e(x).sum(), x, create_graph=True)[0],
        "does not require grad.*take a detached copy that does",
    ),
    "nothing comes back": (lambda e, x: None, "the score is a tensor.*NoneType"),
    "the first row for all": (lambda e, x: energy_score(e, x)[:1].expand_as(x), "gradient in x of log p"),
    "score of the batch's density": (lambda e, x: energy_score(e, x).sum(0), "has shape"),
    "the input is marked": (energy_score_on_the_input, "x.requires_grad is now True"),
    "always detached": (
        lambda e, x: -grad(e(y := x.detach().requires_grad_()).sum(), y, create_graph=True)[0],
        "does not depend on that x",
    ),
    "half": (lambda e, x: energy_score(e, x) / 2, "gradient in x of log p"),
    "gradient of the density, not of its logarithm": (
        lambda e, x: grad(
            torch.exp(-e(y := x if x.requires_grad else x.detach().requires_grad_())).sum(), y, create_graph=True
        )[0],
        "gradient in x of log p",
    ),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def trace_std(A, n):
    S = (A + A.T) / 2
    return (2 * (S.square().sum() - S.diagonal().square().sum()) / n).sqrt()


def trace_std_by_pairs(A, n):
    i, j = torch.triu_indices(*A.shape, offset=1)
    return float((A[i, j] + A[j, i]).norm()) / math.sqrt(n)


def off_diagonal(A):
    return A.square().sum() - A.diagonal().square().sum()


TRACE_MUTANTS = {
    "the Gaussian's": (lambda A, n: (2 * ((A + A.T) / 2).square().sum() / n).sqrt(), "a diagonal A"),
    "not symmetrised": (lambda A, n: (2 * off_diagonal(A) / n).sqrt(), r"\[\[0, 2\].*symmetric part"),
    "variance": (lambda A, n: trace_std(A, n) ** 2, "a symmetric A, n = 1.*that is the variance"),
    "divided by n": (lambda A, n: trace_std(A, 1) / n, "n = 16.*mean of n independent"),
    "n ignored": (lambda A, n: trace_std(A, 1), "n = 16"),
    "pairs counted once": (lambda A, n: trace_std(A, n) / math.sqrt(2), "a symmetric A.*each pair"),
    "pairs counted four times": (lambda A, n: trace_std(A, n) * math.sqrt(2), "a symmetric A.*each pair"),
    "diagonal kept, off-diagonal lost": (lambda A, n: (2 * A.diagonal().square().sum() / n).sqrt(), "a diagonal A"),
    "nothing comes back": (lambda A, n: None, "one number comes back.*NoneType"),
    "three times": (lambda A, n: trace_std(A, n) * 3, "a symmetric A.*which entries of A"),
    "a number for each row": (lambda A, n: A.sum(1), "has shape"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def fit_gaussian(x):
    m = x.mean(0)
    return m, torch.linalg.inv((x - m).T @ (x - m) / len(x))


def fit_gaussian_by_newton(x):
    """The slope in P is linear in P: P C = I; in m it is P P (m - mean)."""
    m = x.sum(0) / len(x)
    C = torch.atleast_2d(torch.cov(x.T, correction=0))
    return m, torch.linalg.solve(C, torch.eye(len(C), dtype=x.dtype))


FIT_MUTANTS = {
    "covariance for precision": (
        lambda x: (x.mean(0), torch.linalg.inv(fit_gaussian(x)[1])),
        "slope 0 in P.*grows with their width",
    ),
    "divided by n - 1": (lambda x: (x.mean(0), fit_gaussian(x)[1] * (len(x) - 1) / len(x)), "slope 0 in P.*n - 1"),
    "torch.cov for precision": (
        lambda x: (x.mean(0), torch.atleast_2d(torch.cov(x.T))),
        "in P.*grows with their width",
    ),
    "not centred": (lambda x: (0 * x[0], torch.linalg.inv(x.T @ x / len(x))), "slope 0 in m.*mean of x - m"),
    "diagonal only": (
        lambda x: (x.mean(0), torch.diag(1 / x.var(0, correction=0))),
        "slope 0 in P",
    ),
    "second moment about 0": (lambda x: (x.mean(0), torch.linalg.inv(x.T @ x / len(x))), "slope 0 in P.*not of x\\b"),
    "half forgotten": (lambda x: (x.mean(0), fit_gaussian(x)[1] / 2), "slope 0 in P.*derivatives in m and in P"),
    "no model": (lambda x: (x.mean(0), 0 * fit_gaussian(x)[1]), "slope 0 in P"),
    "median": (lambda x: (x.median(0).values, fit_gaussian(x)[1]), "slope 0 in m"),
    "P alone": (lambda x: fit_gaussian(x)[1], "a pair"),
    "m as a row": (lambda x: (x.mean(0, keepdim=True), fit_gaussian(x)[1]), "has shape"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def paired_loss(score, x, z, sigma):
    plus, minus = score(x + sigma * z), score(x - sigma * z)
    return ((plus**2 + minus**2) / 4 + z * (plus - minus) / (2 * sigma)).sum(1)


def paired_loss_in_one_call(score, x, z, sigma):
    ends = torch.stack([z, -z]) * sigma
    s = score((x + ends).flatten(0, 1)).reshape(2, *x.shape)
    return (s.square().sum((0, 2)) / 2 + torch.einsum("kbd,kbd->b", s, ends) / sigma**2) / 2


def naive(score, x, z, sigma):
    each = [((score(x + e * sigma * z) + e * z / sigma) ** 2).sum(1) / 2 for e in (1, -1)]
    return (each[0] + each[1]) / 2 - (z**2).sum(1) / (2 * sigma**2)


def paired_with(square=0.25, cross=0.5, sign=1.0, minus=-1.0, reduce=lambda v: v.sum(1)):
    def f(score, x, z, sigma):
        s, r = score(x + sigma * z), score(x + minus * sigma * z)
        return reduce(square * (s**2 + r**2) + sign * cross * z * (s - r) / sigma)

    return f


PAIRED_MUTANTS = {
    "big numbers subtracted": (naive, "float32.*no term may hold"),
    "cross term's sign": (paired_with(sign=-1.0), "mean of the denoising losses.*the sign of the terms"),
    "squares not halved": (paired_with(square=0.5), "mean of the denoising losses.*a factor"),
    "cross term twice": (paired_with(cross=1.0), "mean of the denoising losses.*a factor"),
    "sum of the two losses": (paired_with(square=0.5, cross=1.0), "mean of the denoising losses.*a factor"),
    "mean over dimensions": (paired_with(reduce=lambda v: v.mean(1)), "mean of the denoising.*sum over dimensions"),
    "x in place of x - sigma z": (paired_with(minus=0.0), "mean of the denoising losses.*scaled by sigma"),
    "the notebook's (6)": (
        lambda s, x, z, sigma: ((a := s(x + sigma * z)) ** 2 / 2 + z * (a - s(x)) / sigma).sum(1),
        "mean of the denoising losses.*use -z as well",
    ),
    "mean over the batch": (paired_with(reduce=lambda v: v.sum(1).mean()), "has shape"),
    "noise not scaled": (lambda s, x, z, sigma: paired_loss(s, x, z / sigma, sigma) * sigma, "mean of the denoising"),
    "the constant left in": (
        lambda s, x, z, sigma: paired_loss(s, x, z, sigma) + (z**2).sum(1) / (2 * sigma**2),
        "mean of the denoising losses.*still in it",
    ),
    "no graph": (lambda *a: paired_loss(*a).detach(), "a loss without a graph.*leave the graph whole"),
    "minus side without a graph": (
        lambda s, x, z, sigma: (
            ((s(x + sigma * z) ** 2 + s(x - sigma * z).detach() ** 2) / 4).sum(1)
            + (z * (s(x + sigma * z) - s(x - sigma * z).detach())).sum(1) / (2 * sigma)
        ),
        "gradient of the loss",
    ),
}

EXERCISES = {
    "energy_score": (td.check.energy_score, [energy_score, energy_score_by_func], ENERGY_MUTANTS),
    "trace_std": (td.check.trace_std, [trace_std, trace_std_by_pairs], TRACE_MUTANTS),
    "fit_gaussian": (td.check.fit_gaussian, [fit_gaussian, fit_gaussian_by_newton], FIT_MUTANTS),
    "paired_loss": (td.check.paired_loss, [paired_loss, paired_loss_in_one_call], PAIRED_MUTANTS),
}
