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
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    """Makes a generator of States a sampler: its steps run under no_grad, or with gradients if grad=True.

    All samplers but `ddim` raise ValueError for CFG++, whose x0 and eps are of two beliefs: they use one of the two.
    """

    @functools.wraps(steps)
    def run(*args: Any, grad: bool = False, **kwargs: Any) -> Iterator:
        if args and not getattr(args[0], "paired", True) and steps.__name__ != "ddim":
            raise ValueError(f"CFG++ needs the sampler ddim, which uses both x0 and eps; got {steps.__name__}")
        states = steps(*args, **kwargs)
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


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, I) of the shape, dtype and device of x."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def known_part(x: Tensor, known: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(known, mask) ready for torch.where(mask, known, x); a mask of nothing where none are given.

    Raises ValueError if only one of them is given, or for shapes that do not fit x.
    """
    if (known is None) != (mask is None):
        raise ValueError("known and mask go together: give both or neither")
    if known is None:
        return x, torch.zeros(1, dtype=torch.bool, device=x.device)
    if known.shape != x.shape or not _fits(mask.shape, x.shape):
        raise ValueError(
            f"known must have shape {tuple(x.shape)}, like x, and mask must broadcast to it; got {tuple(known.shape)} "
            f"and {tuple(mask.shape)}"
        )
    return known, mask.bool()


def _fits(shape: torch.Size, into: torch.Size) -> bool:
    """Whether a tensor of this shape broadcasts to the other one."""
    return len(shape) <= len(into) and all(a in (1, b) for a, b in zip(shape[::-1], into[::-1], strict=False))
