"""Langevin dynamics: samples from a density of which only the score, the gradient of its logarithm, is known.

    (1)  x <- x + eps/2 score(x) + sqrt(eps) z,      z ~ N(0, I)        (Welling & Teh 2011, eq. 3-4)

Step sizes count as in (1), as in SGLD and NCSN. NCSNv2 and the score SDE write x + a score + sqrt(2 a) z, so their
number is a = eps / 2. For a Gaussian of variance v, (1) settles at v / (1 - eps / (4 v)), not at v: the error falls
with the step, and `mala` is (1) without it.

`langevin` and `mala` know no times and no denoiser, so they yield `Chain`s. `annealed_langevin` runs (1) at one noise
level after another and is a sampler like the others, with `State`s.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers.base import State, known_part, noise_like, pairs, sampler

Score = Callable[[Tensor], Tensor]


class Chain(NamedTuple):
    """Where Markov chains are after a step of size eps. They have no time and believe in no x0, so this is no State.

    `accept` is the probability (b,) with which `mala` took the step, or None where nothing is refused. With steps that
    decay, an average over the chain weights each x by its eps (Welling & Teh 2011, section 4).
    """

    eps: float
    x: Tensor
    accept: Tensor | None = None


@sampler
def langevin(
    score: Score, x: Float[Tensor, "b *d"], steps: Iterable, generator: torch.Generator | None = None
) -> Iterator[Chain]:
    """Equation (1) with one step per size in `steps`; with `stochastic_score` it is SGLD (Welling & Teh 2011, eq. 4).

    Args:
        score: any function (b, ...) -> (b, ...).
        steps: positive step sizes: a tensor, a list, `itertools.repeat(0.1)`.
    """
    for eps in map(_size, steps):
        x = x + eps / 2 * score(x) + math.sqrt(eps) * noise_like(x, generator)
        yield Chain(eps, x)


@sampler
def mala(
    log_prob: Callable[[Tensor], Tensor],
    x: Float[Tensor, "b *d"],
    steps: Iterable,
    generator: torch.Generator | None = None,
) -> Iterator[Chain]:
    """Langevin steps that are accepted or refused, so that they settle at p itself (Roberts & Tweedie 1996, MALA).

    With q(y | x) the density of equation (1), y is accepted with probability min(1, p(y) q(x | y) / (p(x) q(y | x))).

    Args:
        log_prob: (b, ...) -> (b,), log p up to a constant; autograd makes the score of it.
    """
    value, score = _with_score(log_prob, x)
    for eps in map(_size, steps):
        y = x + eps / 2 * score + math.sqrt(eps) * noise_like(x, generator)
        value_y, score_y = _with_score(log_prob, y)
        there, back = y - x - eps / 2 * score, x - y - eps / 2 * score_y  # log q = -square / (2 eps) + constant
        log_ratio = value_y - value + (there**2 - back**2).flatten(1).sum(1) / (2 * eps)
        accept = log_ratio.exp().clamp(max=1).nan_to_num(0.0)  # nan: y has no score, outside the support
        yes = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype) < accept
        rows = yes.reshape(-1, *[1] * (x.ndim - 1))
        x, score, value = torch.where(rows, y, x), torch.where(rows, score_y, score), torch.where(yes, value_y, value)
        yield Chain(eps, x, accept)


@sampler
def annealed_langevin(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    steps_per_level: int = 100,
    eps: float = 2e-5,
    generator: torch.Generator | None = None,
    denoise: bool = True,
    known: Tensor | None = None,
    mask: Tensor | None = None,
) -> Iterator[State]:
    """NCSN's sampler (Song & Ermon 2019, Algorithm 1), and NCSNv2's (Song & Ermon 2020, Algorithm 1) with `denoise`.

    With `known` and `mask` it fills in the rest (Song & Ermon 2019, Algorithm 2): at each level the known part is
    noised to that level, once, and put in its place after every step. (NCSNv2's code noises it afresh at every step.)

    Args:
        ts: the noise levels, as decreasing times of a schedule with alpha = 1 (VE, EDM). A 0 at the end is no level.
        eps: step size at the last level; level i has eps sigma_i^2 / sigma_L^2. NCSNv2's epsilon is half of it.
        denoise: end with x + sigma_L^2 score(x), which is the x0 that is believed in, in a State at t = 0; what is
            known is there exactly, without noise.
        known: data of the shape of x. mask: true where they are known; broadcasts to x.

    Raises ValueError for other schedules, times that do not fall, a step size that is not positive, only one of `known`
    and `mask`, or shapes that do not fit.
    """
    known, mask = known_part(x, known, mask)
    levels = [t for t, _ in pairs(ts if len(ts) and ts[-1] == 0 else F.pad(ts, (0, 1)))]
    last = d.schedule(levels[-1], like=x)
    for t in levels:
        c = d.schedule(t, like=x)
        if not (c.alpha == 1).all():
            raise ValueError(
                f"annealed_langevin needs a schedule with alpha = 1, such as VE() or EDM(); {d.schedule} has alpha = "
                f"{c.alpha.flatten()[0]:g} at t = {t:g}"
            )
        size = _size(eps) * (c.sigma / last.sigma) ** 2
        noised = known + c.sigma * noise_like(x, generator) if mask.any() else known
        for _ in range(steps_per_level):
            p = d(x, t)
            x = x + size / 2 * p.score(c) + size.sqrt() * noise_like(x, generator)
            x = torch.where(mask, noised, x)
            yield State(t, x, p.x0)
    if denoise:
        x = d(x, levels[-1]).x0
        x = torch.where(mask, known, x)
        yield State(0.0, x, x)


# ---- mini-batches and decaying steps (Welling & Teh 2011) ----------------------------------------


def sgld_steps(a: float, b: float, gamma: float, n: int) -> Float[Tensor, " {n}"]:
    """eps_t = a (b + t)^-gamma for t = 0 ... n - 1 (Welling & Teh 2011, below eq. 4).

    For gamma in (1/2, 1] the sum of all steps is infinite and that of their squares is not (eq. 2). float64.
    Raises ValueError unless a and b are positive, gamma is in (1/2, 1] and n is at least 1.
    """
    if not (a > 0 and b > 0 and 0.5 < gamma <= 1 and n >= 1):
        raise ValueError(f"needs a > 0, b > 0, gamma in (0.5, 1] and n >= 1; got {a=:g}, {b=:g}, {gamma=:g}, {n=}")
    return a * (b + torch.arange(n, dtype=torch.float64)) ** -gamma


def sgld_constants(first: float, last: float, gamma: float, n: int) -> tuple[float, float]:
    """(a, b) for which the n steps of `sgld_steps` fall from first to last.

    With r = (last / first)^(1 / gamma) = b / (b + n - 1):  b = (n - 1) r / (1 - r),  a = first b^gamma.
    Raises ValueError unless first > last > 0, gamma > 0 and n is at least 2.
    """
    if not (first > last > 0 and gamma > 0 and n >= 2):
        raise ValueError(f"needs first > last > 0, gamma > 0 and n >= 2; got {first=:g}, {last=:g}, {gamma=:g}, {n=}")
    r = (last / first) ** (1 / gamma)
    b = (n - 1) * r / (1 - r)
    return first * b**gamma, b


def stochastic_score(
    log_prior: Callable[[Tensor], Tensor],
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    data: Float[Tensor, "N *x"],
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Score:
    """An unbiased estimate of a posterior's score from n of N data: the bracket of Welling & Teh 2011, eq. 4.

        grad [ log p(theta) + N/n sum_i log p(x_i | theta) ]

    Each chain has a batch of its own, drawn afresh at each call without replacement; with n = N it is exact.

    Args:
        log_prior: theta (b, ...) -> (b,).
        log_likelihood: theta (b, ...) and data (b, n, ...) -> (b, n).

    Raises ValueError unless 1 <= batch_size <= N.
    """
    total = len(data)
    if not 1 <= batch_size <= total:
        raise ValueError(f"batch_size must be from 1 to the {total} data; got {batch_size}")

    def log_posterior(theta: Tensor) -> Tensor:
        order = torch.rand(len(theta), total, generator=generator, device=data.device)
        batch = data[order.topk(batch_size).indices]
        return log_prior(theta) + total / batch_size * log_likelihood(theta, batch).sum(1)

    return lambda theta: _with_score(log_posterior, theta)[1]


def _with_score(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x) and its gradient in x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_prob(x)
        if value.shape != x.shape[:1]:
            raise ValueError(f"a log-density must have shape ({len(x)},), a number for each x; got {(*value.shape,)}")
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def _size(eps: float | Tensor) -> float:
    if not 0 < eps < math.inf:
        raise ValueError(f"a step size must be positive and finite; got {float(eps):g}")
    return float(eps)
