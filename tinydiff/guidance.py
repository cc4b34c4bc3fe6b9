"""Wrappers from denoiser to denoiser. They compose, and every sampler takes the result.

bind(d, y=labels)                           the condition is fixed, so the sampler need not know of it
cfg(d, w, cond=dict(y=y), null=dict(y=n))   u + w (c - u): classifier-free guidance
classifier(d, log_prob, scale)              the score of p_t(x) p_t(y | x)^scale, from a classifier of noisy x
autoguide(good, bad, w)                     away from a worse model, w as in cfg
interval(guided, plain, low, high)          guidance at the middle levels of noise only
thresholded(d, static() | dynamic())        x0 is kept in the range of the data, and eps follows
counted(d)                                  counts the calls of what it wraps

One convention of the scale for all: 0 is the unconditional (or the bad) model, 1 the conditional (the good) one, and
above 1 is guidance. Ho and Salimans' own w is ours less 1; GLIDE, Imagen, Stable Diffusion and diffusers count as here.

What comes out of guidance is in general not the diffusion of any distribution of data: `exact.guided_gaussian` says
what it samples where that can be worked out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.schedules import Coefs, Times
from tinydiff.targets import Prediction, Target, decode, encode, v


class Guide:
    """Base of the wrappers: the schedule is that of the denoiser within, and so are its codec and whether it pairs."""

    denoiser: Denoiser
    fixed = False  # True: to the batch of its conditions

    @property
    def schedule(self) -> Any:
        return self.denoiser.schedule

    @property
    def codec(self) -> Any:
        """What the data are decoded by, if they are latents."""
        return getattr(self.denoiser, "codec", None)

    @property
    def paired(self) -> bool:
        """False if x0 and eps are of two beliefs, as CFG++ has them."""
        return getattr(self, "rule", None) is not cfg_plus_plus and all(getattr(d, "paired", True) for d in self.within)

    @property
    def within(self) -> list[Denoiser]:
        """The denoisers that this one asks."""
        return [getattr(self, name) for name in ("denoiser", "bad", "plain") if hasattr(self, name)]


@dataclass(frozen=True, eq=False)
class bind(Guide):
    """The denoiser with its conditions fixed: bind(d, y=y)(x, t) is d(x, t, y=y). Batch-first tensors, as d wants."""

    denoiser: Denoiser
    cond: dict[str, Any]

    @property
    def fixed(self) -> bool:
        return any(isinstance(value, Tensor) for value in self.cond.values())

    def __init__(self, denoiser: Denoiser, **cond: Any) -> None:
        object.__setattr__(self, "denoiser", denoiser)
        object.__setattr__(self, "cond", cond)

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        _once(self.cond, cond, x)
        return self.denoiser(x, t, **self.cond, **cond)


# ---- two beliefs: classifier-free guidance and autoguidance --------------------------------------

Scale = Tensor | float | int
Rule = Callable[[Prediction, Prediction, Any, Coefs], Prediction]  # (u, c, w, coefs): what to make of two beliefs


def linear(u: Prediction, c: Prediction, w: Scale, coefs: Coefs) -> Prediction:
    """u + w (c - u), the same for x0 and for eps, since both beliefs are of one x."""
    return Prediction(u.x0 + w * (c.x0 - u.x0), u.eps + w * (c.eps - u.eps), c.var)


@dataclass(frozen=True)
class rescaled:
    """`linear`, then a share phi of the way to the conditional belief's std (Lin et al. 2023, eq. 15-16).

    The std is that of each sample over all its numbers, in the space of `target`: v, as in the paper, whose network
    predicts it. Against overexposure at large w. Raises ValueError unless phi lies in [0, 1].
    """

    phi: float = 0.7
    target: Target = v

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi must lie in [0, 1]; got {self.phi}")

    def __call__(self, u: Prediction, c: Prediction, w: Scale, coefs: Coefs) -> Prediction:
        p, dims = linear(u, c, w, coefs), tuple(range(1, c.x0.ndim))
        out, kept = (encode(self.target, coefs, q.x0, q.eps) for q in (p, c))
        factor = kept.std(dims, keepdim=True) / out.std(dims, keepdim=True)
        x = coefs.alpha * p.x0 + coefs.sigma * p.eps
        return decode(self.target, coefs, x, out * (1 + self.phi * (factor - 1)), p.var)


def cfg_plus_plus(u: Prediction, c: Prediction, w: Scale, coefs: Coefs) -> Prediction:
    """CFG++ (Chung et al. 2024, Algorithm 2): the guided x0 with the unconditional noise, w in [0, 1].

    A step of DDIM then is alpha_s x0_guided + sigma_s eps_u. The pair breaks x = alpha x0 + sigma eps on purpose, so
    only `ddim` with eta = 0 makes sense of it, and what would mend the pair (a threshold, a classifier) refuses it.
    """
    return replace(linear(u, c, w, coefs), eps=u.eps, paired=False)


@dataclass(frozen=True, eq=False)
class cfg(Guide):
    """Classifier-free guidance: u + w (c - u), of the answers with and without the condition (Ho and Salimans 2022).

    Both are asked for in one call of the network, c first, with a batch twice as large; at w = 0 or 1 only the one
    that counts. A negative prompt is a `null` that names what is not wanted. The variance is the conditional one's.

    Args:
        w: one number, or (b,), one for each sample. Ho and Salimans' w is this less 1.
        cond, null: conditions by name, batch first, such as dict(y=y) and dict(y=torch.full_like(y, classes)).
        rule: what is made of the two: `linear`, `rescaled(phi)` or `cfg_plus_plus`.

    Raises ValueError if cond and null name different conditions, for a w of another shape, and for a denoiser within
    that is fixed to one batch already: what guides a guided one goes around it.
    """

    denoiser: Denoiser
    w: Scale
    cond: dict[str, Tensor]
    null: dict[str, Tensor]
    rule: Rule = linear
    fixed = True

    def __post_init__(self) -> None:
        if self.cond.keys() != self.null.keys() or not self.cond:
            raise ValueError(
                f"cond and null must name the same conditions; got {sorted(self.cond)} and {sorted(self.null)}"
            )
        if kind := _fixed(self.denoiser):
            raise ValueError(
                f"denoiser must not be fixed to a batch, by {kind}, since cfg asks it for both branches at once: "
                f"give cfg the network and put {kind} around it, or its conditions into cond and null"
            )

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        _once(self.cond, cond, x)
        _once(self.null, cond, x)
        if self.rule is linear and not isinstance(self.w, Tensor) and self.w in (0, 1):
            return self.denoiser(x, t, **(self.cond if self.w else self.null), **cond)
        coefs = self.schedule(t, like=x)
        both = {k: torch.cat([self.cond[k], self.null[k]]) for k in self.cond}
        both |= {k: torch.cat([value, value]) for k, value in cond.items()}
        p = self.denoiser(torch.cat([x, x]), coefs.t.repeat(2), **both)
        (x0_c, x0_u), (eps_c, eps_u) = p.x0.chunk(2), p.eps.chunk(2)
        c = Prediction(x0_c, eps_c, None if p.var is None else self._half(p, x))
        return self.rule(Prediction(x0_u, eps_u), c, _each(self.w, x), coefs)

    def _half(self, p: Prediction, x: Tensor) -> Any:
        """The variance of the conditional half of the batch."""
        twice = lambda c: self.schedule(c.t.repeat(2), like=torch.cat([x, x]))  # noqa: E731
        return lambda ct, cs: p.var(twice(ct), twice(cs))[: len(x)]


@dataclass(frozen=True, eq=False)
class autoguide(Guide):
    """Autoguidance: bad + w (good - bad), by a smaller or less trained version of the same model (Karras et al. 2024).

    Both know the condition, so it is not the condition that is strengthened. Two networks, two calls.
    Raises ValueError for models of two schedules.
    """

    denoiser: Denoiser
    bad: Denoiser
    w: Scale
    rule: Rule = linear

    def __post_init__(self) -> None:
        if self.denoiser.schedule != self.bad.schedule:
            raise ValueError(
                f"both models must share one schedule; got {self.denoiser.schedule} and {self.bad.schedule}"
            )

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        good, bad = self.denoiser(x, t, **cond), self.bad(x, t, **cond)
        return self.rule(bad, good, _each(self.w, x), self.schedule(t, like=x))


@dataclass(frozen=True, eq=False)
class interval(Guide):
    """`guided` where the noise level sigma / alpha lies in [low, high], `plain` elsewhere (Kynkaanniemi et al. 2024).

    Only the one that counts is called, so fewer calls of the network are paid for: interval(cfg(d, w, cond, null),
    bind(d, **cond), 0.3, 5.0). A batch must be on one side as a whole, as it is in every sampler.
    Raises ValueError unless 0 <= low < high, for two schedules, or for a batch with times on both sides.
    """

    denoiser: Denoiser
    plain: Denoiser
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"low and high must be noise levels with 0 <= low < high; got {self.low}, {self.high}")
        if self.denoiser.schedule != self.plain.schedule:
            raise ValueError(f"both must share one schedule; got {self.denoiser.schedule} and {self.plain.schedule}")

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        level = torch.exp(-self.schedule(t, like=x).logsnr / 2)
        inside = (self.low <= level) & (level <= self.high)
        if inside.any() and not inside.all():
            raise ValueError("the times of this batch lie on both sides of the interval: call it once for each side")
        return (self.denoiser if inside.all() else self.plain)(x, t, **cond)


# ---- a classifier --------------------------------------------------------------------------------


def gradient(log_prob: Callable[[Tensor, Times], Tensor], x: Tensor, t: Times) -> Tensor:
    """The gradient in x of log_prob(x, t), (b,), for each sample of the batch. Raises ValueError for another shape."""
    with torch.enable_grad():
        noisy = x.detach().requires_grad_()
        try:
            value = log_prob(noisy, t)
        except Exception as error:
            error.add_note(
                f"in log_prob of {len(x)} samples: is it for the labels of this batch? In cfg there are two."
            )
            raise
        if value.shape != x.shape[:1]:
            raise ValueError(f"log_prob must return ({len(x)},), a number for each x; got {tuple(value.shape)}")
        return torch.autograd.grad(value.sum(), noisy)[0]


@dataclass(frozen=True, eq=False)
class classifier(Guide):
    """The denoiser with scale * grad log p_t(y | x) added to its score (Song et al. 2021, eq. 14; ADM, Algorithm 2).

    eps - scale sigma grad log p_t(y | x), and x0 follows; at scale = 1 with the exact classifier it is the exact
    denoiser of p(x0 | y). Needs alpha > 0. For ADM's Algorithm 1 see `samplers.guided_ancestral`.

    Args:
        log_prob: (x, t) -> (b,), log p_t(y | x) of the class wanted, for noisy x; autograd makes the gradient of it.
    """

    denoiser: Denoiser
    log_prob: Callable[[Tensor, Times], Tensor]
    scale: float | int = 1.0

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        p, c = self.denoiser(x, t, **cond), self.schedule(t, like=x)
        return p.with_eps(p.eps - self.scale * c.sigma * gradient(self.log_prob, x, t), c)


# ---- the range of the data -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class thresholded(Guide):
    """The denoiser with its x0 passed through a rule, such as static(), and eps made to agree with it.

    Raises ValueError for a denoiser of latents, which have no range.
    """

    denoiser: Denoiser
    rule: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if getattr(self.denoiser, "codec", None) is not None:
            raise ValueError("denoiser must be one of data in [-1, 1]; this one's are latents, which have no range")

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        p = self.denoiser(x, t, **cond)
        return p.with_x0(self.rule(p.x0), self.schedule(t, like=x))


@dataclass(frozen=True)
class static:
    """Clip to [low, high]: DDPM's official sampler does it to x0 at every step, its paper does not say so."""

    low: float = -1.0
    high: float = 1.0

    def __call__(self, x0: Tensor) -> Tensor:
        return torch.clamp(x0, self.low, self.high)


@dataclass(frozen=True)
class dynamic:
    """Clip to [-s, s] and divide by s, the share-quantile of |x0| of a sample, at least 1 (Saharia et al. 2022, 2.3).

    So a sample that guidance drives out of the range comes back as a whole, in place of being cut flat.
    Raises ValueError unless share lies in (0, 1].
    """

    share: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1]; got {self.share}")

    def __call__(self, x0: Tensor) -> Tensor:
        s = torch.quantile(x0.abs().flatten(1), self.share, dim=1).clamp(min=1).reshape(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-s, s) / s


# ---- what it costs -------------------------------------------------------------------------------


@dataclass(eq=False)
class counted(Guide):
    """The denoiser, counting: `calls` of it, and `rows`, the samples that were in them (cfg asks for two rows each)."""

    denoiser: Denoiser
    calls: int = 0
    rows: int = 0

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.denoiser(x, t, **cond)


def _each(w: Scale, x: Tensor) -> Scale:
    """A scale that multiplies a batch like x: one number, or one for each sample."""
    if not isinstance(w, Tensor) or w.ndim == 0:
        return w
    if w.shape != x.shape[:1]:
        raise ValueError(f"w must be one number or ({len(x)},), one for each sample; got {tuple(w.shape)}")
    return w.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _fixed(d: Denoiser) -> str | None:
    """The name of a wrapper at or within d that is fixed to a batch."""
    if getattr(d, "fixed", False):
        return type(d).__name__
    return next(filter(None, map(_fixed, getattr(d, "within", []))), None)


def _once(mine: dict[str, Any], given: dict[str, Any], x: Tensor) -> None:
    """Raises ValueError for a condition that is given twice, or that is not of the batch x."""
    if twice := sorted(mine.keys() & given.keys()):
        raise ValueError(
            f"{', '.join(twice)} given twice: by the wrapper around and by the one within. A condition is bound once"
        )
    for name, value in mine.items():
        if isinstance(value, Tensor) and value.ndim and len(value) != len(x):
            raise ValueError(f"{name} must have a row for each of the {len(x)} samples of this batch; got {len(value)}")
