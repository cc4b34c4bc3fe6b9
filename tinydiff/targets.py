"""What a network predicts, and the belief that it stands for.

Every target of the literature is a row of two numbers: with the coefficients c of `schedules`,

    (1)  target = c0 x0 + c1 eps

A target is a function from c to that row. Since x = alpha x0 + sigma eps, a network's output is decoded by one 2x2
solve that serves all of them:

    (2)  det = alpha c1 - sigma c0,    x0 = (c1 x - sigma out) / det,    eps = (alpha out - c0 x) / det

    target    c0        c1                     fails where        source
    x0        1         0                      sigma = 0          Ho et al. 2020, section 3.2
    eps       0         1                      alpha = 0          Ho et al. 2020, eq. 11
    v         -sigma    alpha                  never (VP)         Salimans & Ho 2022, section 4
    score     0         -1 / sigma             alpha = 0          Song & Ermon 2019, eq. 5
    velocity  alpha'    sigma'                 SNR stationary     Lipman et al. 2023, Liu et al. 2022
    edm       sigma/n   -alpha sigma_data^2/n  never              Karras et al. 2022, eq. 8

A new target is one more such function; nothing registers it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinydiff.schedules import Coefs

Row = tuple[Tensor | float, Tensor | float]
Target = Callable[[Coefs], Row]
Variance = Callable[[Coefs, Coefs], Tensor]


def x0(c: Coefs) -> Row:
    """The clean data."""
    return 1.0, 0.0


def eps(c: Coefs) -> Row:
    """The noise."""
    return 0.0, 1.0


def v(c: Coefs) -> Row:
    """v = alpha eps - sigma x0: the direction at right angles to x on a variance-preserving path."""
    return -c.sigma, c.alpha


def score(c: Coefs) -> Row:
    """The gradient in x of log p_t(x)."""
    return 0.0, -1 / c.sigma


def velocity(c: Coefs) -> Row:
    """dx/dt along the path of one (x0, eps) pair."""
    return c.dalpha, c.dsigma


@dataclass(frozen=True)
class edm:
    """The network output F of EDM, of unit variance for data of standard deviation sigma_data."""

    sigma_data: float = 0.5

    def __call__(self, c: Coefs) -> Row:
        n = self.sigma_data * (c.sigma**2 + c.alpha**2 * self.sigma_data**2).sqrt()
        return c.sigma / n, -c.alpha * self.sigma_data**2 / n


@dataclass(frozen=True)
class Prediction:
    """What a denoiser believes of x at time t: the data and the noise in it, x = alpha x0 + sigma eps.

    Attributes:
        x0, eps: each of the shape of x.
        var: None, or a function of a step's coefficients (ct, cs) that gives the model's own reverse variance.
        paired: False where x0 and eps belong to different beliefs on purpose (CFG++), so that neither follows from the
            other; what would change one then raises ValueError.
    """

    x0: Tensor
    eps: Tensor
    var: Variance | None = None
    paired: bool = True

    def with_x0(self, x0: Tensor, c: Coefs) -> "Prediction":
        """The same x with another belief of the data; eps follows. Needs sigma > 0."""
        self._check()
        return replace(self, x0=x0, eps=self.eps + c.alpha / c.sigma * (self.x0 - x0))

    def with_eps(self, eps: Tensor, c: Coefs) -> "Prediction":
        """The same x with another belief of the noise; x0 follows. Needs alpha > 0."""
        self._check()
        return replace(self, eps=eps, x0=self.x0 + c.sigma / c.alpha * (self.eps - eps))

    def _check(self) -> None:
        if not self.paired:
            raise ValueError("x0 and eps are of two beliefs (CFG++): threshold or guide the denoiser within instead")

    def score(self, c: Coefs) -> Tensor:
        """-eps / sigma, the score that goes with the belief (Tweedie's formula)."""
        return -self.eps / c.sigma

    def velocity(self, c: Coefs) -> Tensor:
        """alpha' x0 + sigma' eps, the right-hand side of the probability-flow ODE."""
        return c.dalpha * self.x0 + c.dsigma * self.eps


def encode(target: Target, c: Coefs, x0: Tensor, eps: Tensor) -> Tensor:
    """The target's value for a pair (x0, eps): equation (1)."""
    c0, c1 = target(c)
    return c0 * x0 + c1 * eps


def decode(target: Target, c: Coefs, x: Tensor, out: Tensor, var: Variance | None = None) -> Prediction:
    """The belief that a network's output stands for: equation (2).

    Raises ValueError where the target says nothing of x0, such as eps where alpha = 0.
    """
    c0, c1 = target(c)
    det = c.alpha * c1 - c.sigma * c0
    if not torch.compiler.is_compiling() and not (det.isfinite() & (det != 0)).all():
        raise ValueError(
            f"the target {name_of(target)} cannot be decoded at some of the times t = {c.t.unique().tolist()}: it "
            "leaves x0 or eps undetermined there (alpha = 0 for eps and score, sigma = 0 for x0); use v, or a schedule "
            "that stops short, such as Cosine()"
        )
    return Prediction((c1 * x - c.sigma * out) / det, (c.alpha * out - c0 * x) / det, var)


def x0_weight(target: Target, c: Coefs) -> Tensor:
    """Multiply a loss weight in x0 space by this to have it in the target's space: (sigma / det)^2."""
    c0, c1 = target(c)
    return (c.sigma / (c.alpha * c1 - c.sigma * c0)) ** 2


def check_target(target: Any) -> Target:
    """Returns the target. Raises TypeError if it is not a function of coefficients (a name, say)."""
    if not callable(target):
        raise TypeError(
            f"target must be a function of coefficients such as tinydiff.targets.eps (also x0, v, score, velocity, "
            f"edm(sigma_data)); got {target!r}"
        )
    return target


def name_of(target: Target) -> str:
    """The target's name for messages."""
    return getattr(target, "__name__", repr(target))
