"""Ancestral sampling: one step of the reverse chain at a time (Ho et al. 2020, Algorithm 2).

The posterior of a chain, for any schedule, is with r = 1 - e^{logsnr_t - logsnr_s} (the share of noise that is new)

    (1)  q(x_s | x_t, x0) = N( A x0 + B x_t, r sigma_s^2 )
         A = alpha_s r,   B = (alpha_t / alpha_s) sigma_s^2 / sigma_t^2

which is Ho et al. 2020, eq. 6-7, where alpha_t^2 / alpha_s^2 = 1 - beta_t.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers.base import State, noise_like, pairs, sampler
from tinydiff.schedules import Coefs
from tinydiff.targets import Prediction


class Posterior(NamedTuple):
    """Equation (1): the mean is a_x0 x0 + a_x x_t, and var is its variance (beta-tilde)."""

    a_x0: Tensor
    a_x: Tensor
    var: Tensor


def posterior(ct: Coefs, cs: Coefs) -> Posterior:
    """q(x_s | x_t, x0) of equation (1), for s < t. Nothing is divided by alpha_t."""
    r = ct.new_noise(cs)
    return Posterior(cs.alpha * r, ct.alpha / cs.alpha * cs.sigma**2 / ct.sigma**2, cs.sigma**2 * r)


def small(p: Prediction, ct: Coefs, cs: Coefs) -> Tensor:
    """beta-tilde, the posterior's variance: right if all data were one point (Ho et al. 2020, section 3.2)."""
    return posterior(ct, cs).var


def large(p: Prediction, ct: Coefs, cs: Coefs) -> Tensor:
    """beta, the variance of the noising step from s to t: right if the data were N(0, I)."""
    return ct.new_noise(cs) * ct.sigma**2


def learned(p: Prediction, ct: Coefs, cs: Coefs) -> Tensor:
    """The model's own variance. Raises ValueError if it has none."""
    if p.var is None:
        raise ValueError(
            "var=learned needs a denoiser that predicts a variance: NetDenoiser(..., var=interpolated_variance)"
        )
    return p.var(ct, cs)


@sampler
def ancestral(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    var: Callable[[Prediction, Coefs, Coefs], Tensor] = small,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """DDPM's sampler (Ho et al. 2020, Algorithm 2), on any grid: the chain's posterior with x0 believed.

    Args:
        var: variance of a step: `small` (beta-tilde), `large` (beta), `learned`, or any function (p, ct, cs).
    """
    for t, s in pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        q = posterior(ct, cs)
        x = q.a_x0 * p.x0 + q.a_x * x
        if s > 0:  # the last step ends in data: no noise
            x = x + var(p, ct, cs).sqrt() * noise_like(x, generator)
        yield State(s, x, p.x0)


@sampler
def guided_ancestral(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    gradient: Callable[[Tensor, float], Tensor],
    var: Callable[[Prediction, Coefs, Coefs], Tensor] = small,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """`ancestral` with its mean moved by the variance times a gradient (Dhariwal and Nichol 2021, Algorithm 1).

    Args:
        gradient: (x, t) -> like x: scale * grad log p_t(y | x) guides by a classifier. It is taken at x_t, as official
            code does; Sohl-Dickstein's, at the mean, is `product`. The last step has no noise, and is not guided.
        var: as in `ancestral`.
    """
    for t, s in pairs(ts):
        belief = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        q = posterior(ct, cs)
        here, x = x, q.a_x0 * belief.x0 + q.a_x * x
        if s > 0:
            spread = var(belief, ct, cs)
            x = x + spread * gradient(here, t) + spread.sqrt() * noise_like(x, generator)
        yield State(s, x, belief.x0)
