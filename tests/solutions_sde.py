"""Solutions of exercises 06, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td

# ---- exercise 1 --------------------------------------------------------------------------------------


def slope(fn, t):
    t = t.clone().requires_grad_()
    out = fn(t)
    return out.detach(), torch.autograd.grad(out.sum(), t)[0]


def path_to_sde(alpha, sigma, t):
    (a, da), (s, ds) = slope(alpha, t), slope(sigma, t)
    return da / a, 2 * s * ds - 2 * da / a * s**2


def path_to_sde_by_library(alpha, sigma, t):
    class Path(td.Schedule):
        t_min = 1e-9

        def path(self, t):
            return alpha(t), sigma(t)

    c = Path()(t, like=t)
    return c.drift, c.diffusion2


def path_to_sde_by_logsnr(alpha, sigma, t):
    rates = lambda fn: torch.func.jvp(fn, (t,), (torch.ones_like(t),))  # noqa: E731
    a, da = rates(alpha)
    _, falls = rates(lambda t: 2 * (alpha(t) / sigma(t)).log())
    return da / a, -(sigma(t) ** 2) * falls


def path_with(drift=lambda a, da: da / a, spread=lambda s, ds, f: 2 * s * ds - 2 * f * s**2):
    def f(alpha, sigma, t):
        (a, da), (s, ds) = slope(alpha, t), slope(sigma, t)
        return drift(a, da), spread(s, ds, da / a)

    return f


PATH_MUTANTS = {
    "the drift's part forgotten": (path_with(spread=lambda s, ds, f: 2 * s * ds), r"\+ g2 dt is.*V' = 2 f V"),
    "the drift's part added": (path_with(spread=lambda s, ds, f: 2 * s * ds + 2 * f * s**2), r"\+ g2 dt is"),
    "the drift's part halved": (path_with(spread=lambda s, ds, f: 2 * s * ds - f * s**2), r"\+ g2 dt is"),
    "true of variance-preserving paths only": (path_with(spread=lambda s, ds, f: -2 * f), r"\+ g2 dt is"),
    "sigma not squared": (path_with(spread=lambda s, ds, f: 2 * s * ds - 2 * f * s), r"\+ g2 dt is"),
    "g, not its square": (path_with(spread=lambda s, ds, f: (2 * s * ds - 2 * f * s**2).sqrt()), r"\+ g2 dt is"),
    "the slope of sigma": (path_with(spread=lambda s, ds, f: ds - 2 * f * s**2), r"\+ g2 dt is"),
    "alpha', not alpha' / alpha": (path_with(drift=lambda a, da: da), r"\(1 \+ f dt\) alpha"),
    "beta, not -beta / 2": (path_with(drift=lambda a, da: -2 * da / a), r"\(1 \+ f dt\) alpha"),
    "a mean over the batch": (lambda a, s, t: tuple(v.mean() for v in path_to_sde(a, s, t)), "shape.*one by one"),
    "f alone": (lambda a, s, t: path_to_sde(a, s, t)[0], "a pair"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def noising_family(x, score, f, g2, lam, dt, z):
    return x + dt * (f * x - (1 - lam**2) / 2 * g2 * score) + lam * math.sqrt(g2 * dt) * z


def noising_family_by_langevin(x, score, f, g2, lam, dt, z):
    flow = f * x - g2 / 2 * score  # the probability flow
    eps = lam**2 * g2 * dt  # and a Langevin step of notebook 03 on top of it
    return x + flow * dt + eps / 2 * score + eps**0.5 * z


def family_with(weight=lambda lam: -(1 - lam**2) / 2, noise=lambda lam, g2, dt: lam * math.sqrt(g2 * dt), sign=1.0):
    def step(x, score, f, g2, lam, dt, z):
        return x + dt * (sign * f * x + weight(lam) * g2 * score) + noise(lam, g2, dt) * z

    return step


FAMILY_MUTANTS = {
    "the backward family's drift": (family_with(weight=lambda lam: -(1 + lam**2) / 2), "2 f v .* g2, whatever"),
    "the score added": (family_with(weight=lambda lam: (1 - lam**2) / 2), "whatever lam is"),
    "no half": (family_with(weight=lambda lam: -(1 - lam**2)), "whatever lam is"),
    "lam not squared": (family_with(weight=lambda lam: -(1 - lam) / 2), "whatever lam is"),
    "no score": (family_with(weight=lambda lam: 0.0), "whatever lam is"),
    "backwards in time": (family_with(weight=lambda lam: (1 + lam**2) / 2, sign=-1.0), "holds f x"),
    "dt, not its root": (family_with(noise=lambda lam, g2, dt: lam * math.sqrt(g2) * dt), "variance of the noise"),
    "g squared in the noise": (
        family_with(noise=lambda lam, g2, dt: lam * g2 * math.sqrt(dt)),
        "variance of the noise",
    ),
    "lam squared in the noise": (
        family_with(noise=lambda lam, g2, dt: lam**2 * math.sqrt(g2 * dt)),
        "variance of the noise",
    ),
    "always the full noise": (family_with(noise=lambda lam, g2, dt: math.sqrt(g2 * dt)), "variance of the noise"),
    "its own noise": (
        lambda x, s, f, g2, lam, dt, z: noising_family(x, s, f, g2, lam, dt, z.flip(0)),
        "sum of x, score and z",
    ),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def paste_along(x, u, y, alpha, sigma, z):
    length = u.norm()
    unit = u / length
    want = alpha * y / length + sigma * z  # of the component along the unit vector
    return x + (want - x @ unit)[:, None] * unit


def paste_along_in_a_basis(x, u, y, alpha, sigma, z):
    rest = torch.eye(len(u), dtype=u.dtype) - torch.outer(u, u) / (u @ u)
    return x @ rest + ((alpha * y + sigma * u.norm() * z) / (u @ u))[:, None] * u


def paste_with(noise=lambda n: n, unit=True, shrink=True, everywhere=False, keep=True):
    def f(x, u, y, alpha, sigma, z):
        n = u.norm()
        direction = u / n**2 if unit else u
        want = (alpha if shrink else 1.0) * y + sigma * noise(n) * z
        out = (x if keep else 0 * x) + (want - (x @ u if keep else 0))[:, None] * direction
        return out + (sigma * z)[:, None] if everywhere else out

    return f


PASTE_MUTANTS = {
    "u taken for a unit vector": (paste_with(unit=False), "without noise .* u.x is alpha y"),
    "the length of u not in the noise": (paste_with(noise=lambda n: 1.0), "standard deviation.*how large is u.eps"),
    "the square of the length": (paste_with(noise=lambda n: n**2), "standard deviation"),
    "the known value not shrunk": (paste_with(shrink=False), "u.x is alpha y"),
    "noise on all coordinates": (paste_with(everywhere=True), "right angles to u"),
    "the rest forgotten": (paste_with(keep=False), "right angles to u"),
    "no noise": (paste_with(noise=lambda n: 0.0), "standard deviation"),
    "all coordinates set": (
        lambda x, u, y, a, s, z: (a * y + s * z)[:, None].expand_as(x) * u,
        "right angles to u",
    ),
    "coordinates where u is not 0": (
        lambda x, u, y, a, s, z: torch.where(u != 0, (a * y + s * z)[:, None], x),
        "right angles to u",
    ),
    "y not made a column": (lambda x, u, y, a, s, z: x + (a * y - x @ u) * u, "the function runs.*RuntimeError"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def corrector_spread(r, a):
    return 1 + a * r**2


def corrector_spread_by_bisection(r, a):
    low, high = 1.0, 10.0
    for _ in range(60):
        ratio = (low + high) / 2
        eps = 2 * a * r**2 / ratio
        low, high = (ratio, high) if (1 - eps) ** 2 * ratio + 2 * eps > ratio else (low, ratio)
    return ratio


SPREAD_MUTANTS = {
    "1": (lambda r, a: 1.0, "leaves the variance|chains settle there"),
    "a step of fixed size": (lambda r, a: 1 / (1 - a * r**2), "leaves the variance|chains settle there"),
    "a forgotten": (lambda r, a: 1 + r**2, "chains settle there"),
    "r not squared": (lambda r, a: 1 + a * r, "chains settle there"),
    "a standard deviation": (lambda r, a: math.sqrt(1 + a * r**2), "leaves the variance|chains settle there"),
    "the other convention": (lambda r, a: 1 + a * r**2 / 2, "leaves the variance|chains settle there"),
    "twice as much": (lambda r, a: 1 + 2 * a * r**2, "leaves the variance|chains settle there"),
    "the squares of both": (lambda r, a: 1 + a**2 * r**2, "chains settle there"),
    "two digits": (lambda r, a: round(1 + a * r**2, 2), "leaves the variance"),
    "the first order of the inverse": (lambda r, a: 1 / (1 + a * r**2), "chains settle there"),
    "one for each chain": (lambda r, a: torch.full((3,), 1 + a * r**2), "one number"),
}

EXERCISES = {
    "path_to_sde": (td.check.path_to_sde, [path_to_sde, path_to_sde_by_library, path_to_sde_by_logsnr], PATH_MUTANTS),
    "noising_family": (td.check.noising_family, [noising_family, noising_family_by_langevin], FAMILY_MUTANTS),
    "paste_along": (td.check.paste_along, [paste_along, paste_along_in_a_basis], PASTE_MUTANTS),
    "corrector_spread": (
        td.check.corrector_spread,
        [corrector_spread, corrector_spread_by_bisection],
        SPREAD_MUTANTS,
    ),
}
