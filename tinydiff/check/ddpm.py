"""Checks of exercises 01: the chain of DDPM. Each compares with something computed in another way."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinydiff.check.core import STANDARD_ERRORS, call, fail, has_moments, is_close, is_tensor_like, right
from tinydiff.schedules import linear_betas

T = 200
WHICH_STEPS = (
    "signal and variance come from the steps j + 1 ... k and no others; betas[i] belongs to step i + 1; "
    "noise is scaled by a standard deviation; alpha-bar of step 0 is 1 (index -1 is the last entry, not that)"
)
VARIANCE = "it is a variance, smaller than beta_k; does the right factor hold alpha-bar of step k - 1?"
MEAN = "put x0 = (x_k - sigma eps) / alpha into the posterior's mean and collect the terms: little remains"
ABAR_0 = "alpha-bar of step 0 is 1"
OFFSET = "is the cosine squared, is s = 0.008 in it, and do you divide by its value at 0?"
FIRST_X0 = (
    "first get x0 from x and eps; for the jump from k to j, 1 - beta is alpha-bar_k / alpha-bar_j, not 1 - betas[k - 1]"
)


def _chain(betas: Tensor, j: int, k: int) -> tuple[float, float]:
    """(signal, variance) after noising step by step from j to k: the definition, not the closed form."""
    signal, var = 1.0, 0.0
    for beta in betas[j:k].tolist():  # betas[i] is step i + 1
        signal, var = signal * math.sqrt(1 - beta), var * (1 - beta) + beta
    return signal, var


@torch.random.fork_rng()
def jump(fn: Callable) -> None:
    """Exercise 1: fn(x, j, k, betas) -> x_k drawn from q(x_k | x_j = x); 0 <= j < k <= T are (b,) integers."""
    name, betas, n = "jump", linear_betas(T), 20_000
    x = torch.tensor([[2.0, -1.0, 0.5]]).expand(n, 3).clone()
    for j, k in ((0, 1), (0, 50), (0, T), (20, 60), (60, 61)):
        torch.manual_seed(j + k)
        out = call(name, fn, x, torch.full((n,), j), torch.full((n,), k), betas)
        is_tensor_like(name, "x_k", out, x)
        signal, var = _chain(betas, j, k)
        given = f"x = [2, -1, 0.5], j = {j}, k = {k}, T = {T}, {n:,} draws"
        for i, value in enumerate(x[0].tolist()):
            has_moments(name, f"component {i} of x_k", given, out[:, i], signal * value, math.sqrt(var), WHICH_STEPS)
        noise = (out - signal * x) / math.sqrt(var)
        for a, b, which in (
            (noise[:-1, 0], noise[1:, 0], "elements of the batch"),
            (noise[:, 0], noise[:, 1], "components"),
        ):
            z = (a * b).mean().item() * math.sqrt(len(a))
            if not abs(z) <= STANDARD_ERRORS:
                fail(
                    name,
                    f"the noise of different {which} is independent",
                    given,
                    f"correlation {z / math.sqrt(len(a)):.3f}",
                    "draw noise of the full shape of x: torch.randn_like(x)",
                )
    mixed_j, mixed_k = torch.tensor([0, 0, 20, 60]).repeat(n // 4), torch.tensor([1, T, 60, 61]).repeat(n // 4)
    torch.manual_seed(0)
    out = call(name, fn, x, mixed_j, mixed_k, betas)
    for i, (j, k) in enumerate(((0, 1), (0, T), (20, 60), (60, 61))):
        signal, var = _chain(betas, j, k)
        has_moments(
            name,
            "component 0 of x_k",
            f"a batch that mixes several j and k; here j = {j}, k = {k}",
            out[i::4, 0],
            2 * signal,
            math.sqrt(var),
            "each element of the batch has its own j and k",
        )
    right(name, 5)


def reverse_mean(fn: Callable) -> None:
    """Exercise 2: fn(x_k, eps, k, betas) -> (mean, var) of q(x_{k-1} | x_k, x0) at the x0 that eps stands for.

    x_k and eps are (b, d), k is (b,) of steps in 1 ... T; var is (b, 1) or (b, d).
    """
    name, betas = "reverse_mean", linear_betas(T)
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    k = torch.tensor([2, 3, 17, 100, T])
    x0 = torch.tensor([0.7, -1.2, 0.3, 1.0, -0.5], dtype=torch.float64)[:, None]
    x_k = torch.tensor([0.6, -1.1, 0.9, -0.4, 1.5], dtype=torch.float64)[:, None]
    eps = torch.cat([_noise_between(x0[i], x_k[i], betas, int(k[i])) for i in range(len(k))])[:, None]
    mean, var = _two(name, call(name, fn, x_k, eps, k, betas))
    is_tensor_like(name, "mean", mean, x_k)
    for i, step in enumerate(k.tolist()):
        signal, before = _chain(betas, 0, step - 1)
        beta = betas[step - 1].item()
        # Bayes: q(x_{k-1} | x0) q(x_k | x_{k-1}), on a grid of x_{k-1}
        log_p = -((grid - signal * x0[i]) ** 2) / (2 * before)
        p = (log_p - (x_k[i] - math.sqrt(1 - beta) * grid) ** 2 / (2 * beta)).softmax(0)
        want_mean = (p * grid).sum()
        want_var = (p * (grid - want_mean) ** 2).sum()
        given = f"x_k = {x_k[i].item()}, eps = {eps[i].item():.4f}, k = {step}, T = {T}"
        prop = "the {} of q(x_{{k-1}} | x_k, x0), as Bayes' rule gives it on a fine grid"
        is_close(name, prop.format("variance"), given, _row(var, i), want_var[None], VARIANCE, 1e-5)
        is_close(name, prop.format("mean"), given, mean[i], want_mean[None], MEAN, 1e-5)
    one = torch.ones(5, dtype=torch.long)
    eps = torch.cat([_noise_between(x0[i], x_k[i], betas, 1) for i in range(len(k))])[:, None]
    mean, var = _two(name, call(name, fn, x_k, eps, one, betas))
    is_close(name, "at k = 1 the variance is 0: x_0 is known", "k = 1", var, torch.zeros_like(x0), ABAR_0, 1e-9)
    is_close(name, "at k = 1 the mean is x0", "k = 1", mean, x0, ABAR_0, 1e-9)
    right(name, 4)


def _noise_between(x0: Tensor, x_k: Tensor, betas: Tensor, k: int) -> Tensor:
    signal, var = _chain(betas, 0, k)
    return (x_k - signal * x0) / math.sqrt(var)


def _row(var: object, i: int) -> Tensor:
    """Row i of a variance that may be (b, 1) or (b, d); any other shape is for `is_close` to tell."""
    return var[i] if isinstance(var, Tensor) and var.ndim == 2 else var


def cosine_betas(fn: Callable) -> None:
    """Exercise 3: fn(T) -> (T,) betas of Improved DDPM's cosine schedule."""
    name = "cosine_betas"
    for steps in (50, 1000):
        betas = call(name, fn, steps)
        is_tensor_like(name, "betas", betas, torch.empty(steps, dtype=torch.float64), "one beta a step: T of them")
        given = f"T = {steps}"
        if not ((betas > 0) & (betas <= 0.999)).all():
            fail(
                name,
                "every beta lies in (0, 0.999]",
                given,
                f"from {betas.min():.4g} to {betas.max():.4g}",
                "the last beta would be 1, all signal gone in one step: clip it",
            )
        abar = (1 - betas).cumprod(0)[:-1]  # the clip touches the last one only
        start = math.pi / 2 * 0.008 / 1.008
        k = torch.arange(1, steps, dtype=torch.float64)
        angle = (abar.sqrt() * math.cos(start)).acos()
        is_close(
            name,
            "alpha-bar at T/2 is a little below 1/2, as it is for a cosine squared",
            given,
            abar[steps // 2 - 1],
            torch.tensor(math.cos(math.pi / 2 * 0.508 / 1.008) ** 2 / math.cos(start) ** 2, dtype=torch.float64),
            OFFSET,
            1e-9,
        )
        is_close(
            name,
            "arccos sqrt(alpha-bar) grows evenly from step to step, after the offset s = 0.008",
            given,
            angle,
            start + k / steps * (math.pi / 2 - start),
            "step k ends at t = k / T and begins at (k - 1) / T",
            1e-9,
        )
        is_close(
            name,
            "the last beta is clipped to 0.999, and no other",
            given,
            betas[-1:],
            torch.tensor([0.999], dtype=torch.float64),
            "clip at 0.999",
            1e-9,
        )
    right(name, 4)


def skip_step(fn: Callable) -> None:
    """Exercise 4: fn(x, eps, k, j, betas, z) -> x_j, an ancestral step from k to any j < k with the small variance.

    eps is what the network says of the noise in x = x_k, z is fresh standard noise; k and j are integers.
    """
    name, betas = "skip_step", linear_betas(T)
    g = torch.Generator().manual_seed(0)
    x, eps, z = (torch.randn(4, 2, generator=g, dtype=torch.float64) for _ in range(3))
    for k, j in ((T, T - 1), (T, 100), (60, 20), (2, 1)):
        given = f"k = {k}, j = {j}, T = {T}"
        quiet = call(name, fn, x, eps, k, j, betas, torch.zeros_like(z))
        is_tensor_like(name, "x_j", quiet, x)
        signal_k, var_k = _chain(betas, 0, k)
        signal_j, var_j = _chain(betas, 0, j)
        between, fresh = _chain(betas, j, k)
        x0 = (x - math.sqrt(var_k) * eps) / signal_k
        var = 1 / (1 / var_j + between**2 / fresh)  # precisions add
        want = var * (signal_j * x0 / var_j + between * x / fresh)
        is_close(
            name,
            "without noise x_j is the mean of q(x_j | x_k, x0) at the x0 that eps stands for",
            given,
            quiet,
            want,
            FIRST_X0,
            1e-6,
        )
        noise = call(name, fn, x, eps, k, j, betas, z) - quiet
        is_close(
            name,
            f"the noise has standard deviation {math.sqrt(var):.5f}",
            given,
            noise / z,
            torch.full_like(z, math.sqrt(var)),
            "the small variance is beta-tilde of the step from k to j; noise is scaled by its square root",
            1e-6,
        )
    signal, var = _chain(betas, 0, 30)
    last = call(name, fn, x, eps, 30, 0, betas, z)
    is_close(
        name,
        "a step to j = 0 returns x0 itself, without noise",
        f"k = 30, j = 0, T = {T}",
        last,
        (x - math.sqrt(var) * eps) / signal,
        "alpha-bar of step 0 is 1, so beta-tilde is 0 there",
        1e-6,
    )
    right(name, 3)


def best_eps(fn: Callable) -> None:
    """Exercise 5: fn(x, m, s, alpha, sigma) -> E[eps | x] for data x0 ~ N(m, s^2 I), x = alpha x0 + sigma eps."""
    name = "best_eps"
    x = torch.tensor([[-1.5], [0.0], [0.4], [2.0]], dtype=torch.float64)
    grid = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    for m, s, alpha, sigma in (
        (0.0, 1.0, 0.8, 0.6),
        (1.0, 0.5, 0.8, 0.6),
        (-2.0, 2.0, 0.3, 0.954),
        (1.0, 0.5, 1.0, 3.0),
    ):
        out = call(name, fn, x, m, s, alpha, sigma)
        is_tensor_like(name, "the prediction", out, x)
        # the mean over eps of q(eps | x) ~ N(eps; 0, 1) N((x - sigma eps) / alpha; m, s^2), on a grid of eps
        p = (-(grid**2) / 2 - ((x - sigma * grid) / alpha - m) ** 2 / (2 * s**2)).softmax(1)
        want = (p * grid).sum(1, keepdim=True)
        given = f"m = {m}, s = {s}, alpha = {alpha}, sigma = {sigma}, x = {x[:, 0].tolist()}"
        hint = "x is Gaussian: what are its mean and variance? then eps given x is a linear regression on x"
        is_close(name, "the mean of eps given x, as Bayes' rule gives it on a fine grid", given, out, want, hint, 1e-5)
    out = call(name, fn, x, 1.0, 0.0, 0.8, 0.6)
    is_close(
        name,
        "if all data are one point (s = 0), eps is known exactly: it is (x - alpha m) / sigma",
        "m = 1, s = 0, alpha = 0.8, sigma = 0.6",
        out,
        (x - 0.8) / 0.6,
        "nothing may be divided by s",
    )
    right(name, 2)


def _two(name: str, out: object) -> tuple[Tensor, Tensor]:
    if not isinstance(out, tuple) or len(out) != 2:
        fail(name, "a pair (mean, var) comes back", "any", type(out).__name__, "return mean, var")
    return out
