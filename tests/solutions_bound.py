"""Solutions of exercises 02 (Sohl-Dickstein), right and wrong, and what a wrong one is told: see test_checks."""

import torch

import tinydiff as td
from tinydiff.samplers import gaussian_tilt

F64 = torch.float64


def abar(betas):
    return torch.cat([torch.ones(1, dtype=betas.dtype), (1 - betas).cumprod(0)])


# ---- exercise 1 ----------------------------------------------------------------------------------


def tilted_step(mean, var, y, std):
    w = var / (var + std**2)
    return mean + w * (y - mean), var * (1 - w)


def tilted_by_precisions(mean, var, y, std):
    std = std.clamp(1e-12, 1e12)
    new = 1 / (1 / var + 1 / std**2)
    return new * (mean / var + y / std**2), new


def tilted_by_library(mean, var, y, std):
    return gaussian_tilt(y, std)(mean, var, td.VP()(0.5, like=mean))


def tilted_with(share, left=lambda v, w, s: v * (1 - w)):
    def f(mean, var, y, std):
        w = share(var, std).expand_as(mean)
        return mean + w * (y - mean), left(var, w, std)

    return f


TILTED_MUTANTS = {
    "std for variance": (tilted_with(lambda v, s: v / (v + s)), "mean of the product"),
    "the other share": (tilted_with(lambda v, s: s**2 / (v + s**2)), "mean of the product"),
    "variance as it was": (tilted_with(lambda v, s: v / (v + s**2), lambda v, w, s: v), "variance of the product"),
    "variances added": (tilted_with(lambda v, s: v / (v + s**2), lambda v, w, s: v + s**2), "variance of the product"),
    "half way": (tilted_with(lambda v, s: torch.full_like(v, 0.5)), "mean of the product"),
    "the shift of a smooth factor": (
        lambda mean, var, y, std: (mean + var / std**2 * (y - mean), var),
        "mean of the product",
    ),
    "precisions with infinity": (
        lambda mean, var, y, std: (
            (mean / var + y / std**2) / (1 / var + 1 / std**2),
            1 / (1 / var + 1 / std**2),
        ),
        "std 0 is known: its mean",
    ),
    "only one": (lambda mean, var, y, std: mean, "pair"),
    "float32": (lambda *a: tuple(v.float() for v in tilted_step(*a)), "dtype"),
    "input changed": (lambda mean, var, y, std: (mean.mul_(0.5), var), "changed in place"),
}

# ---- exercise 2 ----------------------------------------------------------------------------------


def true_step(mean0, var0, x, k, betas):
    a, beta = abar(betas), betas[k - 1]
    A = a[k - 1].sqrt() * beta / (1 - a[k])
    B = (1 - beta).sqrt() * (1 - a[k - 1]) / (1 - a[k])
    return A * mean0 + B * x, beta * (1 - a[k - 1]) / (1 - a[k]) + A**2 * var0


def true_step_by_library(mean0, var0, x, k, betas):
    S = td.DiscreteVP(betas)
    q = td.posterior(S(k / len(betas), like=x), S((k - 1) / len(betas), like=x))
    return q.a_x0 * mean0 + q.a_x * x, q.var + q.a_x0**2 * var0


def true_with(var, mean=lambda A, B, m0, x: A * m0 + B * x, beta_of=lambda b, k: b[k - 1]):
    def f(mean0, var0, x, k, betas):
        a, beta = abar(betas), beta_of(betas, k)
        A = a[k - 1].sqrt() * beta / (1 - a[k])
        B = (1 - beta).sqrt() * (1 - a[k - 1]) / (1 - a[k])
        tilde = beta * (1 - a[k - 1]) / (1 - a[k])
        return mean(A, B, mean0, x), var(A, B, tilde, beta, var0).expand_as(x)

    return f


right_var = lambda A, B, tilde, beta, v0: tilde + A**2 * v0  # noqa: E731
TRUE_MUTANTS = {
    "the posterior's own variance alone": (
        true_with(lambda A, B, tilde, beta, v0: tilde + 0 * v0),
        "variance of the mix",
    ),
    "beta": (true_with(lambda A, B, tilde, beta, v0: beta + 0 * v0), "variance of the mix"),
    "A without its square": (true_with(lambda A, B, tilde, beta, v0: tilde + A * v0), "variance of the mix"),
    "var0 as it is": (true_with(lambda A, B, tilde, beta, v0: tilde + v0), "variance of the mix"),
    "spread of the mean alone": (true_with(lambda A, B, tilde, beta, v0: A**2 * v0), "variance of the mix"),
    "B forgotten": (true_with(right_var, lambda A, B, m0, x: A * m0), "mean of the mix"),
    "A and B exchanged": (true_with(right_var, lambda A, B, m0, x: B * m0 + A * x), "mean of the mix"),
    "the guess itself": (true_with(right_var, lambda A, B, m0, x: m0), "mean of the mix"),
    "the next beta": (true_with(right_var, beta_of=lambda b, k: b[min(k, len(b) - 1)]), "of the mix"),
    "a number for the variance": (lambda m0, v0, x, k, b: (true_step(m0, v0, x, k, b)[0], b[k - 1]), "shape"),
    "alpha-bar without step 0": (
        lambda m0, v0, x, k, b: true_step(m0, v0, x, max(k, 2), b),
        "k = 1",
    ),
    "coefficients in float32": (
        lambda m0, v0, x, k, b: tuple(v.double() for v in true_step(m0, v0, x, k, b.float())),
        "in float64.*is a coefficient float32",
    ),
}

# ---- exercise 3 ----------------------------------------------------------------------------------


def spread(letter, keep, m):
    return keep * torch.nn.functional.one_hot(letter, m).double() + (1 - keep) / m


def letters_back(x0, x_t, t, s, m):
    joint = spread(x_t, (1 - t) / (1 - s), m) * spread(x0, 1 - s, m)
    return joint / joint.sum(1, keepdim=True)


def letters_by_matrices(x0, x_t, t, s, m):
    def step(keep):
        return keep * torch.eye(m, dtype=F64) + (1 - keep) / m * torch.ones(m, m, dtype=F64)

    Q = step((1 - t) / (1 - s))
    joint = step(1 - s)[x0] * Q[:, x_t].T
    return joint / step(1 - t)[x0, x_t][:, None]


def letters_with(lead=lambda t, s: (1 - t) / (1 - s), own=lambda t, s: 1 - s, rest=lambda m: m, norm=True):
    def f(x0, x_t, t, s, m):
        def spread(letter, keep):
            return keep * torch.nn.functional.one_hot(letter, m).double() + (1 - keep) / rest(m)

        joint = spread(x_t, lead(t, s)) * spread(x0, own(t, s))
        return joint / joint.sum(1, keepdim=True) if norm else joint

    return f


LETTERS_MUTANTS = {
    "keep 1 - t from s to t": (letters_with(lead=lambda t, s: 1 - t), "letter by letter"),
    "keep 1 - (t - s)": (letters_with(lead=lambda t, s: 1 - t + s), "letter by letter"),
    "x0 noised to t": (letters_with(own=lambda t, s: 1 - t), "letter by letter"),
    "half, as for bits": (letters_with(rest=lambda m: 2), "letter by letter"),
    "never the same letter": (letters_with(rest=lambda m: m - 1), "letter by letter"),
    "not normalised": (letters_with(norm=False), "sums to 1"),
    "x0 forgotten": (letters_with(own=lambda t, s: 0.0), "letter by letter"),
    "x_t forgotten": (letters_with(lead=lambda t, s: 0.0), "letter by letter"),
    "a row for a column": (lambda *a: letters_back(*a).T[:, : a[0].shape[0]], "shape"),
    "float32": (lambda *a: letters_back(*a).float(), "dtype"),
}

EXERCISES = {
    "tilted_step": (td.check.tilted_step, [tilted_step, tilted_by_precisions, tilted_by_library], TILTED_MUTANTS),
    "true_step": (td.check.true_step, [true_step, true_step_by_library], TRUE_MUTANTS),
    "letters_back": (td.check.letters_back, [letters_back, letters_by_matrices], LETTERS_MUTANTS),
}
