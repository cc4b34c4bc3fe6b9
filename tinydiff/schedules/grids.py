"""Grids: the times at which a sampler stops on its way from noise to data."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tinydiff.schedules.base import Schedule
from tinydiff.schedules.library import DiscreteVP

Spacing = Callable[[Schedule, int], Tensor]


def grid(schedule: Schedule, n: int, spacing: Spacing | None = None) -> Float[Tensor, " {n}+1"]:
    """n + 1 decreasing times for a sampler of n steps; the last is 0. float64, on the CPU.

    Args:
        spacing: any function (schedule, n) -> n decreasing positive times; by default `uniform`. Also `logsnr_uniform`,
            `karras(rho)`, `before_end`, `leading`, `trailing`, `strided`, `quadratic`.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 step; got {n}")
    ts = (spacing or uniform)(schedule, n)
    return F.pad(ts.double().cpu(), (0, 1))


def uniform(schedule: Schedule, n: int) -> Tensor:
    """Even in t: from t_max to 0, or to t_min where the schedule jumps (so EDM() gives Karras' own grid)."""
    if schedule.jumps:
        return torch.linspace(schedule.t_max, schedule.t_min, n, dtype=torch.float64)
    return torch.linspace(schedule.t_max, 0, n + 1, dtype=torch.float64)[:-1]


def before_end(schedule: Schedule, n: int) -> Tensor:
    """Even in t from t_max, with t_min the end and not one of them: for a consistency function, which is x there.

    `uniform` on EDM() would have two steps at sigma_max and sigma_min, and the second would do nothing.
    """
    return torch.linspace(schedule.t_max, schedule.t_min if schedule.jumps else 0, n + 1, dtype=torch.float64)[:-1]


def logsnr_uniform(schedule: Schedule, n: int) -> Tensor:
    """Even in log-SNR from t_max to t_min (Lu et al. 2022, DPM-Solver)."""
    return karras(math.inf)(schedule, n)


def karras(rho: float = 7.0) -> Spacing:
    """Even in (sigma / alpha)^(1 / rho) from t_max to t_min (Karras et al. 2022, eq. 5); rho = inf is log-SNR."""

    def spacing(schedule: Schedule, n: int) -> Tensor:
        ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
        first, last = schedule.logsnr(ends)
        if not torch.isfinite(first):
            raise ValueError(
                f"this spacing needs a finite log-SNR, but {schedule} has alpha = 0 at t = {schedule.t_max:g}"
            )
        u = torch.linspace(0, 1, n, dtype=torch.float64)
        if math.isinf(rho):
            logsnr = first + u * (last - first)
        else:
            first, last = (-first / 2 / rho).exp(), (-last / 2 / rho).exp()
            logsnr = -2 * rho * (first + u * (last - first)).log()
        ts = schedule.time(logsnr)
        ts[0] = ends[0]
        return ts

    return spacing


def leading(schedule: DiscreteVP, n: int) -> Tensor:
    """Steps 1, 1 + T//n, 1 + 2 T//n, ... of T (DDIM's official grid: its index k is our step k + 1)."""
    return (torch.arange(n - 1, -1, -1, dtype=torch.float64) * _stride(schedule, n) + 1) / schedule.steps


def trailing(schedule: DiscreteVP, n: int) -> Tensor:
    """Steps T, T - T//n, T - 2 T//n, ... of T (Lin et al. 2023, table 2): starts where training ends."""
    stride = _stride(schedule, n)
    return (schedule.steps - torch.arange(n, dtype=torch.float64) * stride) / schedule.steps


def strided(schedule: DiscreteVP, n: int) -> Tensor:
    """n steps of the chain, evenly spaced from T to 1 and rounded (Nichol & Dhariwal 2021, section 4).

    The official code counts from 0 and rounds that: 50 of 1,000 steps have its indices 0, 20, 41, 61, ... 979, 999.
    """
    _stride(schedule, n)
    index = torch.linspace(schedule.steps - 1, 0, n, dtype=torch.float64).round()
    return (index + 1) / schedule.steps


def quadratic(schedule: DiscreteVP, n: int) -> Tensor:
    """n steps of the chain that lie closer near the data: DDIM's grid for CIFAR-10 (Song et al. 2020, appendix D.2).

    As in the official code, indices are squares of even numbers up to 0.8 T, rounded down (10 of 1,000: 0, 9, 39, ...
    632, 800), though x starts from pure noise. Where two fall on one step, the later takes the next one.
    """
    _stride(schedule, n)
    index = (torch.linspace(0, math.sqrt(0.8 * schedule.steps), n, dtype=torch.float64) ** 2 + 1e-9).long()
    room = torch.arange(n)  # distinct: index - room must not fall
    index = ((index - room).cummax(0).values + room).clamp(max=schedule.steps - n + room)
    return (index.flip(0) + 1).double() / schedule.steps


def _stride(schedule: Schedule, n: int) -> int:
    steps = getattr(schedule, "steps", 0)
    if n > steps:
        raise ValueError(f"spacings in steps of a chain need a DiscreteVP of at least n = {n} steps; got {schedule}")
    return steps // n
