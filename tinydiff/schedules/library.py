"""The schedules of the field, each two formulas; `base` has the rules that hold for all of them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinydiff.schedules.base import Schedule


@dataclass(frozen=True, eq=False, repr=False)
class DiscreteVP(Schedule):
    """DDPM's chain of T steps (Ho et al. 2020): alpha-bar_k = prod_{j<=k} (1 - beta_j) at t = k / T.

    alpha = sqrt(alpha-bar). Between the steps log alpha-bar is interpolated. A time within 1e-4 / T of k / T means k.

    Args:
        betas: (T,), each strictly between 0 and 1; may require gradients. Kept in float64.
    """

    betas: Float[Tensor, " T"] | list[float]

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError(f"betas must be a vector of numbers strictly between 0 and 1; got {self.betas}")
        object.__setattr__(self, "betas", betas)

    def __repr__(self) -> str:
        return f"DiscreteVP({self.steps} betas from {self.betas[0]:.3g} to {self.betas[-1]:.3g})"

    @property
    def steps(self) -> int:
        """T, the number of noising steps."""
        return len(self.betas)

    @property
    def t_min(self) -> float:
        return 1 / self.steps

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_abar = F.pad(torch.log1p(-self.betas.to(t)).cumsum(0), (1, 0))  # (T + 1,); entry 0 is no noise
        k = t * self.steps
        at = k.detach()  # the snap has no derivative (no_grad would leave the forward-mode one)
        snap = torch.where((at - at.round()).abs() < 1e-4, at.round() - at, 0.0)
        left = ((at + snap).ceil() - 1).clamp(0, self.steps - 1).long()
        log_abar_t = log_abar[left] + (k + snap - left) * (log_abar[left + 1] - log_abar[left])
        return (log_abar_t / 2).exp(), (-torch.expm1(log_abar_t)).sqrt()


@dataclass(frozen=True)
class VP(Schedule):
    """Variance-preserving SDE with beta(t) linear from beta_min to beta_max (Song et al. 2021, eq. 32-33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2  # of beta from 0 to t
        return (-integral / 2).exp(), (-torch.expm1(-integral)).sqrt()


@dataclass(frozen=True)
class SubVP(Schedule):
    """Sub-variance-preserving SDE (Song et al. 2021, eq. 34): alpha of VP, sigma = 1 - alpha^2."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = VP(self.beta_min, self.beta_max).path(t)
        return alpha, sigma**2


@dataclass(frozen=True)
class VE(Schedule):
    """Variance-exploding SDE (Song et al. 2021, eq. 30-31): sigma geometric from sigma_min at t_min to sigma_max."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    jumps = True

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = (t - self.t_min) / (self.t_max - self.t_min)
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** u


@dataclass(frozen=True)
class EDM(Schedule):
    """Karras et al. 2022, eq. 5, read as a clock: sigma^(1/rho) is linear in t, so an even grid is Karras' grid."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    jumps = True

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = (t - self.t_min) / (self.t_max - self.t_min)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + u * (high - low)) ** self.rho


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), kept where |logsnr| <= max_logsnr (Salimans & Ho 2022, section 2).

    With max_logsnr = inf, alpha(1) is exactly 0.
    """

    max_logsnr: float = 20.0

    @property
    def t_min(self) -> float:
        return max(2 / math.pi * math.atan(math.exp(-self.max_logsnr / 2)), 1e-12)

    @property
    def t_max(self) -> float:
        return 1 - 2 / math.pi * math.atan(math.exp(-self.max_logsnr / 2))

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (math.pi / 2 * (1 - t)).sin(), (math.pi / 2 * t).sin()  # cos(pi/2) would not be 0


@dataclass(frozen=True)
class Flow(Schedule):
    """The straight path alpha = 1 - t, sigma = t (Liu et al. 2022), kept where |logsnr| <= max_logsnr.

    With max_logsnr = inf, alpha(1) is exactly 0.
    """

    max_logsnr: float = 20.0

    @property
    def t_min(self) -> float:
        return max(1 - self.t_max, 1e-12)

    @property
    def t_max(self) -> float:
        return 1 / (1 + math.exp(-self.max_logsnr / 2))

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t


@dataclass(frozen=True)
class Shifted(Schedule):
    """The same path on another clock: logsnr(t) falls by 2 log(shift), so shift > 1 spends more time in noise.

    Hoogeboom et al. 2023 (simple diffusion), eq. 4, for shift = resolution / base resolution; on `Flow` it is
    the time shift of Esser et al. 2024, eq. 23.
    """

    base: Schedule
    shift: float = 1.0

    @property
    def t_min(self) -> float:
        return self.base.t_min

    @property
    def t_max(self) -> float:
        return self.base.t_max

    @property
    def prior_std(self) -> float:
        end = torch.tensor(self.t_max, dtype=torch.float64)
        return float(self.base.prior_std * self.sigma(end) / self.base.sigma(end))

    @property
    def jumps(self) -> bool:
        return self.base.jumps

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.base.path(t)
        return self.base.path(self.base.time(2 * (alpha / sigma).log() - 2 * math.log(self.shift)))
