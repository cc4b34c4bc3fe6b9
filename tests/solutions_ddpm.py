"""Solutions of exercises 01, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td

F64 = torch.float64


def abar(betas):
    """(T + 1,): entry k is alpha-bar after k steps."""
    return torch.cat([torch.ones(1, dtype=betas.dtype), (1 - betas).cumprod(0)])


def column(v, x):
    return v.to(x)[:, None]


# ---- exercise 1 --------------------------------------------------------------------------------------


def jump(x, j, k, betas):
    a = column(abar(betas)[k] / abar(betas)[j], x)
    return a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)


def jump_by_steps(x, j, k, betas):
    x = x.clone()
    for step in range(int(j.min()) + 1, int(k.max()) + 1):
        go, b = column((j < step) & (step <= k), x).bool(), betas[step - 1].to(x)
        x = torch.where(go, (1 - b).sqrt() * x + b.sqrt() * torch.randn_like(x), x)
    return x


def variant(ratio=None, scale=lambda a: (1 - a).sqrt(), noise=torch.randn_like):
    def f(x, j, k, betas):
        a = column(ratio(j, k, betas) if ratio else abar(betas)[k] / abar(betas)[j], x)
        return a.sqrt() * x + scale(a) * noise(x)

    return f


def jump_in_place(x, j, k, betas):
    a = column(abar(betas)[k] / abar(betas)[j], x)
    x *= a.sqrt()
    return x + (1 - a).sqrt() * torch.randn_like(x)


JUMP_MUTANTS = {
    "product from step 1, j ignored": (
        variant(lambda j, k, b: abar(b)[k]),
        "j = 20.*component 0 of x_k has mean|has mean",
    ),
    "product to T": (variant(lambda j, k, b: abar(b)[-1] / abar(b)[j]), "has mean"),
    "step j counted too": (variant(lambda j, k, b: abar(b)[k] / abar(b)[(j - 1).clamp(min=0)]), "has mean"),
    "step k left out": (variant(lambda j, k, b: abar(b)[k - 1] / abar(b)[j]), "has mean|has standard deviation"),
    "variance for standard deviation": (variant(scale=lambda a: 1 - a), "standard deviation"),
    "signal plus noise of share 1": (variant(scale=lambda a: torch.ones_like(a)), "standard deviation"),
    "uniform noise": (variant(noise=lambda x: (2 * torch.rand_like(x) - 1) * 3**0.5), "kurtosis"),
    "positive noise": (variant(noise=torch.rand_like), "has mean"),
    "one noise for the batch": (variant(noise=lambda x: torch.randn(1, 3).expand_as(x)), "has mean|independent"),
    "one noise for all components": (
        variant(noise=lambda x: torch.randn(len(x), 1).expand_as(x)),
        "components is independent",
    ),
    "first j and k for all": (
        variant(lambda j, k, b: (abar(b)[k[0]] / abar(b)[j[0]]).expand(len(j))),
        "mixes several j and k",
    ),
    "input changed": (jump_in_place, "changed in place"),
    "coefficient not made a column": (lambda x, j, k, b: x.T.sum(0) + abar(b)[k].float(), "shape"),
    "float64 comes back": (lambda x, j, k, b: jump(x.double(), j, k, b), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def reverse_mean(x_k, eps, k, betas):
    before, now, beta = (column(v, x_k) for v in (abar(betas)[k - 1], abar(betas)[k], betas[k - 1]))
    mean = (x_k - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()
    return mean, beta * (1 - before) / (1 - now)


def reverse_mean_by_library(x_k, eps, k, betas):
    S = td.DiscreteVP(betas)
    c_k, c_j = S(k / len(betas), like=x_k), S((k - 1) / len(betas), like=x_k)
    q = td.posterior(c_k, c_j)
    x0 = td.decode(td.targets.eps, c_k, x_k, eps).x0
    return q.a_x0 * x0 + q.a_x * x_k, q.var.expand_as(x_k)


def reverse_with(
    alpha=lambda a, b, k: 1 - b[k - 1],
    noise=lambda a, b, k: b[k - 1],
    root=lambda v: v.sqrt(),
    var=lambda a, b, k: b[k - 1] * (1 - a[k - 1]) / (1 - a[k]),
    sign=-1.0,
):
    def f(x_k, eps, k, betas):
        a = abar(betas)
        one, two, now, v = (column(w, x_k) for w in (alpha(a, betas, k), noise(a, betas, k), a[k], var(a, betas, k)))
        return (x_k + sign * two / root(1 - now) * eps) / one.sqrt(), v

    return f


REVERSE_MUTANTS = {
    "root of alpha-bar_k where 1 - beta_k belongs": (reverse_with(alpha=lambda a, b, k: a[k]), "mean of q"),
    "eps added": (reverse_with(sign=1.0), "mean of q"),
    "root of beta": (reverse_with(noise=lambda a, b, k: b[k - 1].sqrt()), "mean of q"),
    "no root under eps": (reverse_with(root=lambda v: v), "mean of q"),
    "beta for beta-tilde": (reverse_with(var=lambda a, b, k: b[k - 1]), "variance of q"),
    "alpha-bar of k + 1": (
        reverse_with(var=lambda a, b, k: b[k - 1] * (1 - a[k]) / (1 - a[k - 1]).clamp(min=1e-9)),
        "variance of q",
    ),
    "betas[k]": (reverse_with(noise=lambda a, b, k: b[k.clamp(max=len(b) - 1)]), "mean of q"),
    "standard deviation returned": (lambda *a: (reverse_mean(*a)[0], reverse_mean(*a)[1].sqrt()), "it is a variance"),
    "x0 returned": (
        lambda x, e, k, b: (
            (x - column((1 - abar(b)[k]).sqrt(), x) * e) / column(abar(b)[k].sqrt(), x),
            reverse_mean(x, e, k, b)[1],
        ),
        "mean of q",
    ),
    "variance of shape (b,)": (lambda *a: (reverse_mean(*a)[0], reverse_mean(*a)[1][:, 0]), r"\(b,\) coefficient"),
    "coefficients not made columns": (
        lambda x, e, k, b: (x.expand(-1, 2) * b[k - 1], reverse_mean(x, e, k, b)[1]),
        "the function runs.*RuntimeError",
    ),
    "mean only": (lambda *a: reverse_mean(*a)[0], "a pair"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def cosine_betas(T, power=2, clip=0.999, shift=0, s=0.008):
    k = torch.arange(T + 1, dtype=F64) + shift
    f = ((k / T + s) / (1 + s) * math.pi / 2).cos() ** power
    return (1 - f[1:] / f[:-1]).clamp(max=clip)


COSINE_MUTANTS = {
    "no square": (lambda T: cosine_betas(T, power=1), "a little below 1/2"),
    "no clip": (lambda T: cosine_betas(T, clip=2.0), r"lies in \(0, 0.999\]"),
    "one step late": (lambda T: cosine_betas(T, shift=1), "."),
    "one step early": (lambda T: cosine_betas(T, shift=-1), "."),
    "no offset": (lambda T: cosine_betas(T, s=0.0), "is s = 0.008 in it"),
    "clipped at DDPM's 0.02": (lambda T: cosine_betas(T, clip=0.02), "."),
    "a beta too many": (lambda T: cosine_betas(T + 1), "shape.*one beta a step"),
    "alpha-bar returned": (lambda T: (1 - cosine_betas(T)).cumprod(0), "."),
    "float32": (lambda T: cosine_betas(T).float(), "dtype"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def skip_step(x, eps, k, j, betas, z):
    a_k, a_j = abar(betas)[k], abar(betas)[j]
    alpha, beta = a_k / a_j, 1 - a_k / a_j
    x0 = (x - (1 - a_k).sqrt() * eps) / a_k.sqrt()
    mean = (a_j.sqrt() * beta * x0 + alpha.sqrt() * (1 - a_j) * x) / (1 - a_k)
    return mean + (beta * (1 - a_j) / (1 - a_k)).sqrt() * z


def skip_step_by_eps(x, eps, k, j, betas, z):
    a_k, a_j = abar(betas)[k], abar(betas)[j]
    alpha = a_k / a_j
    mean = (x - (1 - alpha) / (1 - a_k).sqrt() * eps) / alpha.sqrt()
    return mean + ((1 - alpha) * (1 - a_j) / (1 - a_k)).sqrt() * z


def skip_with(
    alpha=lambda a, b, k, j: a[k] / a[j],
    var=lambda be, aj, ak: be * (1 - aj) / (1 - ak),
    root=True,
    sign=1.0,
    quiet=True,
):
    def f(x, eps, k, j, betas, z):
        a = abar(betas)
        al = alpha(a, betas, k, j)
        mean = (x - sign * (1 - al) / (1 - a[k]).sqrt() * eps) / al.sqrt()
        v = var(1 - al, a[j], a[k])
        if j == 0 and not quiet:
            v = 1 - al
        return mean + (v.sqrt() if root else v) * z

    return f


SKIP_MUTANTS = {
    "beta_k of the long chain": (skip_with(alpha=lambda a, b, k, j: 1 - b[k - 1]), "mean of q"),
    "noise at the last step": (skip_with(quiet=False), "j = 0 returns x0"),
    "variance for standard deviation": (skip_with(root=False), "the noise has standard deviation"),
    "the large variance": (skip_with(var=lambda be, aj, ak: be), "the noise has standard deviation"),
    "eps added": (skip_with(sign=-1.0), "mean of q"),
    "divided by the root of alpha-bar_k": (
        lambda x, e, k, j, b, z: skip_step(x, e, k, j, b, z) * (abar(b)[k] / abar(b)[j] / abar(b)[k]).sqrt(),
        "mean of q",
    ),
    "index one off": (lambda x, e, k, j, b, z: skip_step(x, e, k - 1, j, b, z) if k - 1 > j else x, "mean of q"),
    "no noise at all": (lambda x, e, k, j, b, z: skip_step(x, e, k, j, b, 0 * z), "the noise has standard deviation"),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def best_eps(x, m, s, alpha, sigma):
    return sigma * (x - alpha * m) / (alpha**2 * s**2 + sigma**2)


def best_eps_by_x0(x, m, s, alpha, sigma):
    x0 = m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x - alpha * m)
    return (x - alpha * x0) / sigma


BEST_MUTANTS = {
    "the score": (lambda x, m, s, a, g: -(x - a * m) / (a**2 * s**2 + g**2), "mean of eps"),
    "sigma forgotten": (lambda x, m, s, a, g: (x - a * m) / (a**2 * s**2 + g**2), "mean of eps"),
    "mean not scaled": (lambda x, m, s, a, g: g * (x - m) / (a**2 * s**2 + g**2), "mean of eps"),
    "standard deviation of x": (lambda x, m, s, a, g: (x - a * m) / (a**2 * s**2 + g**2) ** 0.5, "mean of eps"),
    "alpha not squared": (lambda x, m, s, a, g: g * (x - a * m) / (a * s**2 + g**2), "mean of eps"),
    "s not squared": (lambda x, m, s, a, g: g * (x - a * m) / (a**2 * s + g**2), "mean of eps"),
    "x0 returned": (lambda x, m, s, a, g: m + a * s**2 / (a**2 * s**2 + g**2) * (x - a * m), "mean of eps"),
    "data are one point": (lambda x, m, s, a, g: (x - a * m) / g, "mean of eps"),
    "divided by s": (lambda x, m, s, a, g: g * (x - a * m) / s**2 / (a**2 + g**2 / s**2), "ZeroDivisionError"),
}

EXERCISES = {
    "jump": (td.check.jump, [jump, jump_by_steps], JUMP_MUTANTS),
    "reverse_mean": (td.check.reverse_mean, [reverse_mean, reverse_mean_by_library], REVERSE_MUTANTS),
    "cosine_betas": (td.check.cosine_betas, [cosine_betas, td.cosine_betas], COSINE_MUTANTS),
    "skip_step": (td.check.skip_step, [skip_step, skip_step_by_eps], SKIP_MUTANTS),
    "best_eps": (td.check.best_eps, [best_eps, best_eps_by_x0], BEST_MUTANTS),
}
