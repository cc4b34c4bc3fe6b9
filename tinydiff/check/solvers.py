"""Checks of exercises 09: levels, preconditioning, orders, a sampler. Each compares with another computation."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from tinydiff.check.core import CheckFailed, call, fail, is_close, is_tensor_like, right
from tinydiff.denoisers import Denoiser, denoiser
from tinydiff.exact import GaussianMixture
from tinydiff.guidance import bind, static, thresholded
from tinydiff.samplers import Sampler, State, ddim, euler, final, heun, probability_flow, rk4, sample
from tinydiff.schedules import EDM, VP, Cosine, Schedule, Times, grid
from tinydiff.targets import Prediction

F64 = torch.float64
BUDGET = "Heun asks twice a step, but once in the last: how many steps fit into this many calls?"
ENDS = "the n levels run from high to low, both of them hit; after them comes the 0, which is not a part of the ramp"
ZERO = "after low comes one more level, 0: the last step leads from low into the data"
ROOTS = "levels to the power 1/rho are evenly spaced: the root comes first, the power rho last"
IN = "x = alpha x0 + sigma eps has variance alpha^2 std^2 + sigma^2; which number brings it to 1?"
OUT = (
    "what F has to say is (x0 - skip x) / c_out: write x0 - skip x as a multiple of x0 plus a multiple of eps; what is "
    "its variance? c_out is a standard deviation"
)
THREE = "return c_in, c_out, weight, in this order and each by itself: not stacked in one tensor"
ONE_NUMBER = "four numbers come in, so each answer is a number (or a tensor without dimensions, shape ())"
WEIGHT = "D - x0 is c_out times the error of F, whatever F says; which weight takes the square of c_out away?"
HALVES = (
    "if the error is C h^p, what is the difference between the runs with h and h/2, and what between h/2 and h/4? "
    "Their ratio is a power of 2"
)
SIZES = "take the size of each difference first (a norm); signed numbers cancel"
YIELD = "for each (t, s) of td.pairs(ts): yield td.State(s, x, p.x0), with x at time s and the belief p at time t"
ONE_CALL = "one call a step, d(x, t) at the start of the step: what was believed before is remembered, not asked again"
FIRST = "the first step has no history: x / alpha moves by h eps, h the change of sigma / alpha, and then times alpha_s"
LINE = (
    "through the last two beliefs goes a line in sigma / alpha; its mean over the step is its value in "
    "the middle. How far is that beyond the newer belief, in units of the step before?"
)
INTO_DATA = (
    "the step into t = 0 is of first order: with sigma = 0 and the newest eps alone it ends in the x0 believed in"
)


def levels_for_calls(fn: Callable) -> None:
    """Exercise 1: fn(calls, low, high, rho) -> Karras' levels, float64, of Heun's rule with at most `calls` calls."""
    name = "levels_for_calls"
    for calls, low, high, rho in ((35, 0.002, 80.0, 7.0), (36, 0.01, 50.0, 7.0), (9, 0.1, 10.0, 1.0), (4, 0.5, 3.0, 2)):
        n = max(k for k in range(1, calls + 1) if _calls_of_heun(k) <= calls)
        out = call(name, fn, calls, low, high, rho)
        given = f"calls = {calls}, low = {low:g}, high = {high:g}, rho = {rho:g}"
        if isinstance(out, Tensor) and out.ndim == 1 and len(out) != n + 1:
            prop = f"{n + 1} levels, for the {n} steps that {calls} calls pay for"
            missing = len(out) == n and out[-1] > 0
            fail(name, prop, given, f"{len(out)} levels, for {len(out) - 1} steps", ZERO if missing else BUDGET)
        is_tensor_like(name, "the levels", out, torch.empty(n + 1, dtype=F64), "one number a level, made in float64")
        is_close(name, "the last level is 0", given, out[-1:], torch.zeros(1, dtype=F64), ENDS, 1e-12)
        is_close(name, "the first level is high", given, out[:1], torch.tensor([high], dtype=F64), ENDS, 1e-9)
        is_close(name, "the last but one is low", given, out[-2:-1], torch.tensor([low], dtype=F64), ENDS, 1e-9)
        gaps = (out[:-1] ** (1 / rho)).diff()
        prop = "the levels to the power 1/rho are evenly spaced"
        is_close(name, prop, given, gaps, gaps.mean().expand_as(gaps), ROOTS, 1e-9)
    right(name, 5)


@functools.cache
def _calls_of_heun(n: int) -> int:
    """Counted, not computed."""
    counted = _Counted(GaussianMixture(torch.zeros(1, 1), 1.0, None, VP()))
    final(heun(counted, torch.zeros(1, 1), grid(VP(), n)))
    return len(counted.times)


def unit_variance(fn: Callable) -> None:
    """Exercise 2: fn(alpha, sigma, std, skip) -> (c_in, c_out, weight), three numbers.

    x = alpha x0 + sigma eps with x0 of mean 0 and this std; the denoiser is skip x + c_out F(c_in x).
    """
    name = "unit_variance"
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)  # moments exact, no draws
    cases = ((1.0, 2.0, 0.5, 0.25 / 4.25), (1.0, 0.3, 0.5, 0.0), (0.8, 0.6, 1.0, 0.8), (0.6, 1.5, 2.0, 1.0))
    for alpha, sigma, std, skip in (*cases, (0.9, 0.2, 0.7, -0.4)):
        out = call(name, fn, alpha, sigma, std, skip)
        given = f"alpha = {alpha:g}, sigma = {sigma:g}, std = {std:g}, skip = {skip:.4g}"
        if not isinstance(out, tuple | list) or len(out) != 3:
            came = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            came = f"{len(out)} of them" if isinstance(out, tuple | list) else came
            fail(name, "three numbers (c_in, c_out, weight) come back", given, came, THREE)
        for what, v in zip(("c_in", "c_out", "weight"), out, strict=True):
            if not isinstance(v, Tensor | SupportsFloat) or getattr(v, "shape", ()):
                came = f"a tensor of shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
                fail(name, f"{what} is one number", given, came, ONE_NUMBER)
        c_in, c_out, weight = (torch.as_tensor(v, dtype=F64) for v in out)
        if not min(c_in, c_out, weight) > 0:
            fail(name, "each is one positive number", given, f"{[v.item() for v in (c_in, c_out, weight)]}", OUT)
        x0, eps = std * signs[:, 0], signs[:, 1]
        x = alpha * x0 + sigma * eps
        one = torch.ones((), dtype=F64)
        is_close(name, "the network's input has variance 1", given, (c_in * x).square().mean(), one, IN, 1e-6)
        target = (x0 - skip * x) / c_out
        is_close(name, "what F has to say has variance 1", given, target.square().mean(), one, OUT, 1e-6)
        error = 0.37 * eps - 0.21 * x0  # any error of F
        denoised = skip * x + c_out * (target + error)
        prop = "weight (D - x0)^2 is the squared error of F"
        is_close(name, prop, given, weight * (denoised - x0) ** 2, error**2, WEIGHT, 1e-6)
    right(name, 3)


def order_without_truth(fn: Callable) -> None:
    """Exercise 3: fn(coarse, middle, fine) -> the order p, from runs with n, 2 n and 4 n steps, each (b, d)."""
    name = "order_without_truth"
    g = torch.Generator().manual_seed(0)
    truth, size = (torch.randn(6, 2, generator=g, dtype=F64) for _ in range(2))
    size = size - size.mean(0)  # errors of both signs, which cancel in a sum
    size = torch.cat([size, torch.zeros(1, 2, dtype=F64)])  # and a point without error
    truth = torch.cat([truth, truth[:1]])
    for p in (1, 2, 3, 1.5):
        runs = [truth + size * h**p for h in (0.2, 0.1, 0.05)]
        _is_order(name, fn, runs, float(p), f"x = truth + C h^{p} with h = 0.2, 0.1, 0.05, C of both signs", 1e-6)
    S, std, mean = VP(), 0.6, torch.tensor([0.5, -0.3], dtype=F64)
    d, x = GaussianMixture(mean[None], std, None, S), torch.randn(20, 2, generator=g, dtype=F64)
    ends = torch.tensor([1.0, 0.05], dtype=F64)
    (a, b), (s, r) = S.alpha(ends), S.sigma(ends)
    exact = b * mean + ((b**2 * std**2 + r**2) / (a**2 * std**2 + s**2)).sqrt() * (x - a * mean)
    for solver, title in ((ddim, "DDIM"), (heun, "Heun's rule")):
        runs = [final(solver(d, x, torch.linspace(1, 0.05, n + 1, dtype=F64))) for n in (40, 80, 160)]
        errors = [(run - exact).square().mean().sqrt() for run in runs]
        given = f"{title} with 40, 80, 160 steps on Gaussian data, where the truth is known"
        _is_order(name, fn, runs, torch.log2(errors[1] / errors[2]).item(), given, 0.1)
    right(name, 2)


def _is_order(name: str, fn: Callable, runs: list[Tensor], want: float, given: str, tol: float) -> None:
    out = torch.as_tensor(call(name, fn, *runs), dtype=F64)
    if out.ndim:
        fail(name, "the order is one number", given, f"shape {tuple(out.shape)}", SIZES)
    if not abs(out.item() - want) <= tol:
        swapped = abs(out.item() + want) <= tol
        hint = "the sign is turned round: the coarser pair differs more" if swapped else HALVES
        if not out.isfinite() or abs(out.item()) < 0.2:
            hint = SIZES
        fail(name, f"the order {want:.2f}, to {tol:g}", given, f"{out.item():.4f}", hint)


# ---- a sampler -----------------------------------------------------------------------------------

MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)
WEIGHTS, STDS = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.5, 0.6, 0.45], dtype=F64)
SCHEDULES = {"VP": VP(), "EDM": EDM(), "Cosine": Cosine()}
UNEVEN = (1.0, 0.9, 0.55, 0.5, 0.2, 0.16, 0.03)


class _Counted:
    """A denoiser that keeps the times at which it was asked."""

    def __init__(self, d: Denoiser) -> None:
        self.denoiser, self.schedule, self.times = d, d.schedule, []

    def __call__(self, x: Tensor, t: Times, **cond: Any) -> Prediction:
        self.times.append(float(t.flatten()[0]) if isinstance(t, Tensor) else float(t))
        return self.denoiser(x, t, **cond)


def _mixture(S: Schedule) -> GaussianMixture:
    return GaussianMixture(MEANS, STDS, WEIGHTS, S)


def _start(S: Schedule, n: int = 30) -> Tensor:
    return S.prior_std * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def _even_in_logsnr(S: Schedule, n: int) -> Tensor:
    first = max(float(S.logsnr(S.t_max)), -12.0)
    return S.time(torch.linspace(first, 6.0, n + 1, dtype=F64))


@functools.cache
def _true_end(title: str) -> Tensor:
    """Where the ODE leads, by Runge and Kutta's rule of fourth order in t."""
    S = SCHEDULES[title]
    return final(probability_flow(_mixture(S), _start(S), _even_in_logsnr(S, 120), rule=rk4))


def _run(name: str, fn: Sampler, d: Denoiser, x: Tensor, ts: Tensor) -> list:
    with torch.no_grad():
        return call(name, lambda x, ts: list(fn(d, x, ts)), x, ts)


def adams(fn: Sampler) -> None:
    """Exercise 4: a sampler fn(d, x, ts) -> States, Adams and Bashforth's two-step rule in sigma / alpha."""
    name, S = "adams", VP()
    ts, x = torch.tensor([*UNEVEN, 0.0], dtype=F64), _start(VP(), 5)
    counted = _Counted(_mixture(S))
    states = _run(name, fn, counted, x, ts)
    given = f"an exact mixture on VP, ts = {[*UNEVEN, 0.0]}"
    _protocol(name, states, counted, x, ts, given)
    first = final(euler(_mixture(S), x, ts[:2]))
    is_close(name, "the first step is Euler's", given, states[0].x, first, FIRST, 1e-9)
    is_close(name, "the step into t = 0 returns the belief", given, states[-1].x, states[-1].x0, INTO_DATA, 1e-9)
    for t, start, state in zip(ts, [x, *(s.x for s in states)], states, strict=False):
        believed = counted(start, t).x0
        is_close(name, "x0 of a State is the belief of its step", given, state.x0, believed, YIELD, 1e-9)
    if not isinstance(fn(counted, x, ts), Iterator):
        fail(name, "the States come one by one", given, type(fn(counted, x, ts)).__name__, "yield each, do not collect")
    again = _run(name, fn, _mixture(S), x, ts)[-1].x
    is_close(name, "two runs from one x agree", given, again, states[-1].x, "no noise is added anywhere", 1e-12)
    _exact_on_a_line(name, fn)
    _second_order(name, fn)
    _goes_where_others_go(name, fn)
    right(name, 7)


def _protocol(name: str, states: list, counted: _Counted, x: Tensor, ts: Tensor, given: str) -> None:
    n = len(ts) - 1
    if len(states) != n or not all(isinstance(s, State) for s in states):
        kinds = ", ".join(sorted({type(s).__name__ for s in states})) or "nothing"
        fail(name, f"{n} States come, one after each step", given, f"{len(states)} of type {kinds}", YIELD)
    times, want = torch.tensor([s.t for s in states], dtype=F64), ts[1:]
    is_close(name, "each State has the time at which its step ends", given, times, want, YIELD, 1e-9)
    for state in states:
        is_tensor_like(name, "x of a State", state.x, x, YIELD)
        is_tensor_like(name, "x0 of a State", state.x0, x, YIELD)
    if len(counted.times) != n:
        fail(name, f"the denoiser is asked {n} times in {n} steps", given, f"{len(counted.times)} calls", ONE_CALL)
    asked = torch.tensor(counted.times, dtype=F64)
    is_close(name, "it is asked at the start of each step", given, asked, ts[:-1], ONE_CALL, 1e-9)


def _exact_on_a_line(name: str, fn: Sampler) -> None:
    """Where eps = a + b sigma / alpha, whatever x is, every step but the first is exact."""
    a, b = torch.tensor([0.4, -1.0], dtype=F64), torch.tensor([0.7, 0.5], dtype=F64)

    def line(S: Schedule) -> Denoiser:
        def believe(x: Tensor, t: Times) -> Prediction:
            c = S(t, like=x)
            eps = (a + b * c.sigma / c.alpha).expand_as(x)
            return Prediction((x - c.sigma * eps) / c.alpha, eps)

        return denoiser(believe, S)

    for S in (VP(), EDM()):
        ts = torch.tensor(UNEVEN, dtype=F64)
        states = _run(name, fn, line(S), _start(S, 3), ts)
        c = S(ts, like=torch.empty(len(ts), 1, dtype=F64))
        level = c.sigma / c.alpha
        z = torch.stack([state.x for state in states]) / c.alpha[1:, None]  # x / alpha after each step
        want = z[0] + a * (level[2:, None] - level[1]) + b * (level[2:, None] ** 2 - level[1] ** 2) / 2  # the integral
        prop = "if eps moves on a line in sigma / alpha, each step but the first is exact (steps of unequal length)"
        scale = level[0].item()
        is_close(name, prop, f"{S}, ts = {list(UNEVEN)}", z[1:] / scale, want / scale, LINE, 1e-9)


def _second_order(name: str, fn: Sampler) -> None:
    for title, S in SCHEDULES.items():
        errors = []
        for n in (80, 160):
            end = _run(name, fn, _mixture(S), _start(S), _even_in_logsnr(S, n))[-1].x
            errors.append((end - _true_end(title)).square().mean().sqrt())
        order = torch.log2(errors[0] / errors[1]).item()
        if not order >= 1.8:
            given = f"an exact mixture on {title}, 80 and 160 steps even in log-SNR"
            came = f"errors {errors[0]:.3g} and {errors[1]:.3g}, order {order:.2f}"
            fail(name, "twice the steps, a quarter of the error: an order of at least 1.8", given, came, LINE)


def _goes_where_others_go(name: str, fn: Sampler) -> None:
    S = EDM()
    ts, x = grid(S, 12), _start(S, 20)
    mixture = _mixture(S)
    bound = bind(mixture, y=torch.zeros(len(x), dtype=torch.long))
    alone = GaussianMixture(MEANS[:1], STDS[:1], None, S)
    out, want = (_run(name, fn, d, x, ts)[-1].x for d in (bound, alone))
    cond = "d(x, t) is all that a sampler asks; conditions and guides are the denoiser's own affair"
    is_close(name, "with td.bind(d, y=0) it draws from class 0", "EDM, 12 steps", out, want, cond, 1e-9)
    clipped = _run(name, fn, thresholded(mixture, static(-0.5, 0.5)), x, ts)[-1].x
    if not clipped.abs().max() <= 0.5 + 1e-9:
        prop, came = "with td.thresholded(d, td.static(-0.5, 0.5)) samples lie in the box", f"{clipped.abs().max():.3f}"
        fail(name, prop, "EDM, 12 steps", came, INTO_DATA)
    try:
        drawn = sample(mixture, (6, 2), n=5, sampler=fn, seed=3)
    except Exception as error:  # any of the learner's own
        came = f"{type(error).__name__}: {error}"
        raise CheckFailed(f"{name} is not right yet: td.sample(d, shape, sampler={name}) raises {came}") from None
    is_tensor_like(
        name, "what td.sample returns", drawn, torch.empty(6, 2), "float32 stays float32: no float64 tensors"
    )
