"""What is minimised, and at which times.

    (1)  L = E[ w(t) || net(x_t, t) - target(x0, eps) ||^2 ],     x_t = alpha x0 + sigma eps

With the target eps and w = 1 it is DDPM's L_simple (Ho et al. 2020, eq. 14). The mean is taken over dimensions, so that
the numbers compare across data sets.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tinydiff.denoisers import Denoiser, NetClassifier
from tinydiff.schedules import Coefs, Schedule, Times
from tinydiff.targets import Target, encode, x0_weight


def denoising_loss(
    d: Denoiser,
    x0: Float[Tensor, "b *d"],
    t: Times,
    *,
    weight: Callable[[Coefs], Tensor] | None = None,
    target: Target | None = None,
    eps: Float[Tensor, "b *d"] | None = None,
    generator: torch.Generator | None = None,
    **cond: Tensor,
) -> Float[Tensor, " b"]:
    """Equation (1) for each element of the batch, in the space of the network's own target.

    Args:
        weight: a function of the coefficients; None is 1.
        target: given, the error is measured in this target's space instead, through the Prediction: so the exact
            denoisers have a loss as well, and it is the floor that no network can go below.
        eps: the noise of each x0; by default drawn. Given where noise and data are paired (rectified flow).
        cond: conditions, batch first, passed to the denoiser.
    """
    c = d.schedule(t, like=x0)
    if eps is None:
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    x = c.alpha * x0 + c.sigma * eps
    if target is None:
        target, (out, _) = d.target, d.output(x, c, **cond)
    else:
        p = d(x, t, **cond)
        out = encode(target, c, p.x0, p.eps)
    error = (out - encode(target, c, x0, eps)) ** 2
    return ((1.0 if weight is None else weight(c)) * error).flatten(1).mean(1)


def classifier_loss(
    d: NetClassifier,
    x0: Float[Tensor, "b *d"],
    t: Times,
    y: Int[Tensor, " b"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """-log p_t(y | x) of each noisy x = alpha x0 + sigma eps, in nats: the loss of a classifier for guidance."""
    c = d.schedule(t, like=x0)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    return F.cross_entropy(d.logits(c.alpha * x0 + c.sigma * noise, t), y, reduction="none")


@torch.no_grad()
def fixed_noise_loss(
    d: Denoiser,
    x0: Float[Tensor, "b *d"],
    draws: int = 16,
    seed: int = 0,
    batch_size: int = 500,
    target: Target | None = None,
    **cond: Tensor,
) -> Float[Tensor, "draws b"]:
    """`denoising_loss` of each x0 at `draws` even times (k + 1/2) / draws, with noise that depends on the seed alone.

    The mean is a validation loss by which networks compare: all see the same x, so that the difference of two has far
    less spread than either. The mean of a row is the loss at its time. Compare only losses of one target and schedule.
    Raises ValueError if draws < 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    g, rows = torch.Generator().manual_seed(seed), []
    for k in range(draws):
        noise = torch.randn(x0.shape, generator=g, dtype=x0.dtype).to(x0.device)
        parts = [slice(i, i + batch_size) for i in range(0, len(x0), batch_size)]
        row = [
            denoising_loss(
                d, x0[p], (k + 0.5) / draws, eps=noise[p], target=target, **{name: v[p] for name, v in cond.items()}
            )
            for p in parts
        ]
        rows.append(torch.cat(row))
    return torch.stack(rows)


# ---- weights: functions of the coefficients, in the space of the target --------------------------


def in_x0_space(target: Target, weight: Callable[[Coefs], Tensor]) -> Callable[[Coefs], Tensor]:
    """The weight on the target's error that equals `weight` on the error of x0: times (sigma / det)^2."""
    return lambda c: weight(c) * x0_weight(target, c)


def snr(c: Coefs) -> Tensor:
    """alpha^2 / sigma^2: in x0 space, DDPM's L_simple."""
    return c.logsnr.exp()


def min_snr(gamma: float = 5.0) -> Callable[[Coefs], Tensor]:
    """min(SNR, gamma), in x0 space (Hang et al. 2023, eq. 7)."""
    return lambda c: snr(c).clamp(max=gamma)


# ---- distributions of the time -------------------------------------------------------------------


def uniform_times(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """n independent times, uniform in (0, 1]."""
    return 1 - torch.rand(n, generator=generator, device=device)


def stratified_times(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """n times in (0, 1], one in each n-th part, shuffled: uniform, with less variance (Kingma et al. 2021, I.1)."""
    cells = torch.randperm(n, generator=generator, device=device)
    return (cells + 1 - torch.rand(n, generator=generator, device=device)) / n


def step_times(steps: int) -> Callable[..., Tensor]:
    """Times k / T of a chain of T steps, k uniform in 1 ... T, as DDPM trains."""

    def times(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        return torch.randint(1, steps + 1, (n,), generator=generator, device=device).double() / steps

    return times


def logit_normal_times(mean: float = 0.0, std: float = 1.0) -> Callable[..., Tensor]:
    """t = 1 / (1 + e^-u) with u ~ N(mean, std^2): more often in the middle (Esser et al. 2024, section 3.1)."""

    def times(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        return torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=device, dtype=torch.float64))

    return times


def lognormal_times(schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> Callable[..., Tensor]:
    """Times at which log(sigma / alpha) ~ N(mean, std^2), cut to the schedule's range (Karras et al. 2022, table 1)."""

    def times(n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        log_level = mean + std * torch.randn(n, generator=generator, device=device, dtype=torch.float64)
        return schedule.time(-2 * log_level)

    return times
