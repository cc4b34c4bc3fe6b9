"""DDIM: the same marginals as the chain of `ancestral`, with as much fresh noise as wanted (Song et al. 2020)."""

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
