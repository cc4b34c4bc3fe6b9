"""DDIM: the same marginals as the chain of `ancestral`, with as much fresh noise as wanted (Song et al. 2020).

Without noise it is a map from noise to data, so it can be run backwards (`ddim_inverse`) and its noise mixed (`slerp`).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers.ancestral import posterior
from tinydiff.samplers.base import State, noise_like, pairs, sampler
from tinydiff.schedules import Coefs
from tinydiff.targets import Prediction


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
        x = ddim_step(p, ct, cs, eta, noise_like(x, generator) if eta > 0 and s > 0 else 0.0)
        yield State(s, x, p.x0)


@sampler
def ddim_inverse(
    d: Denoiser, x: Float[Tensor, "b *d"], ts: Float[Tensor, " n"], ahead: bool = False
) -> Iterator[State]:
    """From data to noise: the steps of `ddim` the other way round, along the same grid from its end to its start.

    The exact inverse would need the noise believed at the end t of a step, where x is not known yet; so that at its
    start s < t is taken, and the round trip has an error that falls as 1 / n (Song et al. 2020, section 4.3).

    Args:
        ts: the decreasing grid of the way back; usually ends in 0, where x is data.
        ahead: ask the denoiser for the noise at time t in place of s, still at the x of s (what diffusers does).
    """
    for s, t in [(s, t) for t, s in pairs(ts)][::-1]:
        cs, ct = d.schedule(s, like=x), d.schedule(t, like=x)
        eps = d(x, t if ahead else max(s, d.schedule.t_min)).eps  # no network was trained at t = 0
        x0 = (x - cs.sigma * eps) / cs.alpha
        x = ct.alpha * x0 + ct.sigma * eps
        yield State(t, x, x0)


def slerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """The point a part `weight` of the way from a to b on the arc between them (Shoemake 1985; Song et al. 2020, D.5).

    a and b are (b, ...), one arc for each; weight is one number or (b,). In many
    dimensions, where draws of N(0, I) have nearly one length and right angles, every point of the arc has that length,
    and the middle of the line is shorter by sqrt(2). In a few, nearly opposite draws of unequal length send it far out.
    Raises ValueError if a and b differ in shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    dims, rows = tuple(range(1, a.ndim)), (-1, *[1] * (a.ndim - 1))
    weight = torch.as_tensor(weight, dtype=a.dtype, device=a.device).reshape(rows)
    cosine = (a * b).sum(dims) / (a.square().sum(dims) * b.square().sum(dims)).sqrt()
    angle = cosine.clamp(-1, 1).acos().reshape(rows)
    near = angle.sin() < 1e-6  # the arc is a point or a half turn: take the straight line
    sine = torch.where(near, 1.0, angle.sin())
    of_a = torch.where(near, 1 - weight, ((1 - weight) * angle).sin() / sine)
    of_b = torch.where(near, weight, (weight * angle).sin() / sine)
    return of_a * a + of_b * b
