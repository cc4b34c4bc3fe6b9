"""Wrappers from denoiser to denoiser. They compose, and every sampler takes the result.

bind(d, y=labels)           the condition is fixed, so the sampler need not know of it
thresholded(d, static())    x0 is kept in the range of the data, and eps follows
classifier(d, log_prob)     the score of p_t(x) p_t(y | x), from a classifier of noisy x
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.schedules import Times
from tinydiff.targets import Prediction


@dataclass(frozen=True, eq=False)
class bind:
    """The denoiser with its conditions fixed: bind(d, y=y)(x, t) is d(x, t, y=y). Batch-first tensors, as d wants."""

    denoiser: Denoiser
    cond: dict[str, Any]

    def __init__(self, denoiser: Denoiser, **cond: Any) -> None:
        object.__setattr__(self, "denoiser", denoiser)
        object.__setattr__(self, "cond", cond)

    @property
    def schedule(self) -> Any:
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        return self.denoiser(x, t, **self.cond, **cond)


@dataclass(frozen=True, eq=False)
class thresholded:
    """The denoiser with its x0 passed through a rule, such as static(), and eps made to agree with it."""

    denoiser: Denoiser
    rule: Callable[[Tensor], Tensor]

    @property
    def schedule(self) -> Any:
        return self.denoiser.schedule

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


@dataclass(frozen=True, eq=False)
class classifier:
    """The denoiser with scale * grad log p_t(y | x) added to its score (Song et al. 2021, eq. 14; ADM, Algorithm 2).

    eps - scale sigma grad log p_t(y | x), and x0 follows; at scale = 1 with the exact classifier it is the exact
    denoiser of p(x0 | y). Needs alpha > 0.

    Args:
        log_prob: (x, t) -> (b,), log p_t(y | x) of the class wanted, for noisy x; autograd makes the gradient of it.
    """

    denoiser: Denoiser
    log_prob: Callable[[Tensor, Times], Tensor]
    scale: float = 1.0

    @property
    def schedule(self) -> Any:
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            value = self.log_prob(noisy, t)
            if value.shape != x.shape[:1]:
                raise ValueError(f"log_prob must return ({len(x)},), a number for each x; got {tuple(value.shape)}")
            (grad,) = torch.autograd.grad(value.sum(), noisy)
        p, c = self.denoiser(x, t, **cond), self.schedule(t, like=x)
        return p.with_eps(p.eps - self.scale * c.sigma * grad, c)
