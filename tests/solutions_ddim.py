"""Solutions of exercises 08, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td

F64 = torch.float64

# ---- exercise 1 --------------------------------------------------------------------------------------


def mix_latents(latents, weights):
    return torch.einsum("k,kbd->bd", weights / weights.norm(), latents)


def mix_one_by_one(latents, weights):
    total = torch.zeros_like(latents[0])
    for z, w in zip(latents, weights.tolist(), strict=True):
        total = total + w * z
    return total / sum(w**2 for w in weights.tolist()) ** 0.5


def mean_of(latents, weights):
    return (latents * (weights / weights.sum())[:, None, None]).sum(0)


def to_sphere(latents, weights):
    mean = mean_of(latents, weights)
    return mean * latents.shape[2] ** 0.5 / mean.norm(dim=1, keepdim=True)


def arcs(latents, weights):
    """An arc from the first code to the second, and from there to the third, ..."""
    out, total = latents[0], weights[0]
    for z, w in zip(latents[1:], weights[1:], strict=True):
        total = total + w
        out = td.samplers.slerp(out, z, w / total if total > 0 else 0.0)
    return out


MIX_MUTANTS = {
    "mean": (mean_of, "has standard deviation.*add to 1, as on the straight line"),
    "weights from the other end": (lambda z, w: mix_latents(z, w.flip(0)), "in proportion.*goes to the last code"),
    "arc after arc": (arcs, "linear in the codes.*no length, no angle"),
    "sum": (lambda z, w: (w[:, None, None] * z).sum(0), "that code|same blend"),
    "root of the number of codes": (lambda z, w: mean_of(z, w) * len(z) ** 0.5, "that code"),
    "root of the sum": (lambda z, w: (w[:, None, None] * z).sum(0) / w.sum().sqrt(), "that code"),
    "roots of the weights": (lambda z, w: mix_latents(z, w.sqrt()), "in proportion to the weights"),
    "scaled to the length sqrt(d)": (to_sphere, "that code|linear in the codes"),
    "scaled by its own standard deviation": (lambda z, w: mean_of(z, w) / mean_of(z, w).std(), "that code|linear"),
    "softmax": (lambda z, w: mix_latents(z, w.softmax(0)), "that code"),
    "equal weights": (lambda z, w: mix_latents(z, torch.ones(len(z))), "that code"),
    "largest alone": (lambda z, w: z[w.argmax()], "in proportion to the weights"),
    "sum over the batch": (lambda z, w: (w[:, None, None] * z).sum(1), "shape"),
    "in place": (lambda z, w: z.mul_(w[:, None, None]).sum(0), "changed in place"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def sampled_std(alphas, sigmas, std, eta):
    var = 1.0
    for a, s, b, r in zip(alphas, sigmas, alphas[1:], sigmas[1:], strict=False):
        total = a**2 * std**2 + s**2
        fresh = eta**2 * r**2 / s**2 * (1 - a**2 / b**2)
        factor = b * a * std**2 / total + (r**2 - fresh).sqrt() * s / total
        var = factor**2 * var + fresh
    return var**0.5


def sampled_std_of_units(alphas, sigmas, std, eta):
    """Backwards: what a unit of noise that comes in at a level is worth at the end."""
    a, s, b, r = alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:]
    fresh = eta * r / s * (1 - (a / b) ** 2).sqrt()
    factors = (b * a * std**2 + (r**2 - fresh**2).sqrt() * s) / ((a * std) ** 2 + s**2)
    later = torch.cat([factors, torch.ones(1, dtype=F64)]).flip(0).cumprod(0).flip(0)
    return float((later[0] ** 2 + (fresh**2 * later[1:] ** 2).sum()).sqrt())


def std_with(
    start=lambda a, s, std: 1.0,
    fresh=lambda eta, tilde: eta**2 * tilde,
    old=lambda r, f: (r**2 - f).sqrt(),
    of_data=lambda std: std,
    added=lambda f: f,
    end=lambda v: v**0.5,
    power=2,
):
    def fn(alphas, sigmas, std, eta):
        std = of_data(std)
        var = start(alphas[0], sigmas[0], std)
        for a, s, b, r in zip(alphas, sigmas, alphas[1:], sigmas[1:], strict=False):
            total = a**2 * std**2 + s**2
            f = fresh(eta, r**2 / s**2 * (1 - a**2 / b**2))
            factor = b * a * std**2 / total + old(r, f) * s / total
            var = factor**power * var + added(f)
        return end(torch.as_tensor(var))

    return fn


STD_MUTANTS = {
    "the data's own": (lambda a, s, std, eta: std, "eta = 0.0 the standard deviation"),
    "variance": (std_with(end=lambda v: v), "eta = 0.0 the standard deviation.*the root of a variance"),
    "factor, not its square": (std_with(power=1), "eta = 0.0 the standard deviation.*by the square of that number"),
    "std for its square": (std_with(of_data=lambda std: std**0.5), "std = 0.5.*the variance of the data"),
    "from data to noise": (lambda a, s, *more: sampled_std(a.flip(0), s.flip(0), *more), "nan.*from noise to data"),
    "after each step": (lambda a, s, std, eta: s + std, "one number.*shape .6,..*after the last step"),
    "fresh noise not added": (std_with(added=lambda f: 0.0), "eta = 1.0 the standard deviation"),
    "all of the old noise kept": (std_with(old=lambda r, f: r), "eta = 1.0 the standard deviation"),
    "eta for its square": (std_with(fresh=lambda eta, tilde: eta * tilde), "eta = 0.5 the standard deviation"),
    "eta ignored": (std_with(fresh=lambda eta, tilde: 0 * tilde), "eta = 1.0 the standard deviation"),
    "data of unit variance": (std_with(of_data=lambda std: 1.0), "std = 0.5"),
    "starts from the law of x_k, not of N(0, 1)": (
        std_with(start=lambda a, s, std: a**2 * std**2 + s**2),
        "std = 0.5",
    ),
    "all in one list": (lambda a, s, std, eta: [std, std], "one number"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def forward_given_data(x_j, x0, alpha_j, sigma_j, alpha_k, sigma_k, s, z):
    old = math.sqrt(sigma_j**2 - s**2)
    return alpha_k * x0 + sigma_k * old / sigma_j**2 * (x_j - alpha_j * x0) + sigma_k * s / sigma_j * z


def forward_in_noise(x_j, x0, alpha_j, sigma_j, alpha_k, sigma_k, s, z):
    """In units of the noise: two standard normals with this correlation."""
    rho = (1 - (s / sigma_j) ** 2) ** 0.5
    eps_j = (x_j - alpha_j * x0) / sigma_j
    return alpha_k * x0 + sigma_k * (rho * eps_j + (1 - rho**2) ** 0.5 * z)


def ddpms_own(x_j, x0, alpha_j, sigma_j, alpha_k, sigma_k, s, z):
    a = alpha_k / alpha_j
    return a * x_j + math.sqrt(1 - a**2) * z


def forward_with(slope=lambda ak, sk, aj, sj, s, old: sk * old / sj**2, std=lambda sk, sj, s: sk * s / sj, centre=1):
    def fn(x_j, x0, aj, sj, ak, sk, s, z):
        old = math.sqrt(sj**2 - s**2)
        return ak * x0 + slope(ak, sk, aj, sj, s, old) * (x_j - centre * aj * x0) + std(sk, sj, s) * z

    return fn


FORWARD_MUTANTS = {
    "DDPM's step whatever s is": (ddpms_own, "mean of q"),
    "the step back turned round": (
        forward_with(slope=lambda ak, sk, aj, sj, s, old: sk / old, std=lambda sk, sj, s: s),
        "mean of q",
    ),
    "all of the noise kept": (forward_with(slope=lambda ak, sk, aj, sj, s, old: sk / sj), "mean of q"),
    "x_j not centred": (forward_with(centre=0), "mean of q"),
    "root of sigma_k^2 - s^2": (
        forward_with(slope=lambda ak, sk, aj, sj, s, old: math.sqrt(sk**2 - s**2) / sj),
        "mean of q",
    ),
    "s as the standard deviation": (forward_with(std=lambda sk, sj, s: s), "standard deviation of q"),
    "a variance as the standard deviation": (
        forward_with(std=lambda sk, sj, s: (sk * s / sj) ** 2),
        "standard deviation of q",
    ),
    "x0 forgotten": (lambda x, x0, *a: forward_given_data(x, torch.zeros_like(x0), *a), "mean of q"),
    "no noise": (forward_with(std=lambda sk, sj, s: 0.0), "standard deviation of q"),
    "float32": (lambda *a: forward_given_data(*a).float(), "dtype"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def back_to(x, eps, alpha_j, sigma_j, alpha_k, sigma_k):
    """Equation (6) with this noise."""
    return alpha_k * (x / alpha_j + (sigma_k / alpha_k - sigma_j / alpha_j) * eps)


def invert_exactly(eps, x_j, alpha_j, sigma_j, alpha_k, sigma_k):
    x = x_j
    for _ in range(100):
        x = back_to(x_j, eps(x), alpha_j, sigma_j, alpha_k, sigma_k)
    return x


def invert_until_still(eps, x_j, alpha_j, sigma_j, alpha_k, sigma_k):
    """Adds what the step misses, until nothing is missed."""
    x, gap = alpha_k / alpha_j * x_j, torch.ones(1)
    while gap.abs().max() > 1e-11:
        noise = eps(x)
        x0 = (x - sigma_k * noise) / alpha_k
        gap = x_j - (alpha_j * x0 + sigma_j * noise)
        x = x + alpha_k / alpha_j * gap
    return x


def rounds(n, point=lambda x_j, ak, aj: x_j):
    def fn(eps, x_j, aj, sj, ak, sk):
        x = point(x_j, ak, aj)
        for _ in range(n):
            x = back_to(x_j, eps(x), aj, sj, ak, sk)
        return x

    return fn


def iterate_with(coefficients, start=lambda x, new: new):
    def fn(eps, x_j, aj, sj, ak, sk):
        x = x_j
        for _ in range(100):
            a, b = coefficients(aj, sj, ak, sk)
            x = a * start(x_j, x) + b * eps(x)
        return x

    return fn


INVERT_MUTANTS = {
    "the noise at x_j: plain inversion": (rounds(1), "ends in x_j.*the notebook's own inversion"),
    "two rounds": (rounds(2), "ends in x_j"),
    "five rounds": (rounds(5), r"ends in x_j.*off by .*at most 1e-07 is right.*more rounds"),
    "off by a little": (lambda *a: invert_exactly(*a) * (1 + 1e-6), r"off by 1\.\de-06 .at most 1e-07 is right"),
    "the noise at x_j, scaled": (rounds(1, lambda x, ak, aj: ak / aj * x), "ends in x_j"),
    "the step down": (
        lambda eps, x, aj, sj, ak, sk: aj * (x - sk * eps(x)) / ak + sj * eps(x),
        "ends in x_j",
    ),
    "sigma_k - sigma_j": (
        iterate_with(lambda aj, sj, ak, sk: (ak / aj, sk - sj)),
        "ends in x_j",
    ),
    "alpha_j and alpha_k exchanged": (
        iterate_with(lambda aj, sj, ak, sk: (aj / ak, ak * (sk / ak - sj / aj))),
        "ends in x_j",
    ),
    "each round from the last point": (
        iterate_with(lambda aj, sj, ak, sk: (ak / aj, ak * (sk / ak - sj / aj)), lambda x_j, x: x),
        "ends in x_j|finite",
    ),
    "float32": (lambda eps, x, *a: invert_exactly(eps, x, *a).float(), "dtype"),
}

EXERCISES = {
    "mix_latents": (td.check.mix_latents, [mix_latents, mix_one_by_one], MIX_MUTANTS),
    "sampled_std": (td.check.sampled_std, [sampled_std, sampled_std_of_units], STD_MUTANTS),
    "forward_given_data": (td.check.forward_given_data, [forward_given_data, forward_in_noise], FORWARD_MUTANTS),
    "invert_exactly": (td.check.invert_exactly, [invert_exactly, invert_until_still], INVERT_MUTANTS),
}
