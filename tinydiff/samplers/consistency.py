"""Sampling with a function that jumps to the data from any noise level (Song et al. 2023, Algorithm 1)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers.base import State, noise_like, pairs, sampler
from tinydiff.schedules import before_end


@sampler
def consistency_multistep(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Jump to the data, noise the answer to the next level, jump again: one call a step.

    Where the schedule jumps (EDM), the answer counts as data at t_min, so that the noise added up to s has variance
    sigma_s^2 - sigma_min^2, as in the paper; else as data at t = 0 (Lu & Song 2024, for TrigFlow).
    """
    start = d.schedule.t_min if d.schedule.jumps else 0.0
    for t, s in pairs(ts):
        p = d(x, t)
        x = p.x0
        if s > start:
            c0, cs = d.schedule(start, like=x), d.schedule(s, like=x)
            x = cs.alpha / c0.alpha * x + (cs.new_noise(c0)).sqrt() * cs.sigma * noise_like(x, generator)
        yield State(s, x, p.x0)


consistency_multistep.spacing = before_end  # what `sample` takes
