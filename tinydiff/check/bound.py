"""Checks of exercises 02, part A: steps of the 2015 chains. Each compares with something computed in another way."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinydiff.check.core import call, fail, is_close, is_tensor_like, right
from tinydiff.schedules import linear_betas

T = 40
PRECISIONS = "multiply two normal densities and complete the square: precisions (1 / variance) add"
ENDS = "write the share of y as something that is 1 for std = 0 and 0 for std = infinity, without infinity / infinity"
TOTAL = "the law of total variance has two parts: the posterior's own variance, and that of its mean as x0 varies"
WEIGHTS = "the posterior's mean is A x0 + B x_k, linear in x0; both weights are in notebook 01, equation (2)"
BAYES = "for each letter v: how likely is x_s = v given x0, times how likely is it then to see x_t"


SINGLE = "right to six digits only: is a coefficient float32 somewhere (.float(), or made without dtype)?"


def _close(name: str, prop: str, given: str, out: Tensor, want: Tensor, hint: str) -> None:
    """To 1e-9, and what is right to single precision only is told so."""
    is_close(name, prop, given, out, want, hint, 1e-5)
    worst = (out - want).abs().max().item()
    if not worst <= 1e-9 * max(1.0, want.abs().max().item()):
        fail(name, f"{prop}, in float64", given, f"a difference of {worst:.1e}", SINGLE)


def _pair(name: str, out: object) -> tuple[Tensor, Tensor]:
    if not isinstance(out, tuple) or len(out) != 2:
        fail(name, "a pair (mean, var) comes back", "any", type(out).__name__, "return mean, var")
    return out


def tilted_step(fn: Callable) -> None:
    """Exercise 1: fn(mean, var, y, std) -> (mean, var) of N(mean, var) N(y, std^2), normalised.

    mean, var and y are (b, d), var > 0; std is (d,), from 0 to infinity.
    """
    name = "tilted_step"
    mean = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)
    var = torch.tensor([[0.2, 1.0], [0.05, 0.6]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.5], [1.2, -0.4]], dtype=torch.float64)
    std = torch.tensor([0.4, 1.5], dtype=torch.float64)
    got_mean, got_var = _pair(name, call(name, fn, mean, var, y, std))
    is_tensor_like(name, "mean", got_mean, mean)
    is_tensor_like(name, "var", got_var, var)
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)[:, None, None]
    p = (-((x - mean) ** 2) / (2 * var) - (x - y) ** 2 / (2 * std**2)).softmax(0)
    want_mean = (p * x).sum(0)
    want_var = (p * (x - want_mean) ** 2).sum(0)
    given = "b = 2, std = [0.4, 1.5]"
    prop = "the {} of the product of the two densities, normalised on a fine grid"
    is_close(name, prop.format("mean"), given, got_mean, want_mean, PRECISIONS, 1e-6)
    is_close(name, prop.format("variance"), given, got_var, want_var, PRECISIONS, 1e-6)
    std = torch.tensor([0.0, math.inf], dtype=torch.float64)
    got_mean, got_var = _pair(name, call(name, fn, mean, var, y, std))
    given, zero = "std = [0, inf]", torch.zeros(2, dtype=torch.float64)
    is_close(name, "a coordinate with std 0 is known: its mean is y", given, got_mean[:, 0], y[:, 0], ENDS, 1e-9)
    is_close(name, "a coordinate with std 0 is known: its variance is 0", given, got_var[:, 0], zero, ENDS, 1e-9)
    is_close(name, "infinite std leaves the mean as it is", given, got_mean[:, 1], mean[:, 1], ENDS, 1e-9)
    is_close(name, "infinite std leaves the variance as it is", given, got_var[:, 1], var[:, 1], ENDS, 1e-9)
    right(name, 4)


def true_step(fn: Callable) -> None:
    """Exercise 2: fn(mean0, var0, x, k, betas) -> (mean, var) of the true q(x_{k-1} | x_k = x).

    mean0 and var0 (b, d) are those of q(x0 | x_k = x), x is (b, d), and k one integer from 1 to T.
    """
    name, betas = "true_step", linear_betas(T)
    points, chances = (torch.tensor(v, dtype=torch.float64) for v in ([-1.0, 0.2, 1.5], [0.5, 0.2, 0.3]))
    x = torch.tensor([[-1.0], [0.1], [0.9]], dtype=torch.float64)
    for k in (2, 7, T):
        before, now = ((1 - betas[:j]).log().sum().exp() for j in (k - 1, k))
        r = (chances.log() - (x - now.sqrt() * points) ** 2 / 2 / (1 - now)).softmax(1)  # q(x0 | x_k)
        mean0 = (r * points).sum(1, keepdim=True)
        var0 = (r * (points - mean0) ** 2).sum(1, keepdim=True)
        mean, var = _pair(name, call(name, fn, mean0, var0, x, k, betas))
        is_tensor_like(name, "mean", mean, x)
        is_tensor_like(name, "var", var, x)
        # a mixture of the three posteriors, each by adding precisions
        keep, beta = 1 - betas[k - 1], betas[k - 1]
        v = 1 / (1 / (1 - before) + keep / beta)
        each = v * (before.sqrt() * points / (1 - before) + keep.sqrt() * x / beta)
        want_mean = (r * each).sum(1, keepdim=True)
        want_var = v + (r * (each - want_mean) ** 2).sum(1, keepdim=True)
        given = f"data at -1, 0.2 and 1.5, k = {k}, T = {T}, x = {x[:, 0].tolist()}"
        prop = "the {} of the mixture of posteriors, over all three x0"
        _close(name, prop.format("mean"), given, mean, want_mean, WEIGHTS)
        _close(name, prop.format("variance"), given, var, want_var, TOTAL)
    mean, var = _pair(name, call(name, fn, mean0, var0, x, 1, betas))
    hint = "alpha-bar of step 0 is 1, so the posterior's own variance is 0 there"
    is_close(name, "at k = 1 the step is to x0 itself: its mean is mean0", "k = 1", mean, mean0, hint, 1e-9)
    is_close(name, "at k = 1 the step is to x0 itself: its variance is var0", "k = 1", var, var0, hint, 1e-9)
    zero = torch.zeros_like(x)
    _, known = _pair(name, call(name, fn, mean0, zero, x, 7, betas))
    before, now = ((1 - betas[:j]).log().sum().exp() for j in (6, 7))
    small = (betas[6] * (1 - before) / (1 - now)).expand_as(x)
    is_close(name, "if x0 is known (var0 = 0) the variance is beta-tilde", "k = 7", known, small, TOTAL, 1e-9)
    right(name, 4)


def letters_back(fn: Callable) -> None:
    """Exercise 3: fn(x0, x_t, t, s, m) -> (b, m): q(x_s = v | x_t, x0) for letters v = 0 ... m - 1.

    x0 and x_t are (b,) integers; 0 <= s < t <= 1; a letter is kept from s to t with probability (1 - t) / (1 - s), else
    drawn anew from all m, evenly.
    """
    name = "letters_back"
    for m in (2, 5):
        x0, x_t = torch.cartesian_prod(torch.arange(m), torch.arange(m)).T
        for t, s in ((0.6, 0.2), (1.0, 0.9), (0.3, 0.25), (0.5, 0.0)):
            out = call(name, fn, x0, x_t, t, s, m)
            like = torch.empty(len(x0), m, dtype=torch.float64)
            is_tensor_like(
                name, "the table of probabilities", out, like, "one row a pair (x0, x_t), one column a letter"
            )
            given = f"m = {m}, t = {t}, s = {s}, all pairs (x0, x_t)"
            if not (out >= 0).all():
                fail(name, "no probability is negative", given, f"{out.min():.4g}", BAYES)
            one = torch.ones(len(x0), dtype=torch.float64)
            is_close(name, "each row sums to 1", given, out.sum(1), one, "divide by the sum over the letters", 1e-9)
            want = torch.zeros_like(like)
            for row, (a, b) in enumerate(zip(x0.tolist(), x_t.tolist(), strict=True)):
                for v in range(m):
                    want[row, v] = _letter(v, a, s, 0.0, m) * _letter(b, v, t, s, m)
                want[row] /= want[row].sum()
            prop = "q(x_s = v | x_t, x0) by Bayes' rule, letter by letter"
            is_close(name, prop, given, out, want, BAYES, 1e-9)
    right(name, 3)


def _letter(after: int, before: int, t: float, s: float, m: int) -> float:
    keep = (1 - t) / (1 - s)
    return keep * (after == before) + (1 - keep) / m
