"""Noise schedules: how much signal and how much noise there is at time t.

Time runs from t = 0 (data) to t = 1 (noise), and a schedule is two functions of it:

    (1)  x_t = alpha(t) x0 + sigma(t) eps,      eps ~ N(0, I)

All else follows from these two (a dash is d/dt):

    (2)  logsnr = 2 log(alpha / sigma)
    (3)  f  = alpha' / alpha                    drift of the SDE  dx = f x dt + g dw
    (4)  g2 = 2 sigma sigma' - 2 f sigma^2      its squared diffusion; also -sigma^2 logsnr'

(3) and (4) are Kingma et al. 2021 (Variational Diffusion Models), eq. 20 and Song et al. 2021, section 3.

Two rules hold for every schedule. At t = 0 exactly (alpha, sigma) = (1, 0). A positive time below `t_min`
means `t_min`, and one above `t_max` means `t_max`. So VE and EDM jump from sigma_min to 0, which is EDM's
appended zero and NCSNv2's last denoising step; and `Cosine` and `Flow` never reach alpha = 0.

In a pair of times (t, s), s is the smaller: a sampler steps from t down to s. Their coefficients are ct, cs.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, " b"] | Float[Tensor, ""] | float | int


def widest(t: Tensor) -> Tensor:
    """t in float64, in which schedule algebra runs (a few numbers a batch); float32 on MPS, which has no more."""
    return t.float() if t.device.type == "mps" else t.double()


def batch_times(t: Times, like: Tensor) -> Float[Tensor, " b"]:
    """One time per element of the batch `like` (b, ...). Raises ValueError for a wrong shape or t outside [0, 1].

    While a GPU trains its values are not looked at, for it would be waited for in each step: `fit` does now and then.
    """
    t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
    if t.ndim == 0:
        t = t.expand(len(like)).clone()
    if t.shape != like.shape[:1]:
        raise ValueError(
            f"t must have shape ({len(like)},) to go with x of shape {tuple(like.shape)}; got {tuple(t.shape)}"
        )
    training = t.device.type != "cpu" and torch.is_grad_enabled()
    if not training and not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"t must lie in [0, 1]; got values from {t.min().item():g} to {t.max().item():g}")
    return t


class Schedule:
    """Base of all schedules. A new one defines `path`, and `t_min`, `t_max`, `prior_std` where they differ.

    Attributes:
        t_min: the smallest positive time; likelihoods and consistency boundaries live there.
        t_max: where sampling starts.
        prior_std: standard deviation of the Gaussian that sampling starts from.
        jumps: True where sigma(t_min) is a noise level of its own, so that grids contain it (VE, EDM).
    """

    t_min: float = 1e-5
    t_max: float = 1.0
    prior_std: float = 1.0
    jumps: bool = False

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [t_min, t_max]; both differentiable in t."""
        raise NotImplementedError

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at any t in [0, 1], with the two rules of the module applied. float64."""
        t = widest(t)
        alpha, sigma = self.path(t.clamp(self.t_min, self.t_max))
        return torch.where(t == 0, 1.0, alpha), torch.where(t == 0, 0.0, sigma)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') at t, by forward-mode differentiation; zero outside [t_min, t_max]. float64."""
        t = widest(t).clone()  # forward mode rejects expanded tensors
        return torch.func.jvp(self.alpha_sigma, (t,), (torch.ones_like(t),))[1]

    def alpha(self, t: Times) -> Tensor:
        """Signal scale at t, of the shape and dtype of t."""
        return self._of(t, lambda c: c.alpha)

    def sigma(self, t: Times) -> Tensor:
        """Noise scale at t, of the shape and dtype of t."""
        return self._of(t, lambda c: c.sigma)

    def logsnr(self, t: Times) -> Tensor:
        """2 log(alpha / sigma) at t: infinite at t = 0, falling with t."""
        return self._of(t, lambda c: c.logsnr)

    def _of(self, t: Times, what: Callable[["Coefs"], Tensor]) -> Tensor:
        t = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64)
        flat = t.reshape(-1)
        return what(self(flat, like=flat)).reshape(t.shape)

    def time(self, logsnr: Tensor) -> Tensor:
        """The time in [t_min, t_max] of each log-SNR: the inverse of `logsnr`, differentiable. float64."""
        target = widest(logsnr).clamp(-1e9, 1e9)  # an infinite one means the end of the range
        with torch.no_grad():  # bisection: logsnr falls with t
            low, high = torch.full_like(target, self.t_min), torch.full_like(target, self.t_max)
            for _ in range(60):
                t = (low + high) / 2
                alpha, sigma = self.alpha_sigma(t)
                below = 2 * (alpha / sigma).log() > target
                low, high = torch.where(below, t, low), torch.where(below, high, t)
            (alpha, sigma), (dalpha, dsigma) = self.alpha_sigma(t), self.rates(t)
            slope = 2 * (dalpha / alpha - dsigma / sigma)
            value = 2 * (alpha / sigma).log()
            moves = value.isfinite() & (slope < 0)  # elsewhere the bisection's answer stands
            value, slope = torch.where(moves, value, 0.0), torch.where(moves, slope, -torch.inf)
        # One Newton step polishes the answer and carries the derivative dt/dlogsnr = 1/slope.
        return (t + (target - value) / slope).clamp(self.t_min, self.t_max)

    def __call__(self, t: Times, like: Tensor) -> "Coefs":
        """Coefficients at t (b,), shaped (b, 1, ..., 1) to multiply `like` (b, ...), in its dtype and device.

        Raises ValueError if t has the wrong shape or leaves [0, 1].
        """
        return Coefs(self, batch_times(t, like), like)


class Coefs:
    """All that a method asks of a schedule at times t: alpha, sigma and what follows from them.

    Each is (b, 1, ..., 1), in the dtype and on the device of `like`. The rates are computed when asked for.
    `t` is the (b,) vector of times itself.
    """

    def __init__(self, schedule: Schedule, t: Tensor, like: Tensor) -> None:
        self._schedule, self._like, self.t = schedule, like, t
        self._alpha, self._sigma = schedule.alpha_sigma(t)
        self.alpha, self.sigma = self._shape(self._alpha), self._shape(self._sigma)

    def _shape(self, v: Tensor) -> Tensor:
        return v.to(self._like).reshape(-1, *[1] * (self._like.ndim - 1))

    @cached_property
    def _logsnr(self) -> Tensor:
        return 2 * (self._alpha.log() - self._sigma.log())

    @cached_property
    def logsnr(self) -> Tensor:
        return self._shape(self._logsnr)

    def rise(self, cs: "Coefs") -> Tensor:
        """logsnr_s - logsnr_t, by how much the log-SNR rises from t to s < t. A difference of float64 numbers."""
        return self._shape(cs._logsnr - self._logsnr)

    def new_noise(self, cs: "Coefs") -> Tensor:
        """1 - e^{logsnr_t - logsnr_s}: the share of the noise at t that came in since s < t. From float64 log-SNRs."""
        return self._shape(-torch.expm1(self._logsnr - cs._logsnr))

    @cached_property
    def _rates(self) -> tuple[Tensor, Tensor]:
        return self._schedule.rates(self.t)

    @cached_property
    def dalpha(self) -> Tensor:
        return self._shape(self._rates[0])

    @cached_property
    def dsigma(self) -> Tensor:
        return self._shape(self._rates[1])

    @cached_property
    def drift(self) -> Tensor:
        """f of equation (3)."""
        return self._shape(self._rates[0] / self._alpha)

    @cached_property
    def diffusion2(self) -> Tensor:
        """g squared of equation (4)."""
        dalpha, dsigma = self._rates
        return self._shape(2 * self._sigma * (dsigma - dalpha / self._alpha * self._sigma))
