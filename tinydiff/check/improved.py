"""Checks of exercises 02, Improved DDPM's part: the decoder of pixels, and steps drawn by their losses."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinydiff.check.core import call, fail, is_close, is_tensor_like, right

BINS = "levels - 1 gaps between -1 and 1; a bin reaches half a gap to each side"
EDGES = "beyond -1 and beyond 1 there are no other levels: whose is the mass out there?"
MASS = "the mass of a bin is a difference of two values of the distribution function, over std (not its square)"
FINITE = "far from the mean the mass rounds to 0; the official code takes it to be at least 1e-12"
NEAREST = "the outer levels are those within half a gap of -1 and 1: neither x == 1 nor x > 0.99 says that"
AS_MASS = "compared is the exp of what came; the logarithm is natural"
MOMENT = "p in proportion to the root of the mean square of each row (not its mean, not its square), then mixed"


def discretised_log_prob(fn: Callable) -> None:
    """fn(x, mean, std, levels) -> log-probability in nats of each entry of x under a rounded Gaussian."""
    name, f64 = "discretised_log_prob", torch.float64
    mean = torch.tensor([-1.4, -1.0, -0.33, 0.0, 0.72, 1.0], dtype=f64)[:, None]
    std = torch.tensor([0.3, 0.04, 0.11, 1.5, 0.2, 0.5], dtype=f64)[:, None]
    for levels in (17, 5):
        x = (2 * torch.arange(levels, dtype=f64) / (levels - 1) - 1).expand(6, levels).contiguous()
        out = call(name, fn, x, mean, std, levels)
        is_tensor_like(
            name, "the log-probability", out, x, "one number for each entry of x: nothing is summed or averaged"
        )
        want = _masses(x[0], mean, std, 1 / (levels - 1))
        for part, which, hint in (
            (slice(1, -1), "an inner level has the mass of its bin", f"{BINS}; {MASS}"),
            (slice(0, 1), "level -1 has all the mass below its upper edge", EDGES),
            (slice(-1, None), "level 1 has all the mass above its lower edge", EDGES),
        ):
            given = f"{levels} levels, means from -1.4 to 1, std from 0.04 to 1.5; {AS_MASS}"
            is_close(name, f"{which} (by quadrature)", given, out.exp()[:, part], want[:, part], hint, 1e-6)
        is_close(
            name,
            "the levels sum to 1",
            f"{levels} levels; {AS_MASS}",
            out.exp().sum(1),
            torch.ones(6, dtype=f64),
            EDGES,
            1e-6,
        )
    few, narrow = mean[[2, 4]], std[[2, 4]]
    for levels, nearly, what in ((256, 1.0, "256 levels"), (17, 1 - 1e-7, "17 levels, x = 0.9999999 for 1 and so on")):
        exact = 2 * torch.arange(levels, dtype=f64) / (levels - 1) - 1
        out = call(name, fn, (nearly * exact).expand(2, levels).contiguous(), few, narrow, levels)
        want, given = _masses(exact, few, narrow, 1 / (levels - 1)), f"{what}; {AS_MASS}"
        is_close(name, "each level has its mass, the outer ones too", given, out.exp(), want, NEAREST, 1e-5)
    x = torch.tensor([[-0.5, -1.0, 1.0]], dtype=f64)
    out = call(name, fn, x, torch.full_like(x, 0.5), torch.full_like(x, 0.01), 17)
    if not out.isfinite().all():
        fail(name, "the log-probability is finite", "mean = 0.5, std = 0.01, x = [-0.5, -1, 1]", out.tolist(), FINITE)
    if not (out < math.log(1e-9)).all():
        fail(name, "a level 50 std from the mean has next to no mass", "mean = 0.5, std = 0.01", out.tolist(), MASS)
    if not (out - math.log(1e-12)).abs().max() < 1e-3:
        given = "mean = 0.5, std = 0.01, x = [-0.5, -1, 1]"
        fail(name, "a mass below 1e-12 is taken to be 1e-12", given, out.tolist(), FINITE)
    right(name, 9)


def _masses(levels: Tensor, mean: Tensor, std: Tensor, half: float) -> Tensor:
    """(b, levels): the Gaussian's density summed over each bin on a fine grid; the outer ones reach 12 std on."""
    rows = []
    for m, s in zip(mean.flatten().tolist(), std.flatten().tolist(), strict=True):
        far = 2 + 12 * s + abs(m)
        low = torch.cat([torch.tensor([-far], dtype=levels.dtype), levels[1:] - half])
        high = torch.cat([levels[:-1] + half, torch.tensor([far], dtype=levels.dtype)])
        u = torch.linspace(0, 1, 20_001, dtype=levels.dtype)
        grid = low[:, None] + (high - low)[:, None] * u
        density = torch.exp(-((grid - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi))
        rows.append(torch.trapezoid(density, grid, dim=1))
    return torch.stack(rows)


def importance(fn: Callable) -> None:
    """fn(history, uniform) -> (p, weight) of each of T steps, from its last losses, history (T, n)."""
    name, g = "importance", torch.Generator().manual_seed(0)
    T, n, f64 = 40, 10, torch.float64
    history = torch.linspace(6, 0.01, T, dtype=f64)[:, None] * (-torch.rand(T, n, generator=g, dtype=f64).log()) ** 2
    history[7] = 0.0  # a step whose losses were all zero
    losses, row = torch.rand(T, generator=g, dtype=f64), history[:, 0]
    for uniform in (0.0, 0.001, 0.3):
        given = f"T = {T} steps with {n} losses each, uniform = {uniform}"
        p, weight = _two(name, call(name, fn, history, uniform))
        is_tensor_like(name, "p", p, row, "one probability for each step")
        is_tensor_like(name, "weight", weight, row, "one weight for each step")
        is_close(name, "p sums to 1", given, p.sum()[None], torch.ones(1, dtype=f64), MOMENT, 1e-9)
        hint = "the share `uniform` of p is spread over all T steps alike, so that no step is forgotten"
        is_close(
            name,
            "a step whose losses were 0 has the probability uniform / T",
            given,
            p[7:8],
            torch.full((1,), uniform / T, dtype=f64),
            hint,
            1e-9,
        )
        seen = p > 0
        hint = "what is drawn p times as often must count 1 / p as much; uniform p must have weights of 1"
        is_close(
            name,
            "the weighted mean over p is the plain mean over steps",
            given,
            (p * weight * losses)[seen].sum()[None],
            losses[seen].sum()[None] / T,
            hint,
            1e-9,
        )
        square = history.square().mean(1)
        # Cauchy-Schwarz: no p has a smaller second moment of the weighted loss than (mean of sqrt(square))^2
        least = square.sqrt().mean().item() ** 2
        came = (p * weight**2 * square)[seen].sum().item()
        most = least / (1 - uniform) * (1 + 1e-9)  # mixing costs that at most
        if not came <= most:
            fail(
                name,
                f"no p gives the weighted loss a smaller second moment ({least:.4f}, or {most:.4f} once mixed)",
                given,
                f"{came:.4f}",
                MOMENT,
            )
    p, weight = _two(name, call(name, fn, torch.full((5, 3), 2.0, dtype=f64), 0.001))
    flat = torch.full((5,), 0.2, dtype=f64)
    is_close(name, "equal losses give a uniform p", "5 steps, all losses 2", p, flat, MOMENT, 1e-9)
    is_close(
        name, "and weights of 1", "5 steps, all losses 2", weight, 5 * flat, "weights are relative to uniform", 1e-9
    )
    right(name, 6)


def _two(name: str, out: Any) -> tuple:
    if not isinstance(out, tuple | list) or len(out) != 2:
        fail(name, "two things come back", "any", type(out).__name__, "return p, weight")
    return tuple(out)
