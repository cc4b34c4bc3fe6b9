"""Fast solvers of the probability-flow ODE, in the coordinates of their papers.

In x / alpha and s = sigma / alpha every schedule's ODE is one and the same (Karras et al. 2022, eq. 4),

    (1)  d(x / alpha) = eps(x, t) ds,       s = sigma / alpha

and in lambda = log(alpha / sigma), half the log-SNR, its linear part is solved exactly (Lu et al. 2022, Prop. 3.1;
Lu et al. 2022b, Prop. 4.1), so that a step approximates only the integral of the belief:

    (2)  x_s = (alpha_s / alpha_t) x_t - alpha_s int e^-lambda eps dlambda     from lambda_t to lambda_s
    (3)  x_s = (sigma_s / sigma_t) x_t + sigma_s int e^lambda  x0  dlambda

Euler's rule on (1), and holding eps in (2) or x0 in (3) still, are all the DDIM step. Each solver takes the step into
t = 0 at first order, which returns the x0 believed in: no call is made at t = 0.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers.base import State, noise_like, pairs, sampler
from tinydiff.schedules import Coefs, Times


@sampler
def euler(d: Denoiser, x: Float[Tensor, "b *d"], ts: Float[Tensor, " n"]) -> Iterator[State]:
    """Euler's rule on (1): first order, one call a step, the same points as `ddim`. Needs alpha > 0."""
    for t, s in pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        x = cs.alpha * (x / ct.alpha + _ds(ct, cs) * p.eps)
        yield State(s, x, p.x0)


@sampler
def heun(d: Denoiser, x: Float[Tensor, "b *d"], ts: Float[Tensor, " n"]) -> Iterator[State]:
    """Heun's rule on (1): second order, 2 n - 1 calls for n steps (Karras et al. 2022, Algorithm 1). Needs alpha > 0.

    Where alpha nearly vanishes at the start (`Cosine`, `Flow`), s falls by thousands in the first step of an even grid,
    and the mean of two slopes over it is far off: take a grid even in log-SNR, or `probability_flow` with rk2.
    """
    for t, s in pairs(ts):
        p = d(x, t)
        x = _heun_step(d, x, p.eps, t, s)
        yield State(s, x, p.x0)


def _heun_step(d: Denoiser, x: Tensor, eps: Tensor, t: Times, s: Times, **cond: Tensor) -> Tensor:
    ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
    x_s = cs.alpha * (x / ct.alpha + _ds(ct, cs) * eps)
    if isinstance(s, Tensor) or s > 0:
        x_s = cs.alpha * (x / ct.alpha + _ds(ct, cs) * (eps + d(x_s, s, **cond).eps) / 2)
    return x_s


def heun_step(
    d: Denoiser, x: Float[Tensor, "b *d"], t: Float[Tensor, " b"], s: Float[Tensor, " b"], **cond: Tensor
) -> Float[Tensor, "b *d"]:
    """One step of Heun's rule from times t to 0 < s < t, another pair for each element: a consistency model's teacher.

    Where the schedule jumps, as EDM() does, it is that of `heun`; else it is a step in t, for the reason given there.
    """
    p = d(x, t, **cond)
    if d.schedule.jumps:
        return _heun_step(d, x, p.eps, t, s, **cond)
    ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
    h = (s - t).reshape(-1, *[1] * (x.ndim - 1)).to(x)
    end = d(x + h * p.velocity(ct), s, **cond)
    return x + h * (p.velocity(ct) + end.velocity(cs)) / 2


@sampler
def edm_stochastic(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    churn: float = 40.0,
    low: float = 0.05,
    high: float = 50.0,
    noise: float = 1.003,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Heun's rule with fresh noise before each step (Karras et al. 2022, Algorithm 2). Defaults: its ImageNet-64.

    Args:
        churn, low, high, noise: S_churn, S_tmin, S_tmax, S_noise of the paper; low and high bound sigma / alpha. A step
            first raises the noise level by the factor 1 + min(churn / n, sqrt(2) - 1), at most to that of t_max.

    Raises ValueError if churn or noise is negative.
    """
    if churn < 0 or noise < 0:
        raise ValueError(f"churn and noise must be at least 0; got {churn=:g}, {noise=:g}")
    steps = list(pairs(ts))
    most = float(_level(d.schedule(d.schedule.t_max, like=x)))
    for t, s in steps:
        ct = d.schedule(t, like=x)
        level = float(_level(ct))
        gamma = min(churn / len(steps), math.sqrt(2) - 1) if low <= level <= high else 0.0
        raised = min(level * (1 + gamma), most)
        if raised > level:
            t = float(d.schedule.time(torch.tensor(-2 * math.log(raised), dtype=torch.float64)))
            alpha = d.schedule(t, like=x).alpha
            x = alpha * (x / ct.alpha + noise * math.sqrt(raised**2 - level**2) * noise_like(x, generator))
        p = d(x, t)
        x = _heun_step(d, x, p.eps, t, s)
        yield State(s, x, p.x0)


@sampler
def dpm_solver_1(d: Denoiser, x: Float[Tensor, "b *d"], ts: Float[Tensor, " n"]) -> Iterator[State]:
    """(2) with eps held still: first order, one call a step (Lu et al. 2022, eq. 3.7). The same points as `ddim`."""
    for t, s in pairs(ts):
        p = d(x, t)
        x = _eps_step(d, x, p.eps, t, s) if s > 0 else p.x0
        yield State(s, x, p.x0)


@sampler
def dpm_solver_2(d: Denoiser, x: Float[Tensor, "b *d"], ts: Float[Tensor, " n"]) -> Iterator[State]:
    """(2) with eps taken half-way in lambda: second order, 2 n - 1 calls (Lu et al. 2022, Algorithm 1)."""
    for t, s in pairs(ts):
        p = d(x, t)
        if s > 0:
            ends = d.schedule.logsnr(torch.tensor([t, s], dtype=torch.float64))
            middle = float(d.schedule.time(ends.mean()))
            x = _eps_step(d, x, d(_eps_step(d, x, p.eps, t, middle), middle).eps, t, s)
        else:
            x = p.x0
        yield State(s, x, p.x0)


def _eps_step(d: Denoiser, x: Tensor, eps: Tensor, t: float, s: float) -> Tensor:
    """x_s of (2) with a constant eps: (alpha_s / alpha_t) x - sigma_s (e^h - 1) eps, h = lambda_s - lambda_t."""
    ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
    return cs.alpha / ct.alpha * x - cs.sigma * torch.expm1(ct.rise(cs) / 2) * eps


@sampler
def dpmpp_2m(d: Denoiser, x: Float[Tensor, "b *d"], ts: Float[Tensor, " n"]) -> Iterator[State]:
    """DPM-Solver++(2M): (3) with x0 on a line through the last two beliefs (Lu et al. 2022b, Algorithm 2).

    Second order with one call a step; the first step, and the one into t = 0, are of first order.
    """
    before, h_before = None, None
    for t, s in pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        h = ct.rise(cs) / 2
        x0 = p.x0
        if before is not None and s > 0:
            x0 = x0 + h / h_before / 2 * (x0 - before)  # the line's value at the middle of the step
        x = cs.sigma / ct.sigma * x - cs.alpha * torch.expm1(-h) * x0
        before, h_before = p.x0, h
        yield State(s, x, p.x0)


def _level(c: Coefs) -> Tensor:
    """sigma / alpha, which must be equal for the whole batch: one number."""
    return (c.sigma / c.alpha).flatten()[0]


def _ds(ct: Coefs, cs: Coefs) -> Tensor:
    return cs.sigma / cs.alpha - ct.sigma / ct.alpha
