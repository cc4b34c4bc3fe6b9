"""Samplers: from noise to data along a grid of times.

Each is a generator, `sampler(denoiser, x, ts, ...) -> Iterator[State]`: x is (b, ...) noise at time ts[0], ts is a
decreasing grid that may end in 0 (`schedules.grid`), and a State comes after every step. The loop over pairs of times
is all that they share, so a new sampler is one new function, here or in a notebook:

    @sampler
    def mine(d, x, ts):
        for t, s in pairs(ts):
            p = d(x, t)                                             # what is believed at t
            ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)   # alpha and sigma at both ends
            x = cs.alpha * p.x0 + cs.sigma * p.eps                  # the step (here: DDIM's)
            yield State(s, x, p.x0)

The posterior of a chain, for any schedule, is with r = 1 - e^{logsnr_t - logsnr_s} (the share of noise that is new)

    (1)  q(x_s | x_t, x0) = N( A x0 + B x_t, r sigma_s^2 )
         A = alpha_s r,   B = (alpha_t / alpha_s) sigma_s^2 / sigma_t^2

which is Ho et al. 2020, eq. 6-7, where alpha_t^2 / alpha_s^2 = 1 - beta_t.
"""

import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.progress import progress
from tinydiff.schedules import Coefs, grid
from tinydiff.targets import Prediction


class State(NamedTuple):
    """Where a sampler is after a step: x at time t, and the x0 that was believed in when it was taken."""

    t: float
    x: Tensor
    x0: Tensor


Sampler = Callable[..., Iterator[State]]


def pairs(ts: Tensor) -> Iterator[tuple[float, float]]:
    """(t, s) for each step of the grid, s < t. Raises ValueError unless ts decreases within [0, 1]."""
    values = torch.as_tensor(ts).double().tolist()
    if len(values) < 2 or not all(1 >= t > s >= 0 for t, s in zip(values, values[1:], strict=False)):
        raise ValueError(
            f"ts must be at least two decreasing times in [0, 1]; got {values[:5]}{'...' * (len(values) > 5)}"
        )
    return zip(values, values[1:], strict=False)


def sampler(steps: Sampler) -> Sampler:
    """Makes a generator of States a sampler: its steps run under no_grad, or with gradients if grad=True."""

    @functools.wraps(steps)
    def run(d: Denoiser, x: Tensor, ts: Tensor, *args: Any, grad: bool = False, **kwargs: Any) -> Iterator[State]:
        states = steps(d, x, ts, *args, **kwargs)
        while True:
            with torch.set_grad_enabled(grad):
                state = next(states, None)
            if state is None:
                return
            yield state

    return run


def final(states: Iterable) -> Tensor:  # of State, but checking that would use up the first one of a progress bar
    """Runs a sampler to its end and returns the last x."""
    return deque(states, maxlen=1).pop().x


def sample(
    d: Denoiser,
    shape: tuple[int, ...],
    n: int = 50,
    sampler: Sampler | None = None,
    seed: int | None = None,
    ts: Tensor | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor:
    """Samples of the given shape (b, ...): draws the noise, runs a sampler (by default `ddim`), shows progress.

    Args:
        n: steps, on an even grid; or give the grid itself as `ts`.
        seed: the same seed gives the same samples on the same machine; None draws from torch's own state.
        decode: what turns the result into data, such as a latent model's decoder.
        options: passed to the sampler (eta=..., var=...).
    """
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    ts = grid(d.schedule, n) if ts is None else ts
    x = d.schedule.prior_std * torch.randn(shape, generator=generator, device=device)
    sampler = sampler or ddim
    if "generator" in inspect.signature(sampler).parameters:  # a deterministic sampler need not have one
        options["generator"] = generator
    states = sampler(d, x, ts, **options)
    x = final(progress(states, desc="sampling", total=len(ts) - 1))
    return x if decode is None else decode(x)


def _noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


# ---- ancestral sampling (Ho et al. 2020, Algorithm 2) --------------------------------------------


class Posterior(NamedTuple):
    """Equation (1): the mean is a_x0 x0 + a_x x_t, and var is its variance (beta-tilde)."""

    a_x0: Tensor
    a_x: Tensor
    var: Tensor


def posterior(ct: Coefs, cs: Coefs) -> Posterior:
    """q(x_s | x_t, x0) of equation (1), for s < t. Nothing is divided by alpha_t."""
    r = ct.new_noise(cs)
    return Posterior(cs.alpha * r, ct.alpha / cs.alpha * cs.sigma**2 / ct.sigma**2, cs.sigma**2 * r)


def small(p: Prediction, ct: Coefs, cs: Coefs) -> Tensor:
    """beta-tilde, the posterior's variance: right if all data were one point (Ho et al. 2020, section 3.2)."""
    return posterior(ct, cs).var


def large(p: Prediction, ct: Coefs, cs: Coefs) -> Tensor:
    """beta, the variance of the noising step from s to t: right if the data were N(0, I)."""
    return ct.new_noise(cs) * ct.sigma**2


def learned(p: Prediction, ct: Coefs, cs: Coefs) -> Tensor:
    """The model's own variance. Raises ValueError if it has none."""
    if p.var is None:
        raise ValueError(
            "var=learned needs a denoiser that predicts a variance: NetDenoiser(..., var=interpolated_variance)"
        )
    return p.var(ct, cs)


@sampler
def ancestral(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    var: Callable[[Prediction, Coefs, Coefs], Tensor] = small,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """DDPM's sampler (Ho et al. 2020, Algorithm 2), on any grid: the chain's posterior with x0 believed.

    Args:
        var: variance of a step: `small` (beta-tilde), `large` (beta), `learned`, or any function (p, ct, cs).
    """
    for t, s in pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        q = posterior(ct, cs)
        x = q.a_x0 * p.x0 + q.a_x * x
        if s > 0:  # the last step ends in data: no noise
            x = x + var(p, ct, cs).sqrt() * _noise(x, generator)
        yield State(s, x, p.x0)


# ---- DDIM (Song et al. 2020) ---------------------------------------------------------------------


def ddim_step(p: Prediction, ct: Coefs, cs: Coefs, eta: float = 0.0, noise: Tensor | float = 0.0) -> Tensor:
    """One step from t to s (Song et al. 2020, eq. 12), with std = eta sqrt(beta-tilde) of fresh noise (eq. 16)."""
    std = eta * posterior(ct, cs).var.sqrt()
    return cs.alpha * p.x0 + (cs.sigma**2 - std**2).sqrt() * p.eps + std * noise


@sampler
def ddim(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """DDIM (Song et al. 2020): eta = 0 is deterministic, eta = 1 is `ancestral` with the small variance.

    Raises ValueError if eta leaves [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")
    for t, s in pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        x = ddim_step(p, ct, cs, eta, _noise(x, generator) if eta > 0 and s > 0 else 0.0)
        yield State(s, x, p.x0)
