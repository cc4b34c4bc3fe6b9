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
    """Makes a generator of States a sampler: its steps run under no_grad, or with gradients if grad=True."""

    @functools.wraps(steps)
    def run(*args: Any, grad: bool = False, **kwargs: Any) -> Iterator:
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
