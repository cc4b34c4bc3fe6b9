"""Checks of exercises 08: codes, widths, the forward process, the way back. Each compares with another computation."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinydiff.check.core import call, fail, has_moments, is_close, is_tensor_like, right
from tinydiff.exact import GaussianMixture
from tinydiff.samplers import ddim_step, pairs
from tinydiff.schedules import DiscreteVP, grid, leading, linear_betas, quadratic

SCHEDULE = DiscreteVP(linear_betas(1000))
F64 = torch.float64
LAW = "variances of independent draws add, each times the square of its factor: what must the squares add to?"
SHARE = "each code counts in proportion to its weight, as it is (no roots, no softmax)"
MEAN = "these factors add to 1, as on the straight line between two codes, which is too narrow; " + LAW
OTHER_END = "weights[0] belongs to latents[0]: here the first weight goes to the last code"
THEMSELVES = (
    "no number may be computed from the codes themselves, no length, no angle (an arc has one), no standard deviation: "
    "the result would be no draw of N(0, I)"
)
WIDTH = (
    "the exact denoiser is linear: x0 = a x and eps = b x. A step multiplies x by one number and adds fresh noise of "
    "variance s^2; what becomes of the variance?"
)
VARIANCE = "that is the square of what is asked for: a standard deviation is the root of a variance"
NO_SQUARE = "a step multiplies x by a number, and the variance of x by the square of that number"
OF_DATA = "std is a standard deviation: the denoiser has its square, the variance of the data"
DOWNWARDS = (
    "step by step from entry i to entry i + 1, from noise to data: only the last sigma is 0, and no step may divide by "
    "it"
)
LAST = "a standard deviation is one number: that of the samples, after the last step"
BAYES = (
    "(x_j - alpha_j x0) and (x_k - alpha_k x0), given x0, are two Gaussians with variances sigma_j^2 and sigma_k^2; "
    "equation (3) says what their covariance is, and a Gaussian given another is linear regression"
)
POINT = (
    "the step from the point that you return must use the noise believed at that point, which is not known before it "
    "is found: start from a guess, and improve it with the noise that it gives"
)
ROUNDS = "near, but not there yet: each round of guess and improvement takes the error down by a factor; more rounds?"
PLAIN = "that is the notebook's own inversion, with the noise believed at x_j. " + POINT


def _levels(k: int) -> tuple[float, float]:
    """alpha and sigma of a step of DDPM's chain."""
    t = torch.tensor(k / SCHEDULE.steps, dtype=F64)
    return SCHEDULE.alpha(t).item(), SCHEDULE.sigma(t).item()


@torch.random.fork_rng()
def mix_latents(fn: Callable) -> None:
    """Exercise 1: fn(latents, weights) -> a blend (b, d) of k codes (k, b, d) that is again a draw of N(0, I)."""
    name = "mix_latents"
    torch.manual_seed(0)
    z = torch.randn(3, 5, 2)
    for w in ([0.0, 2.0, 0.0], [1.0, 1.0, 1.0], [0.5, 0.3, 0.2], [3.0, 1.0, 0.0]):
        weights, given = torch.tensor(w), f"three codes, weights {w}"
        out = call(name, fn, z, weights)
        is_tensor_like(name, "the blend", out, z[0], "codes are (k, b, d); the sum runs over the first dimension")
        if w.count(0.0) == 2:
            is_close(name, "with one weight alone, the blend is that code", given, out, z[1], LAW)
        # the factor of each code: the others are zero
        parts = torch.stack([call(name, fn, z * (torch.arange(3) == i)[:, None, None], weights) for i in range(3)])
        is_close(
            name,
            "the blend is the sum of what each code gives alone: it is linear in the codes",
            given,
            out,
            parts.sum(0),
            THEMSELVES,
            1e-5,
        )
        factors = (parts * z).sum((1, 2)) / (z * z).sum((1, 2))
        share = factors[1:] * weights[0] - factors[0] * weights[1:]
        turned = torch.allclose(factors[1:] * w[2], factors[0] * weights.flip(0)[1:], atol=1e-5)
        hint = OTHER_END if turned else SHARE
        is_close(name, "the factors are in proportion to the weights", given, share, torch.zeros(2), hint)
        scaled = call(name, fn, z, 10 * weights)
        is_close(name, "ten times all weights is the same blend", given, scaled, out, "the weights need not sum to 1")
    n, weights = 40_000, torch.tensor([0.5, 0.3, 0.2])
    out = call(name, fn, torch.randn(3, n, 2), weights)
    for i in (0, 1):
        what = f"component {i} of the blend of independent draws"
        hint = MEAN if (factors.sum() - 1).abs() < 1e-4 else LAW
        has_moments(name, what, "weights [0.5, 0.3, 0.2], 40,000 draws", out[:, i], 0.0, 1.0, hint)
    right(name, 5)


def sampled_std(fn: Callable) -> None:
    """Exercise 2: fn(alphas, sigmas, std, eta) -> standard deviation of DDIM's samples, data N(0, std^2)."""
    name = "sampled_std"
    for std, eta, n, spacing in (
        (1.0, 0.0, 5, None),
        (1.0, 1.0, 5, None),
        (0.5, 0.0, 1, None),
        (0.5, 0.5, 10, leading),
        (2.0, 0.3, 20, quadratic),
        (0.1, 1.0, 50, leading),
        (3.0, 0.7, 3, quadratic),
    ):
        ts = grid(SCHEDULE, n, spacing)
        alphas, sigmas = SCHEDULE.alpha(ts), SCHEDULE.sigma(ts)
        out = call(name, fn, alphas, sigmas, std, eta)
        given = f"std = {std}, eta = {eta}, {n} steps from step {round(1000 * ts[0].item())} of the chain down to 0"
        try:
            out = torch.as_tensor(out, dtype=F64).reshape(())
        except (TypeError, ValueError, RuntimeError):
            came = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            fail(name, "one number comes back", given, came, LAST)
        want = torch.tensor(_response(ts, std, eta), dtype=F64)
        prop = f"with eta = {eta} the standard deviation is that of the library's sampler and the exact denoiser"
        is_close(name, prop, given, out[None], want[None], _usual_std(out, want, ts, std, eta), 1e-7)
    right(name, 2)


def _usual_std(out: Tensor, want: Tensor, ts: Tensor, std: float, eta: float) -> str:
    """The hint at what this number is instead."""
    if not out.isfinite():
        return DOWNWARDS
    others = {VARIANCE: want**2, NO_SQUARE: want.sqrt(), OF_DATA: torch.tensor(_response(ts, std**0.5, eta), dtype=F64)}
    return next((hint for hint, other in others.items() if torch.isclose(out, other, rtol=1e-6)), WIDTH)


def _response(ts: Tensor, std: float, eta: float) -> float:
    """The sampler is linear: its variance is the sum of its squared answers to single units of noise."""
    exact = GaussianMixture(torch.zeros(1, 1, dtype=F64), std, None, SCHEDULE)
    x = torch.zeros(len(ts), 1, dtype=F64)
    x[0] = 1.0  # row 0: a unit of noise at the start; row i: a unit fresh in step i
    for i, (t, s) in enumerate(pairs(ts), start=1):
        unit = torch.zeros_like(x)
        unit[i] = 1.0
        x = ddim_step(exact(x, t), SCHEDULE(t, like=x), SCHEDULE(s, like=x), eta, unit)
    return x.square().sum().sqrt().item()


def forward_given_data(fn: Callable) -> None:
    """Exercise 3: fn(x_j, x0, alpha_j, sigma_j, alpha_k, sigma_k, s, z) -> x_k of q(x_k | x_j, x0), with noise z."""
    name = "forward_given_data"
    g = torch.Generator().manual_seed(0)
    u, x0, z = (torch.randn(6, 2, generator=g, dtype=F64) for _ in range(3))
    line = torch.linspace(-9, 9, 60_001, dtype=F64)
    for j, k, share in ((100, 300, 0.3), (100, 300, 0.9), (400, 1000, 0.5), (1, 2, 0.5)):
        (aj, sj), (ak, sk) = _levels(j), _levels(k)
        s = share * sj
        given = f"j = {j}, k = {k} of DDPM's 1,000 steps, s = {share} sigma_j"
        args, x_j = (aj, sj, ak, sk, s), aj * x0 + sj * u
        quiet = call(name, fn, x_j, x0, *args, torch.zeros_like(z))
        is_tensor_like(name, "x_k", quiet, x_j)
        # Bayes on a grid of eps, where x_k = alpha_k x0 + sigma_k eps: the first coordinate
        miss = x_j[:, :1] - aj * x0[:, :1] - math.sqrt(sj**2 - s**2) * line
        p = (-(line**2) / 2 - miss**2 / (2 * s**2)).softmax(1)
        mean = (p * line).sum(1)
        std = sk * (p * (line - mean[:, None]) ** 2).sum(1).sqrt()
        prop = "the {} of q(x_k | x_j, x0), as Bayes' rule gives it on a fine grid"
        is_close(name, prop.format("mean"), given, quiet[:, 0], ak * x0[:, 0] + sk * mean, BAYES, 1e-6)
        noise = (call(name, fn, x_j, x0, *args, z) - quiet) / z
        is_close(name, prop.format("standard deviation"), given, noise[:, 0], std, BAYES, 1e-6)
    j, k = 200, 500
    (aj, sj), (ak, sk) = _levels(j), _levels(k)
    beta = 1 - (ak / aj) ** 2
    out = call(name, fn, x_j, x0, aj, sj, ak, sk, sj / sk * math.sqrt(beta), z)
    is_close(
        name,
        "at eta = 1 it is DDPM's own step, alpha_k / alpha_j x_j + sqrt(beta) z, and x0 does not matter",
        f"j = {j}, k = {k}, s = root of beta-tilde",
        out,
        ak / aj * x_j + math.sqrt(beta) * z,
        BAYES,
        1e-8,
    )
    out = call(name, fn, x_j, x0, aj, sj, ak, sk, 0.0, z)
    same = call(name, fn, x_j, x0, aj, sj, ak, sk, 0.0, -z)
    is_close(name, "with s = 0 nothing is random", f"j = {j}, k = {k}, s = 0", out, same, BAYES, 1e-12)
    right(name, 4)


def _lands(name: str, prop: str, given: str, out: Tensor, want: Tensor, plain: bool, tol: float) -> None:
    """is_close, with a message that shows how small the error is, and how small it has to be."""
    gap = ((out - want).abs() / want.abs().clamp(min=1)).nan_to_num(torch.inf).flatten()
    worst = gap.argmax()
    if not gap[worst] <= tol:
        found, due = out.flatten()[worst].item(), want.flatten()[worst].item()
        came = f"off by {gap[worst]:.1e} (at most {tol:.0e} is right): {found:.10f} where {due:.10f} was due"
        hint = PLAIN if plain else ROUNDS if gap[worst] < 1e-2 else POINT
        fail(name, prop, given, f"{came} (entry {worst} of {len(gap)})", hint)


def invert_exactly(fn: Callable) -> None:
    """Exercise 4: fn(eps, x_j, alpha_j, sigma_j, alpha_k, sigma_k) -> the x_k whose DDIM step to j ends in x_j."""
    name = "invert_exactly"
    x = torch.tensor([[-1.2], [0.1], [0.9], [2.0]], dtype=F64)
    for j, k, std in ((100, 200, 1.0), (0, 50, 0.5), (700, 800, 2.0)):
        (aj, sj), (ak, sk) = _levels(j) if j else (1.0, 0.0), _levels(k)
        slope = sk / (ak**2 * std**2 + sk**2)  # eps = slope x for data N(0, std^2)
        out = call(name, fn, lambda x, b=slope: b * x, x, aj, sj, ak, sk)
        is_tensor_like(name, "x_k", out, x)
        factor = aj * (1 - sk * slope) / ak + sj * slope  # of the step from k to j
        given = f"data N(0, {std}^2), j = {j}, k = {k}, x_j = {x[:, 0].tolist()}"
        plain = torch.allclose(out, ak * (x / aj + (sk / ak - sj / aj) * slope * x))
        _lands(name, "x_k is the point whose DDIM step to j ends in x_j", given, out, x / factor, plain, 1e-7)
    angle = 2 * math.pi * torch.arange(8, dtype=F64) / 8
    means = 1.4 * torch.stack([angle.cos(), angle.sin()], dim=1)
    ring = GaussianMixture(means, 0.2, None, SCHEDULE)
    data = ring.sample(50, torch.Generator().manual_seed(0))
    x, ks = data, list(range(0, 1001, 10))
    for j, k in zip(ks, ks[1:], strict=False):
        (aj, sj), (ak, sk) = _levels(j) if j else (1.0, 0.0), _levels(k)
        x_k = call(name, fn, lambda x, k=k: ring(x, k / 1000).eps, x, aj, sj, ak, sk)
        eps = ring(x_k, k / 1000).eps
        back = aj * (x_k - sk * eps) / ak + sj * eps
        given = f"eight modes on a ring, j = {j}, k = {k}"
        _lands(name, "the DDIM step from x_k to j ends in x_j", given, back, x, False, 1e-7)
        x = x_k
    for k, j in zip(ks[::-1], ks[-2::-1], strict=False):
        x = ddim_step(ring(x, k / 1000), SCHEDULE(k / 1000, like=x), SCHEDULE(j / 1000, like=x))
    _lands(name, "100 steps up and 100 down lead back to the data", "eight modes on a ring", x, data, False, 1e-4)
    right(name, 3)
