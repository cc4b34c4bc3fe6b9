"""From noise to samples in one call: `sample`."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.progress import progress
from tinydiff.samplers.base import Sampler, final
from tinydiff.samplers.ddim import ddim
from tinydiff.schedules import grid


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
        n: steps, on an even grid or the sampler's own (its `spacing`); or give the grid itself as `ts`.
        seed: the same seed gives the same samples on the same machine; None draws from torch's own state.
        decode: what turns the result into data, such as a latent model's decoder.
        options: passed to the sampler (eta=..., var=...).
    """
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    sampler = sampler or ddim
    ts = grid(d.schedule, n, getattr(sampler, "spacing", None)) if ts is None else ts
    x = d.schedule.prior_std * torch.randn(shape, generator=generator, device=device)
    if "generator" in inspect.signature(sampler).parameters:  # a deterministic sampler need not have one
        options["generator"] = generator
    states = sampler(d, x, ts, **options)
    with torch.no_grad():  # for a sampler without the decorator; one with grad=True keeps its gradients
        x = final(progress(states, desc="sampling", total=len(ts) - 1))
    return x if decode is None else decode(x)
