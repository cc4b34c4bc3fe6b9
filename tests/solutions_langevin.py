"""Solutions of exercises 03, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td

F64 = torch.float64

# ---- exercise 1 --------------------------------------------------------------------------------------


def step(score, x, eps, m, z):
    return x + eps / 2 * m * score(x) + (eps * m).sqrt() * z


def step_in_scaled_coordinates(score, x, eps, m, z):
    """x = sqrt(m) u, and an ordinary step of u."""
    u = x / m.sqrt()
    u = u + eps / 2 * m.sqrt() * score(u * m.sqrt()) + math.sqrt(eps) * z
    return u * m.sqrt()


OWN = torch.Generator().manual_seed(0)
STEP_MUTANTS = {
    "drift of the other convention": (lambda s, x, e, m, z: x + e * m * s(x) + (e * m).sqrt() * z, "settles at"),
    "noise of the other convention": (
        lambda s, x, e, m, z: x + e / 2 * m * s(x) + (2 * e * m).sqrt() * z,
        "settles at",
    ),
    "the other convention": (lambda s, x, e, m, z: x + e * m * s(x) + (2 * e * m).sqrt() * z, "settles at|half a step"),
    "variance for deviation": (lambda s, x, e, m, z: x + e / 2 * m * s(x) + e * m * z, "settles at"),
    "m not under the root": (
        lambda s, x, e, m, z: x + e / 2 * m * s(x) + math.sqrt(e) * m * z,
        r"settles at.*in coordinate [123]\n",
    ),
    "m in the noise alone": (lambda s, x, e, m, z: x + e / 2 * s(x) + (e * m).sqrt() * z, "settles"),
    "m in the drift alone": (lambda s, x, e, m, z: x + e / 2 * m * s(x) + math.sqrt(e) * z, "settles at"),
    "no noise": (lambda s, x, e, m, z: x + e / 2 * m * s(x), "settles at"),
    "downhill": (lambda s, x, e, m, z: x - e / 2 * m * s(x) + (e * m).sqrt() * z, "shrinks"),
    "score after the kick": (
        lambda s, x, e, m, z: x + (e * m).sqrt() * z + e / 2 * m * s(x + (e * m).sqrt() * z),
        "settles at|does not depend on x",
    ),
    "mean over coordinates": (lambda s, x, e, m, z: step(s, x, e, m.mean(), z), "settles"),
    "noise of its own": (
        lambda s, x, e, m, z: step(s, x, e, m, torch.randn(x.shape, generator=OWN, dtype=F64)),
        "same x and z.*z is given",
    ),
    "a number for each point": (lambda s, x, e, m, z: step(s, x, e, m, z).sum(1), "shape"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def steps(first, last, gamma, n, count=None, exponent=1.0):
    r = (last / first) ** (exponent / gamma)
    b = ((n if count is None else count) - 1) * r / (1 - r)
    return first * b**gamma * (b + torch.arange(n, dtype=F64)) ** -gamma


def steps_by_interpolation(first, last, gamma, n):
    return torch.linspace(first ** (-1 / gamma), last ** (-1 / gamma), n, dtype=F64) ** -gamma


STEPS_MUTANTS = {
    "n falls in place of n - 1": (lambda f, e, g, n: steps(f, e, g, n, n + 1), "first and the last"),
    "gamma forgotten in r": (lambda f, e, g, n: steps(f, e, g, n, exponent=g), "first and the last"),
    "gamma the wrong way up": (lambda f, e, g, n: steps(f, e, g, n, exponent=g * g), "first and the last"),
    "copied from the library": (
        lambda f, e, g, n: td.samplers.sgld_steps(*td.samplers.sgld_constants(f, e, g, n), g, n),
        r"ValueError: needs .* gamma in \(0\.5, 1\]",
    ),
    "geometric": (lambda f, e, g, n: f * (e / f) ** (torch.arange(n, dtype=F64) / (n - 1)), "grows evenly"),
    "linear": (lambda f, e, g, n: torch.linspace(f, e, n, dtype=F64), "grows evenly"),
    "b = 1 and clipped": (lambda f, e, g, n: (f * (1 + torch.arange(n, dtype=F64)) ** -g).clamp(min=e), "first and"),
    "gamma = 1 always": (lambda f, e, g, n: steps(f, e, 1.0, n), "grows evenly"),
    "one too many": (lambda f, e, g, n: steps(f, e, g, n + 1), "shape"),
    "float32": (lambda f, e, g, n: steps(f, e, g, n).float(), "dtype"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def regression(theta, X, y, total, noise, prior):
    off = y - (X @ theta[:, :, None])[:, :, 0]
    return total / X.shape[1] * (X * off[:, :, None]).sum(1) / noise - theta / prior


def regression_by_autograd(theta, X, y, total, noise, prior):
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        off = y - torch.einsum("cnd,cd->cn", X, theta)
        log_p = -(theta**2).sum() / (2 * prior) - total * (off**2).mean(1).sum() / (2 * noise)
        return torch.autograd.grad(log_p, theta)[0]


def terms(theta, X, y):
    return (X * (y - (X @ theta[:, :, None])[:, :, 0])[:, :, None]).sum(1)


REGRESSION_MUTANTS = {
    "N/n forgotten": (lambda t, X, y, N, v, p: terms(t, X, y) / v - t / p, "on average.*what multiplies it"),
    "mean of the batch": (lambda t, X, y, N, v, p: terms(t, X, y) / X.shape[1] / v - t / p, "with all the data"),
    "N/n on the prior, too": (
        lambda t, X, y, N, v, p: N / X.shape[1] * (terms(t, X, y) / v - t / p),
        "on average",
    ),
    "N in place of N/n": (lambda t, X, y, N, v, p: N * terms(t, X, y) / v - t / p, "with all the data"),
    "no prior": (lambda t, X, y, N, v, p: N / X.shape[1] * terms(t, X, y) / v, "with all the data"),
    "prior's variance forgotten": (lambda t, X, y, N, v, p: N / X.shape[1] * terms(t, X, y) / v - t, "all the data"),
    "noise's variance forgotten": (lambda t, X, y, N, v, p: N / X.shape[1] * terms(t, X, y) - t / p, "all the data"),
    "minus the gradient": (lambda *a: -regression(*a), "with all the data.*look at the signs"),
    "one batch for all chains": (
        lambda t, X, y, N, v, p: regression(t, X[:1].expand_as(X), y[:1].expand_as(y), N, v, p),
        "on average",
    ),
    "summed over chains": (lambda *a: regression(*a).sum(0), "shape"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def accept(log_p, score, x, y, a, drift=1.0, spread=4.0, back=lambda score, x, y: score(y)):
    there, home = y - x - drift * a * score(x), x - y - drift * a * back(score, x, y)
    return (log_p(y) - log_p(x) + (there**2 - home**2).sum(1) / (spread * a)).exp().clamp(max=1)


def accept_by_torch(log_p, score, x, y, a):
    def log_q(to, start):
        return torch.distributions.Normal(start + a * score(start), (2 * a) ** 0.5).log_prob(to).sum(1)

    return torch.exp(torch.clamp(log_p(y) + log_q(x, y) - log_p(x) - log_q(y, x), max=0))


def barker(*a):
    """Keeps p as well, but accepts less."""
    log_p, score, x, y, size = a
    there, home = y - x - size * score(x), x - y - size * score(y)
    return torch.sigmoid(log_p(y) - log_p(x) + (there**2 - home**2).sum(1) / (4 * size))


def densities_first(log_p, score, x, y, a):
    there, home = y - x - a * score(x), x - y - a * score(y)
    q = ((there**2 - home**2).sum(1) / (4 * a)).exp()
    return (log_p(y).exp() / log_p(x).exp() * q).clamp(max=1)


ACCEPT_MUTANTS = {
    "symmetric proposals": (lambda p, s, x, y, a: (p(y) - p(x)).exp().clamp(max=1), r"p\(x\) q\(y\|x\)"),
    "the first convention": (lambda *v: accept(*v, drift=0.5, spread=2.0), r"p\(x\) q\(y\|x\)"),
    "drift of the first convention": (lambda *v: accept(*v, drift=0.5), r"p\(x\) q\(y\|x\)"),
    "variance a": (lambda *v: accept(*v, spread=2.0), r"p\(x\) q\(y\|x\)"),
    "way back with the score at x": (lambda *v: accept(*v, back=lambda s, x, y: s(x)), r"p\(x\) q\(y\|x\)"),
    "proposals exchanged": (lambda *v: accept(*v, spread=-4.0), r"p\(x\) q\(y\|x\)"),
    "ratio the wrong way up": (lambda p, s, x, y, a: accept(p, s, y, x, a), r"p\(x\) q\(y\|x\)"),
    "not cut at 1": (lambda *v: accept(*v) / accept(v[0], v[1], v[3], v[2], v[4]), "lies in"),
    "Barker's rule": (barker, "one is always accepted"),
    "exp before the difference": (densities_first, "is a number"),
    "no exp": (lambda *v: accept(*v).log().clamp(max=0), "lies in.*exp last"),
    "always": (lambda p, s, x, y, a: torch.ones_like(p(x)), r"p\(x\) q\(y\|x\)"),
    "for each coordinate": (lambda p, s, x, y, a: torch.ones_like(x), "sum over the coordinates"),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def escape(x, log_p, i, j, factor=2.0):
    h, p = x[1] - x[0], (log_p - log_p.max()).exp()
    return factor * (p.cumsum(0) / p)[i:j].sum() * h**2


def escape_by_trapezoids(x, log_p, i, j):
    p = (log_p - log_p.mean()).exp()
    inner = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(p, x)])
    return float(2 * torch.trapezoid(inner[i : j + 1] / p[i : j + 1], x[i : j + 1]))


def below(x, log_p):
    return (log_p - log_p.max()).exp().cumsum(0) * (x[1] - x[0])


ESCAPE_MUTANTS = {
    "the other convention's clock": (lambda *a: escape(*a, factor=1.0), "no slope anywhere"),
    "from the wall": (lambda x, p, i, j: escape(x, p, 0, j), "from 0.5 to 2"),
    "mass from the start only": (lambda x, p, i, j: escape(x[i:], p[i:], 0, j - i), "from 0.5 to 2"),
    "to the end of the grid": (lambda x, p, i, j: escape(x, p, i, len(x)), "from 0.5 to 1.5.*from where to where"),
    "no inner sum": (
        lambda x, p, i, j: 2 * (1 / (p - p.max()).exp())[i:j].sum() * (x[1] - x[0]),
        "no slope anywhere",
    ),
    "multiplied by p": (
        lambda x, p, i, j: 2 * (below(x, p) * (p - p.max()).exp())[i:j].sum() * (x[1] - x[0]),
        "backward equation",
    ),
    "p not divided by": (lambda x, p, i, j: 2 * below(x, p)[i:j].sum() * (x[1] - x[0]), "backward equation"),
    "overflow": (
        lambda x, p, i, j: 2 * ((p.exp().cumsum(0) / p.exp())[i:j]).sum() * (x[1] - x[0]) ** 2,
        "only ratios",
    ),
    "a time for each place": (lambda x, p, i, j: 2 * below(x, p)[i:j], "one number"),
}

EXERCISES = {
    "preconditioned_step": (td.check.preconditioned_step, [step, step_in_scaled_coordinates], STEP_MUTANTS),
    "decaying_steps": (td.check.decaying_steps, [steps, steps_by_interpolation], STEPS_MUTANTS),
    "minibatch_score": (td.check.minibatch_score, [regression, regression_by_autograd], REGRESSION_MUTANTS),
    "langevin_accept": (td.check.langevin_accept, [accept, accept_by_torch], ACCEPT_MUTANTS),
    "escape_time": (td.check.escape_time, [escape, escape_by_trapezoids], ESCAPE_MUTANTS),
}
