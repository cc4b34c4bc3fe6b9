"""Consistency models: a function that takes any point of an ODE path to the path's beginning (Song et al. 2023).

    f(x, t) = x at t_min,      f(x_t, t) = f(x_s, s) for all t, s on one path of the probability-flow ODE

`denoisers.ConsistencyDenoiser` has the first by its form, and training brings the second: f at t is drawn to a copy
of f at s < t that has no gradient. All the methods are `consistency_loss`, with other answers to three questions:

    where is x_s?            a step of a teacher's ODE from x_t (distillation), or x0 and the same noise (training)
    which s belongs to t?    `neighbours(n)`: the next of n levels, n by `ct_levels` or `ict_levels`; `ect_pairs`
    how far apart are they?  `squared`, `pseudo_huber`, or a distance of features

The limit of s -> t is `tangent_loss` (Lu & Song 2024), for a network that predicts v on `Cosine()`, which is TrigFlow.

Losses take `done`, the share of the training that is over, from `fit`.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser, NetDenoiser, denoiser
from tinydiff.samplers import heun_step
from tinydiff.schedules import Coefs, Schedule, Times
from tinydiff.schedules.base import widest

Pairs = Callable[[Schedule, Tensor, float | int], tuple[Tensor, Tensor]]
Distance = Callable[[Tensor, Tensor], Tensor]


# ---- how many levels, and how slow a target ------------------------------------------------------


def ct_levels(done: float | int, first: int = 2, last: int = 150) -> int:
    """N(k), noise levels of consistency training: from `first` to last + 1 as the root of its share k / K (Song et al.
    2023, appendix C): ceil(sqrt(k / K ((last + 1)^2 - first^2) + first^2) - 1) + 1."""
    return math.ceil(math.sqrt(done * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1


def ct_decay(done: float | int, first: int = 2, last: int = 150, mu: float = 0.9) -> float:
    """mu(k), decay of the target's average: mu at the start, nearer to 1 with more levels (ibid.):
    exp(first ln mu / N).

    The official code divides by N - 1 instead, so that it starts from mu^2 = 0.81.
    """
    return math.exp(first * math.log(mu) / ct_levels(done, first, last))


def ict_levels(done: float | int, first: int = 10, last: int = 1280) -> int:
    """Improved training: first + 1 levels, and twice the intervals after each of even shares of the training, up to
    last + 1 (Song & Dhariwal 2023, section 3.4)."""
    stages = int(math.log2(last // first)) + 1
    return min(first * 2 ** min(int(done * stages), stages - 1), last) + 1


# ---- which s belongs to t: (schedule, t, done) -> (t, s) -----------------------------------------


def neighbours(levels: int | Callable[[float], int]) -> Pairs:
    """Two levels next to each other, of so many on the clock of the schedule: t is moved up to one of them.

    On `EDM()` they are Karras' levels. With `uniform_times` each pair is as likely as another; with `lognormal_times`
    the chances are those of improved training (Song & Dhariwal 2023, section 3.5).
    """

    def pairs(schedule: Schedule, t: Tensor, done: float | int) -> tuple[Tensor, Tensor]:
        n = levels(done) if callable(levels) else levels
        start, width = schedule.t_min, (schedule.t_max - schedule.t_min) / (n - 1)
        i = ((widest(t) - start) / width - 1e-9).ceil().clamp(1, n - 1)
        return (start + i * width).clamp(max=schedule.t_max), start + (i - 1) * width  # a rounding may overshoot

    return pairs


def ect_pairs(q: float = 2.0, k: float = 8.0, b: float = 1.0, stages: int = 8) -> Pairs:
    """Easy consistency tuning (Geng et al. 2024, section 3): r = level (1 - q^-(a + 1) (1 + k sigmoid(-b level))).

    a grows from 0 to stages - 1, and s from 0, which is training a denoiser, towards t. level is sigma / alpha.
    """

    def pairs(schedule: Schedule, t: Tensor, done: float | int) -> tuple[Tensor, Tensor]:
        level = (-schedule.logsnr(widest(t)) / 2).exp()
        a = min(int(done * stages), stages - 1)
        r = level * (1 - q ** -(a + 1.0) * (1 + k * torch.sigmoid(-b * level)))
        least = math.exp(-float(schedule.logsnr(schedule.t_min)) / 2)
        s = schedule.time(-2 * r.clamp(min=least).log())
        return widest(t), torch.where(r <= least, 0.0, torch.minimum(s, widest(t)))

    return pairs


# ---- distances: (b, ...), (b, ...) -> (b,) -------------------------------------------------------


def squared(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """|x - y|^2, divided by the number of dimensions."""
    return ((x - y) ** 2).flatten(1).mean(1)


def pseudo_huber(c: float | None = None) -> Distance:
    """sqrt(|x - y|^2 + c^2) - c of the whole vector, with c = 0.00054 sqrt(dimensions) (Song & Dhariwal 2023, 3.3).

    Like a square near zero and a length far away, where a few large errors would else rule the gradient. `diffusers`
    takes it of each number of the vector alone, which is another loss.
    """

    def distance(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        gap = (x - y).flatten(1)
        soft = 0.00054 * math.sqrt(gap.shape[1]) if c is None else c
        return (gap.square().sum(1) + soft**2).sqrt() - soft

    return distance


# ---- the loss ------------------------------------------------------------------------------------


def inverse_gap(ct: Coefs, cs: Coefs) -> Tensor:
    """1 / (sigma_t - sigma_s): what improved training and ECT weigh by (there of EDM's levels)."""
    return 1 / (ct.sigma / ct.alpha - cs.sigma / cs.alpha)


def inverse_sigma(ct: Coefs, cs: Coefs) -> Tensor:
    """1 / sigma_t, for the target v on `Cosine()`: x0 = alpha x - sigma v has an error sigma times that of v, so that
    without a weight little noise counts little, and what is wrong there is handed on to every level above."""
    return 1 / ct.sigma


def consistency_loss(
    pairs: Pairs,
    distance: Distance = squared,
    teacher: Denoiser | None = None,
    weight: Callable[[Coefs, Coefs], Tensor] | None = None,
    decay: float | int | Callable[[float], float] = 0.0,
) -> Callable[..., Tensor]:
    """The loss of a consistency function, for `fit`.

    Args:
        teacher: given, x_s is one step of Heun's along its ODE (distillation, Algorithm 2); else x0 and the noise that
            is in x_t (training, Algorithm 3).
        weight: of a pair; None is 1.
        decay: mu, of an average of the weights that gives the target: a number, or a function of `done`. 0 is the
            weights as they are. This average is kept in the loss, not in checkpoints.

    Both passes see the same dropout, as in the official code.
    """
    average: list[Any] = []

    def loss(
        d: Denoiser,
        x0: Float[Tensor, "b *d"],
        t: Tensor,
        done: float | int = 0.0,
        eps: Float[Tensor, "b *d"] | None = None,
        **cond: Tensor,
    ) -> Float[Tensor, " b"]:
        eps = torch.randn_like(x0) if eps is None else eps
        t, s = pairs(d.schedule, t, done)
        ct, cs = d.schedule(t, like=x0), d.schedule(s, like=x0)
        x_t = ct.alpha * x0 + ct.sigma * eps
        with torch.no_grad():
            x_s = cs.alpha * x0 + cs.sigma * eps if teacher is None else heun_step(teacher, x_t, t, s, **cond)
        dropout = _random_state(x0)
        f_t = d(x_t, t, **cond).x0
        _random_state(x0, dropout)
        with torch.no_grad():
            mu = decay(done) if callable(decay) else decay
            f_s = _at(target_of(average, d, mu), x_s, s, cond)
        gap = distance(f_t, f_s)
        return gap if weight is None else weight(ct, cs).reshape(-1) * gap

    return loss


def _at(d: Denoiser, x: Tensor, s: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """f(x, s), which at s = 0 is x."""
    start = (s == 0).reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(start, x, d(x, torch.where(s == 0, d.schedule.t_min, s), **cond).x0)


def _random_state(x: Tensor, state: Tensor | None = None) -> Tensor | None:
    """The state of the random numbers that dropout draws for x; given one, goes back to it."""
    of = torch.cuda if x.is_cuda else torch
    return of.get_rng_state() if state is None else of.set_rng_state(state)


def target_of(average: list[Any], d: Any, mu: float) -> Denoiser:
    """d itself where mu is 0; else a copy whose weights move towards d's by 1 - mu at each call."""
    if mu == 0:
        return d
    if not average:
        average.append(copy.deepcopy(d.net).requires_grad_(False))
    torch._foreach_lerp_(list(average[0].parameters()), list(d.net.parameters()), 1 - mu)
    return replace(d, net=average[0])


# ---- the continuous limit ------------------------------------------------------------------------


def tangent_loss(
    teacher: Denoiser | None = None, warmup: float | int = 0.1, norm: float | int = 0.1
) -> Callable[..., Tensor]:
    """sCM (Lu & Song 2024, section 4 and Algorithm 1), for a NetDenoiser with targets.v on `Cosine()`, data of std 1.

    With the angle a = pi t / 2 that is TrigFlow: x = cos(a) x0 + sin(a) eps, F = v, f = cos(a) x - sin(a) F, and the
    boundary holds at a = 0 for any F. The tangent of f along the ODE, times cos(a), is

        g = -cos(a)^2 (F - dx/da) - r cos(a) sin(a) (x + dF/da)

    with dx/da the teacher's v, or in training that of (x0, eps); dF/da by forward mode; r rising from 0 to 1 over
    `warmup`, a share of the training; and g normalised to g / (|g| + norm). The loss |F - sg(F) - g|^2 has the gradient
    -2 g of F. The paper's learned weight e^w(t) is left out: it evens out the variance over t.
    """

    def loss(
        d: NetDenoiser,
        x0: Float[Tensor, "b *d"],
        t: Tensor,
        done: float | int = 0.0,
        eps: Float[Tensor, "b *d"] | None = None,
        **cond: Tensor,
    ) -> Float[Tensor, " b"]:
        eps = torch.randn_like(x0) if eps is None else eps
        out, g = tangent(d, x0, eps, t, teacher, min(1.0, done / warmup) if warmup else 1.0, **cond)
        size = g.flatten(1).norm(dim=1).reshape(-1, *[1] * (x0.ndim - 1)) / math.sqrt(x0[0].numel())
        g = g / (size + norm)
        return ((out - out.detach() - g) ** 2).flatten(1).mean(1)

    return loss


def tangent(
    d: NetDenoiser,
    x0: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    t: Times,
    teacher: Denoiser | None = None,
    r: float | int = 1.0,
    **cond: Tensor,
) -> tuple[Tensor, Tensor]:
    """(F, g) at x = cos(a) x0 + sin(a) eps: the network's output, with its gradient, and the tangent g without."""
    c = d.schedule(t, like=x0)
    cos, sin, x = c.alpha, c.sigma, c.alpha * x0 + c.sigma * eps
    if teacher is not None:
        with torch.no_grad():
            p = teacher(x, t, **cond)
        x0, eps = p.x0, p.eps
    dx = cos * eps - sin * x0  # dx/da

    def output(x: Tensor, t: Tensor) -> Tensor:
        return d.output(x, d.schedule(t, like=x), **cond)[0]

    dt = 2 / math.pi * torch.ones_like(c.t)  # dt/da
    out, dout = torch.func.jvp(output, (x, c.t.clone()), (cos * sin * dx, (cos * sin).reshape(-1) * dt))
    g = -(cos**2) * (out - dx) - r * (cos * sin * x + dout)  # dout is cos sin dF/da
    return out, g.detach()


# ---- editing without training --------------------------------------------------------------------


def replaced(d: Denoiser, reference: Float[Tensor, "b *d"], keep: Callable[[Tensor], Tensor]) -> Denoiser:
    """A denoiser whose x0 has what is known of the reference put in: Algorithm 4 of Song et al. 2023, as a guide.

    keep: an orthogonal projection on what is known, such as x * mask for inpainting, or the mean over blocks of pixels
    for super-resolution. x0 becomes x0 - keep(x0) + keep(reference); `consistency_multistep` noises it anew.
    """
    known = keep(reference)

    def edited(x: Tensor, t: Tensor, **cond: Tensor) -> Any:
        p = d(x, t, **cond)
        return p.with_x0(p.x0 - keep(p.x0) + known, d.schedule(t, like=x))

    return denoiser(edited, d.schedule)
