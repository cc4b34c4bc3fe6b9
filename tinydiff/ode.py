"""The probability-flow ODE as a change of variables: encodings, and the log-density of a model.

    (1)  dx/dt = v(x, t) = alpha' x0 + sigma' eps      the velocity of a denoiser's belief
    (2)  d log p_t(x_t) / dt = -div v(x_t, t)           along a path of (1)

so log p at t_min is log p at t_max, where the density is the Gaussian that sampling starts from, plus the integral of
div v over the path (Chen et al. 2018, theorem 1; Song et al. 2021, eq. 39). Both are integrated together by the
Runge-Kutta pair of Dormand and Prince with a step chosen by its error, in float64: scipy's RK45, as in the official
code. The error is that of all elements together, so that one element's answer depends on the others within `tol`.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser

Velocity = Callable[[Tensor], Tensor]
Divergence = Callable[[Velocity, Tensor], tuple[Tensor, Tensor]]


def flow_map(
    d: Denoiser, x: Float[Tensor, "b *d"], t: float, s: float, tol: float = 1e-5, **cond: Tensor
) -> Float[Tensor, "b *d"]:
    """x at time s of the path of (1) that goes through x at time t; either may be the larger.

    From t_min to t_max it encodes data into noise, and back it samples. Times below t_min mean t_min.

    Args:
        tol: relative and absolute error of a step.

    Raises ValueError if a time leaves [0, 1] or tol is not positive, FloatingPointError if the velocity is not finite.
    """

    def rates(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return d(x, t, **cond).velocity(d.schedule(t, like=x)), torch.zeros(len(x))

    return _solve(d, rates, x, t, s, tol)[0]


def ode_log_likelihood(
    d: Denoiser,
    x0: Float[Tensor, "b *d"],
    *,
    divergence: Divergence | None = None,
    tol: float = 1e-5,
    prior: Callable[[Tensor], Tensor] | None = None,
    **cond: Tensor,
) -> Float[Tensor, " b"]:
    """log p(x0) in nats: the density, at t_min, of what the ODE of this denoiser makes of noise.

    Args:
        x0: taken as points at t_min.
        divergence: `exact` (the default; a backward pass for each dimension) or `hutchinson(probes)` (one).
        tol: relative and absolute error of a step; 1e-5 in the paper.
        prior: x -> (b,), log-density at t_max; by default N(0, prior_std^2), which is what samplers start from.

    Raises ValueError if tol is not positive, FloatingPointError where the velocity is not finite.
    """
    divergence = divergence or exact

    def rates(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return divergence(lambda x: d(x, t, **cond).velocity(d.schedule(t, like=x)), x)

    x, gained = _solve(d, rates, x0, d.schedule.t_min, d.schedule.t_max, tol)
    std = d.schedule.prior_std
    if prior is None:
        log_normal = -((x.flatten(1) / std) ** 2 + math.log(2 * math.pi * std**2)) / 2
        return log_normal.sum(1) + gained
    return prior(x) + gained


def bits_per_dim(log_p: Float[Tensor, " b"], dim: int, bin_width: float) -> Float[Tensor, " b"]:
    """Bits for each of `dim` values on a lattice of this spacing, from the log-density of dequantised data, in nats.

    -log2(p bin_width^dim) / dim. With noise uniform on a bin its mean bounds the bits of the lattice from above
    (Theis et al. 2016, section 3.1). The digits have bins of 1/8, 8-bit images in [-1, 1] of 2/255.
    """
    return -log_p / (dim * math.log(2)) - math.log2(bin_width)


# ---- divergences: (v, x) -> (v(x), div v(x)) -----------------------------------------------------


def exact(v: Velocity, x: Float[Tensor, "b *d"]) -> tuple[Float[Tensor, "b *d"], Float[Tensor, " b"]]:
    """The trace of the Jacobian, entry by entry: one backward pass for each dimension."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = v(x)
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for i, sum_i in enumerate(out.flatten(1).sum(0)):
            (grad,) = torch.autograd.grad(sum_i, x, retain_graph=True)
            total = total + grad.flatten(1)[:, i]
    return out.detach(), total


def hutchinson(probes: Float[Tensor, "k b *d"]) -> Divergence:
    """An unbiased estimate: the mean over k probes z of z^T J z, where E[z z^T] = I (Hutchinson 1990; Skilling 1989).

    The probes are kept along the whole path, so that the ODE stays one. Draw them by `rademacher`, or from N(0, I).
    """

    def divergence(v: Velocity, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = v(x)
            total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for z in probes.to(x):
                (grad,) = torch.autograd.grad((out * z).sum(), x, retain_graph=True)
                total = total + (grad * z).flatten(1).sum(1)
        return out.detach(), total / len(probes)

    return divergence


def rademacher(
    x: Float[Tensor, "b *d"], probes: int = 1, generator: torch.Generator | None = None
) -> Float[Tensor, "{probes} b *d"]:
    """Probes of independent signs, for `hutchinson`; of all probes they have the least variance."""
    signs = torch.randint(0, 2, (probes, *x.shape), generator=generator, device=x.device)
    return (2 * signs - 1).to(x.dtype)


def _solve(
    d: Denoiser, rates: Callable[[Tensor, float], tuple[Tensor, Tensor]], x: Tensor, t: float, s: float, tol: float
) -> tuple[Tensor, Tensor]:
    """x and the integral of the second rate, from t to s."""
    from scipy.integrate import solve_ivp

    if not tol > 0 or not (0 <= t <= 1 and 0 <= s <= 1):
        raise ValueError(f"tol must be positive and times lie in [0, 1]; got {tol=}, t = {t}, s = {s}")
    span = [min(max(v, d.schedule.t_min), d.schedule.t_max) for v in (t, s)]
    if span[0] == span[1]:  # there is no way to go, which scipy does not take
        return x, torch.zeros(len(x)).to(x)
    size = x.numel()

    def both(t: float, state):
        there = torch.from_numpy(state[:size]).reshape(x.shape).to(x)
        velocity, second = rates(there, float(t))
        if not velocity.isfinite().all() or not second.isfinite().all():
            raise FloatingPointError(f"the velocity or its divergence is not finite at t = {t:g}")
        return torch.cat([velocity.flatten(), second.to(velocity)]).cpu().double().numpy()

    start = torch.cat([x.detach().flatten().cpu().double(), torch.zeros(len(x), dtype=torch.float64)])
    solved = solve_ivp(both, span, start.numpy(), method="RK45", rtol=tol, atol=tol, t_eval=span[1:])
    if not solved.success:
        raise FloatingPointError(f"the ODE could not be solved: {solved.message}")
    end = torch.from_numpy(solved.y[:, -1]).to(x)
    return end[:size].reshape(x.shape), end[size:]
