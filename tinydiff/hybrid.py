"""Training on the variational bound, as Improved DDPM does (Nichol & Dhariwal 2021): L_vlb, L_hybrid, and steps drawn
by the size of their losses.

    (1)  L_vlb    = E_k[ T L_k ],  L_k the term of step k of the bound          (`likelihood`, equation 1)
    (2)  L_hybrid = L_simple + lambda L_vlb,  whose second part teaches the variance alone

Unit: L_vlb is in bits per dimension, L_simple a mean over dimensions as in `losses`. Both are losses for `fit`.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.likelihood import Decoder, ReverseVariance, gaussian_log_likelihood, step_term, vlb_term
from tinydiff.samplers import learned, noise_like
from tinydiff.schedules import Times, batch_times
from tinydiff.targets import decode, encode


def _chain_step(d: NetDenoiser, x0: Tensor, t: Times, steps: int | None) -> tuple[int, Tensor, Tensor]:
    """T, and (k / T, (k - 1) / T) for each t, rounded up to a step k of the chain."""
    steps = getattr(d.schedule, "steps", None) if steps is None else steps
    if steps is None or steps < 1:
        raise ValueError(f"steps must say how many steps the chain has, since {d.schedule} does not; got {steps}")
    k = (batch_times(t, x0).double() * steps - 1e-4).ceil().clamp(min=1)
    return steps, k / steps, (k - 1) / steps


def vlb_loss(
    d: NetDenoiser,
    x0: Float[Tensor, "b *d"],
    t: Times,
    *,
    steps: int | None = None,
    var: ReverseVariance = learned,
    decoder: Decoder = gaussian_log_likelihood,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Float[Tensor, " b"]:
    """L_vlb (Nichol & Dhariwal 2021, eq. 4): T times the term of t's step, so that the mean over t is the bound
    without its prior term. A loss for `fit`; see `hybrid_loss`."""
    steps, t, s = _chain_step(d, x0, t, steps)
    return steps * vlb_term(d, x0, t, s, var=var, decoder=decoder, generator=generator, **cond)


def hybrid_loss(
    d: NetDenoiser,
    x0: Float[Tensor, "b *d"],
    t: Times,
    *,
    steps: int | None = None,
    weight: float = 0.001,
    var: ReverseVariance = learned,
    decoder: Decoder = gaussian_log_likelihood,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Float[Tensor, " b"]:
    """L_simple + weight L_vlb (Nichol & Dhariwal 2021, eq. 16) at one draw of x_t: a loss for `fit`.

    L_vlb (`vlb_loss`, bits per dimension) teaches the variance alone: the mean in it has no gradient.

    Args:
        d: with a variance: NetDenoiser(..., var=interpolated_variance) round a network of twice the channels.
        t: rounded up to the next step of the chain.
        steps: T; by default the schedule's, if it is a chain.
        weight: the paper's lambda.

    Raises ValueError if there is no T, or the denoiser has no variance.
    """
    steps, t, s = _chain_step(d, x0, t, steps)
    ct, cs = d.schedule(t, like=x0), d.schedule(s, like=x0)
    eps = noise_like(x0, generator)
    x = ct.alpha * x0 + ct.sigma * eps
    out, variance = d.output(x, ct, **cond)
    simple = ((out - encode(d.target, ct, x0, eps)) ** 2).flatten(1).mean(1)
    p = decode(d.target, ct, x, out.detach(), variance)
    return simple + weight * steps * step_term(d.schedule, p, x0, ct, cs, var, decoder)


class LossSecondMoment:
    """Steps of a chain drawn by the size of their losses (Nichol & Dhariwal 2021, eq. 18), p_k ~ sqrt(E L_k^2).

    Each step remembers its last `history` losses; until all have so many, p is uniform. Weights 1 / (T p) keep means.
    (A history is not kept in the checkpoints of `fit`: a resumed run collects it anew.)

        by_size = LossSecondMoment(1000)
        fit(d, data, times=by_size, loss=by_size.weighted(vlb_loss), ...)

    Args:
        steps: T.
        uniform: the share of p that is uniform all the same (official code), so that no step is forgotten.
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        if steps < 1 or history < 1 or not 0 <= uniform <= 1:
            raise ValueError(
                f"steps and history must be at least 1, uniform in [0, 1]; got {steps}, {history}, {uniform}"
            )
        self.steps, self.uniform = steps, uniform
        self.losses = torch.zeros(steps, history, dtype=torch.float64)
        self.count = torch.zeros(steps, dtype=torch.long)

    @property
    def p(self) -> Float[Tensor, " T"]:
        """The probability of each step 1 ... T. float64, on the CPU."""
        flat = torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        size = self.losses.square().mean(1).sqrt()
        if (self.count < self.losses.shape[1]).any() or size.sum() == 0:
            return flat
        return (1 - self.uniform) * size / size.sum() + self.uniform * flat

    def __call__(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Float[Tensor, " n"]:
        """n times k / T, k drawn from p."""
        k = torch.multinomial(self.p.to(device), n, replacement=True, generator=generator) + 1
        return k.double() / self.steps

    def _index(self, t: Tensor) -> Tensor:
        return (t.detach().cpu().double() * self.steps - 1e-4).ceil().long().clamp(min=1) - 1

    def weight(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """1 / (T p) of each time: with it, the mean over times drawn from p is the mean over all steps."""
        return (1 / (self.steps * self.p[self._index(t)])).to(t)

    def update(self, t: Float[Tensor, " b"], losses: Float[Tensor, " b"]) -> None:
        """Remembers losses, without their weights."""
        kept, count = self.losses.numpy(), self.count.numpy()  # the same memory, quicker to write to one by one
        for k, value in zip(self._index(t).tolist(), losses.tolist(), strict=True):
            kept[k, count[k] % kept.shape[1]] = value
            count[k] += 1

    def weighted(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The loss times `weight`, for `fit`; what it was without goes into the history."""

        def run(d: Denoiser, x0: Tensor, t: Tensor, **cond: Any) -> Tensor:
            value, weight = loss(d, x0, t, **cond), self.weight(t)
            self.update(t, value.detach())
            return weight * value

        return run
