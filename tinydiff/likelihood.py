"""The variational bound: what a reverse chain says of the data's log-density, in bits per dimension.

A reverse chain p(x_s | x_t) of Gaussians along a grid 1 = t_n > ... > t_1 > 0 bounds the density of its own samples:

    (1)  -log p(x0) <=  KL(q(x_T | x0) || prior)                                     the prior term
                      + sum E KL(q(x_s | x_t, x0) || p(x_s | x_t))                   a term for each step to s > 0
                      + E[-log p(x0 | x_t)]                                          the decoder, the step to s = 0

(Sohl-Dickstein et al. 2015, eq. 13-14; in this form Ho et al. 2020, eq. 5). q(x_s | x_t, x0) is `samplers.posterior`;
the mean of p(x_s | x_t) is that with the denoiser's x0 for the true one, so B x_t is in both means and cancels in a KL.

Unit: every term is a mean over dimensions of nats / ln 2. With a discretised decoder it is bits that code a pixel,
never negative. With a Gaussian decoder the sum is about a density, and -dim * its mean over data is what
Sohl-Dickstein et al. call K (their decoder is fixed: it reverses the first step as if the data were N(0, I)).

A reverse variance is a function (p, ct, cs), such as `samplers.small`, `large`, `learned`. At s = 0 the small one is 0
and says nothing. DDPM's and Improved DDPM's code takes there the beta-tilde of the step before: `clipped`.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers import noise_like, pairs, posterior, small
from tinydiff.schedules import Coefs, Schedule, Times
from tinydiff.targets import Prediction

ReverseVariance = Callable[[Prediction, Coefs, Coefs], Tensor]
Decoder = Callable[[Tensor, Tensor, Tensor], Tensor]

# ---- Gaussians, a dimension at a time, in nats ---------------------------------------------------


def gaussian_kl(mean1: Tensor, var1: Tensor, mean2: Tensor, var2: Tensor) -> Tensor:
    """KL( N(mean1, var1) || N(mean2, var2) ) of each dimension, in nats; the shapes broadcast.

    (v - 1 - log v + (mean1 - mean2)^2 / var2) / 2 with v = var1 / var2, exact for v near 1 as well.
    """
    log_v = var1.log() - var2.log()
    return (torch.expm1(log_v) - log_v + (mean1 - mean2) ** 2 / var2) / 2


def gaussian_log_likelihood(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """log N(x; mean, var) of each dimension, in nats: the decoder of continuous data."""
    return -((x - mean) ** 2 / var + (2 * math.pi * var).log()) / 2


def discretised_log_likelihood(x: Tensor, mean: Tensor, var: Tensor, half_width: float = 1 / 255) -> Tensor:
    """log of the N(mean, var) mass in the bin x +- half_width, of each dimension, in nats (Ho et al. 2020, eq. 13).

    The bins of x = -1 and x = 1 are open to infinity, so the levels -1, -1 + 2 half_width, ..., 1 sum to 1.

    Args:
        half_width: 1 / (levels - 1): 1/255 for 8-bit images, 1/16 for the 17 levels of the digits.
            As a decoder: functools.partial(discretised_log_likelihood, half_width=1 / 16).
    """
    std, away = var.sqrt(), x - mean
    lower = torch.where(x < -1 + half_width, -math.inf, (away - half_width) / std)
    upper = torch.where(x > 1 - half_width, math.inf, (away + half_width) / std)
    flip = away > 0  # into the left tail, where log Phi keeps its digits
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_lower, log_upper = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
    # log(e^upper - e^lower)
    share = -torch.expm1(log_lower - log_upper)
    return log_upper + share.clamp(min=torch.finfo(share.dtype).tiny).log()


# ---- the bound -----------------------------------------------------------------------------------


def clipped(var: ReverseVariance, schedule: Schedule, before: Times | None = None) -> ReverseVariance:
    """The same variance, but at s = 0 it is told the beta-tilde of the step before in place of sigma_s^2 = 0.

    So `small` gives that beta-tilde, `large` gives beta of its own step as ever, and `learned` interpolates the two:
    log beta-tilde with entry 0 replaced by entry 1, as in the code of Ho et al. 2020 and Nichol & Dhariwal 2021.

    Args:
        before: the time of the grid before t; by default 2 t, right for an even grid. A chain of one step has none,
            and gets beta.
    """
    return lambda p, ct, cs: var(p, ct, _clip(schedule, ct, cs, before))


def _clip(schedule: Schedule, ct: Coefs, cs: Coefs, before: Times | None) -> Coefs:
    before = (2 * ct.t).clamp(max=1) if before is None else before
    step_before = posterior(schedule(before, like=ct.alpha), ct).var
    left = torch.where(step_before > 0, step_before, ct.sigma**2)
    cs = copy.copy(cs)
    cs.sigma = torch.where(cs.sigma > 0, cs.sigma, left.sqrt())
    return cs


def _bits(v: Tensor) -> Float[Tensor, " b"]:
    return v.flatten(1).mean(1) / math.log(2)


def step_term(
    schedule: Schedule,
    p: Prediction,
    x0: Tensor,
    ct: Coefs,
    cs: Coefs,
    var: ReverseVariance,
    decoder: Decoder,
    decoder_var: ReverseVariance | None = None,
    before: Times | None = None,
) -> Float[Tensor, " b"]:
    """The term of equation (1) of a step, in bits per dimension, from what is believed at t. See `vlb_term`."""
    wrong = ~((cs.t < ct.t) & (ct.new_noise(cs).reshape(-1) > 0))
    if wrong.any():
        t, s = (float(c.t[wrong][0]) for c in (ct, cs))
        raise ValueError(f"s must be less than t, with noise added between; got t = {t:g}, s = {s:g}")
    at_data = cs.t == 0
    # there the KL is not used, but must be finite, and its gradient too: so it also has the clip
    real, cs = cs, _clip(schedule, ct, cs, before) if at_data.any() else cs
    q, var_p = posterior(ct, cs), var(p, ct, cs)
    kl = _bits(gaussian_kl(q.a_x0 * x0, q.var, q.a_x0 * p.x0, var_p))
    if not at_data.any():
        return kl
    var_0 = var_p if decoder_var is None else decoder_var(p, ct, real)
    return torch.where(at_data, _bits(-decoder(x0, p.x0, var_0)), kl)


def vlb_term(
    d: Denoiser,
    x0: Float[Tensor, "b *d"],
    t: Times,
    s: Times,
    *,
    var: ReverseVariance = small,
    decoder: Decoder = gaussian_log_likelihood,
    decoder_var: ReverseVariance | None = None,
    before: Times | None = None,
    eps: Float[Tensor, "b *d"] | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Float[Tensor, " b"]:
    """The term of equation (1) of the step from t to s, in bits per dimension, at one draw of x_t.

    Args:
        t, s: s < t; where s = 0 the term is the decoder's.
        var: variance of p(x_s | x_t): `samplers.small`, `large`, `learned`, or any function (p, ct, cs).
        decoder: (x0, mean, var) -> log-likelihood of each dimension, in nats. By default for continuous data.
        decoder_var: the decoder's variance; by default var, `clipped`. DDPM's code with large variances has
            clipped(small, schedule).
        before: see `clipped`.
        eps: the noise in x_t; by default drawn. The term is quadratic in it if the denoiser is linear.

    Raises ValueError unless s < t.
    """
    ct, cs = d.schedule(t, like=x0), d.schedule(s, like=x0)
    eps = noise_like(x0, generator) if eps is None else eps
    p = d(ct.alpha * x0 + ct.sigma * eps, t, **cond)
    return step_term(d.schedule, p, x0, ct, cs, var, decoder, decoder_var, before)


class Bound(NamedTuple):
    """Equation (1) in bits per dimension: `total` of each x0 is prior + terms.sum(0). Plot terms.mean(1) over ts[:-1].

    Attributes:
        prior: (b,).
        terms: (n, b), one of each step; the last one is the decoder's.
        ts: the grid, n + 1 times.
    """

    prior: Tensor
    terms: Tensor
    ts: Tensor

    @property
    def total(self) -> Float[Tensor, " b"]:
        return self.prior + self.terms.sum(0)


@torch.no_grad()
def bound(
    d: Denoiser,
    x0: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    *,
    var: ReverseVariance = small,
    decoder: Decoder = gaussian_log_likelihood,
    decoder_var: ReverseVariance | None = None,
    prior_std: float | None = None,
    eps: Float[Tensor, "b *d"] | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Bound:
    """All terms of equation (1) along a grid, each at its own draw of x_t: an unbiased estimate of the bound.

    Args:
        ts: a grid, as samplers take it, that ends in 0 (`schedules.grid`).
        prior_std: of p(x_T); by default the schedule's.
        eps: one noise for all steps; by default each step draws its own.
        The others: see `vlb_term`.

    Raises ValueError if ts does not end in 0.
    """
    steps = list(pairs(ts))
    if steps[-1][1] != 0:
        raise ValueError(f"ts must end in 0, where the data are; got {steps[-1][1]:g}")
    c = d.schedule(steps[0][0], like=x0)
    std = torch.as_tensor(d.schedule.prior_std if prior_std is None else prior_std).to(x0)
    prior = _bits(gaussian_kl(c.alpha * x0, c.sigma**2, torch.zeros_like(x0), std**2))
    options = dict(var=var, decoder=decoder, decoder_var=decoder_var, eps=eps, generator=generator)
    earlier = [None, *(t for t, _ in steps)]
    terms = [vlb_term(d, x0, t, s, before=b, **options, **cond) for (t, s), b in zip(steps, earlier, strict=False)]
    return Bound(prior, torch.stack(terms), torch.as_tensor(ts))
