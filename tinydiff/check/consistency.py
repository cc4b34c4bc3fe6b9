"""Checks of exercises 24: a boundary by form, levels and averages, a distance, one loss, several calls."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tinydiff.check.core import call, fail, has_moments, is_close, is_tensor_like, right

F64 = torch.float64

SHIFT = "EDM's coefficients have this property at level 0; here it has to hold at `least`"
VARIANCE = (
    "the network's output has to cover what c_skip x leaves of the data, as in EDM; far above `least` c_skip is nearly "
    "0 and c_out nearly sd"
)
DENOMINATOR = "not every level in (4) is shifted: look at the root under c_out again"
ENDS = "work out k = 0 and k = K by hand; which numbers does the root hold, and what is rounded up?"
PARENTHESIS = (
    "that is one too many at each end: what stands under the root, and what is taken from it before rounding up?"
)
CLIMB = "the square of N grows evenly with k, from s0 squared to (s1 + 1) squared"
BY_LEVELS = "mu is mu0 to a power: s0 over the number of levels N itself, as the paper has it"
NORM = "the length of the whole vector stands under the root: what belongs to one x is summed, not rooted one by one"
SOFT = "what is taken off at the end makes d(x, x) = 0, and c^2 stands under the root"
DEFAULT = "0.00054 times the root of how many numbers *one* x holds, whatever its shape"
SEEN = "c_in = 1 / sqrt(level^2 + sd^2) multiplies x before the network sees it"
TOLD = "the network is told log(level) / 4, of the level at which it is asked"
SAME = "x0 and eps are the same at both levels: they lie on one line, with more noise and with less"
STOP = "only the answer at the higher level learns; what it is drawn to counts as a number (torch.no_grad, detach)"
SWAPPED = "the gradient goes through the lower level: which of the two is the answer, and which the target?"
NO_GRADIENT = "nothing learns: the answer at the higher level needs its gradient"
FORM = "c_skip and c_out of exercise 1 make a jump of what the network says, at both levels"
BOUNDARY = "at `least` the target is x itself, bit for bit: use the shifted coefficients"
MEAN = "the square of the difference, averaged over the numbers of one x"
LAST = "what comes back is the last answer; no noise is added after it"
CALLS = "one call for each level, in their order; the first is asked at x as it came"
ADDED = (
    "the answer counts as data at `least`: it holds that much noise already, and variances of independent noises add up"
)
FRESH = "independent noise for each call, from the generator"


# ---- exercise 1 ----------------------------------------------------------------------------------


def boundary(fn: Callable) -> None:
    """Exercise 1: fn(level, least, sd) -> (c_skip, c_out), each (b,) like level."""
    name = "boundary"
    for least, sd in ((0.002, 0.5), (0.1, 1.0), (0.3, 2.0)):
        level = torch.tensor([least, 1.5 * least, 0.7, 3.0, 80.0, 1e5], dtype=F64)
        given = f"least = {least}, sd = {sd}"
        out = call(name, fn, level, least, sd)
        if not isinstance(out, tuple | list) or len(out) != 2:
            fail(name, "two answers, c_skip and c_out", given, type(out).__name__, "return c_skip, c_out")
        for what, value in zip(("c_skip", "c_out"), out, strict=True):
            is_tensor_like(name, what, value, level, "one number for each level")
        skip, scale = out
        first = f"level = least; {given}"
        is_close(name, "f(x, least) = x: c_skip is 1", first, skip[:1], torch.ones(1, dtype=F64), SHIFT, 1e-12)
        is_close(name, "f(x, least) = x: c_out is 0", first, scale[:1], torch.zeros(1, dtype=F64), SHIFT, 1e-12)
        is_close(name, "far away c_skip is nearly 0", f"level = 1e5; {given}", skip[-1:], 0 * skip[-1:], VARIANCE, 1e-6)
        is_close(
            name, "far away c_out is nearly sd", f"level = 1e5; {given}", scale[-1:], sd + 0 * skip[-1:], VARIANCE, 1e-4
        )
        gap = level - least
        is_close(name, "c_skip is that of equation (4)", given, skip, sd**2 / (gap**2 + sd**2), VARIANCE, 1e-9)
        due = sd * gap / (level**2 + sd**2).sqrt()
        is_close(name, "c_out is that of equation (4)", given, scale, due, DENOMINATOR, 1e-9)
    right(name, 6)


# ---- exercise 2 ----------------------------------------------------------------------------------


def ct_schedule(fn: Callable) -> None:
    """Exercise 2: fn(k, K, s0, s1, mu0) -> (N, mu): a whole number and a float."""
    name = "ct_schedule"
    for s0, s1, mu0, K in ((2, 150, 0.9, 800_000), (2, 200, 0.95, 800_000), (10, 40, 0.8, 1000)):
        for k, due in ((0, s0), (K, s1 + 1)):
            given = f"k = {k:,}, K = {K:,}, s0 = {s0}, s1 = {s1}, mu0 = {mu0}"
            out = call(name, fn, k, K, s0, s1, mu0)
            if not isinstance(out, tuple | list) or len(out) != 2:
                fail(name, "two answers, N and mu", given, type(out).__name__, "return N, mu")
            if not isinstance(out[0], int) or isinstance(out[0], bool):
                came = type(out[0]).__name__
                fail(name, "N is a whole number (int)", given, came, "math.ceil gives one; levels are counted")
            if out[0] != due:
                hint = PARENTHESIS if out[0] == due + 1 else ENDS
                fail(name, f"training goes from {s0} levels to {s1 + 1}", given, f"{out[0]}", hint)
        for k in range(1, K, K // 97):
            given = f"k = {k:,}, K = {K:,}, s0 = {s0}, s1 = {s1}, mu0 = {mu0}"
            n, mu = call(name, fn, k, K, s0, s1, mu0)
            square = k / K * ((s1 + 1) ** 2 - s0**2) + s0**2
            if not (n - 1) ** 2 < square * (1 + 1e-12) or not n**2 >= square * (1 - 1e-12):
                prop = f"N is the first whole number whose square reaches {square:,.1f}"
                fail(name, prop, given, f"{n}, whose square is {n**2:,}", CLIMB)
        for k in (0, K // 3, K):
            given = f"k = {k:,}, K = {K:,}, s0 = {s0}, s1 = {s1}, mu0 = {mu0}"
            n, mu = call(name, fn, k, K, s0, s1, mu0)
            prop = "over N / s0 steps the average keeps the share mu0 of what it was: mu to that power is mu0"
            kept = torch.tensor([float(mu) ** (n / s0)], dtype=F64)
            is_close(name, prop, given, kept, torch.tensor([mu0], dtype=F64), BY_LEVELS, 1e-9)
    right(name, 4)


# ---- exercise 3 ----------------------------------------------------------------------------------


def whole_huber(fn: Callable) -> None:
    """Exercise 3: fn(x, y, c=None) -> (b,); x and y (b, ...)."""
    name = "whole_huber"
    g = torch.Generator().manual_seed(0)
    for shape in ((5, 2), (4, 3, 8, 8)):
        x, y = (torch.randn(*shape, generator=g, dtype=F64) for _ in range(2))
        given = f"x and y of shape {shape}"
        out = call(name, fn, x, y, 0.3)
        is_tensor_like(name, "the distance", out, x.flatten(1)[:, 0], "one number for each x of the batch")
        is_close(name, "d(x, x) is 0", f"c = 0.3, {given}", call(name, fn, x, x, 0.3), 0 * out, SOFT, 1e-12)
        size = (x - y).flatten(1).norm(dim=1)
        turned = torch.zeros_like(x.flatten(1))
        turned[:, 0] = size  # an error of the same size, all of it in one number
        there = call(name, fn, turned.reshape(shape), torch.zeros_like(x), 0.3)
        is_close(
            name, "errors of one size cost the same, in whatever direction", f"c = 0.3, {given}", out, there, NORM, 1e-9
        )
        for c in (0.3, 2.0):
            ends = (
                ("a small error costs |x - y|^2 / 2c", 1e-4, (1e-4) ** 2 / (2 * c), 1e-6),
                ("a large error costs |x - y| - c", 1e5, 1e5 - c, 1e-6),
            )
            for prop, far, due, tol in ends:
                one = torch.zeros_like(x)
                one.flatten(1)[:, -1] = far
                cost = call(name, fn, one, torch.zeros_like(x), c)
                is_close(name, prop, f"c = {c}, an error of {far:g}, {given}", cost / due, 0 * cost + 1, SOFT, tol)
        c = 0.00054 * math.sqrt(x[0].numel())
        due = (size**2 + c**2).sqrt() - c
        near = y + 1e-3 * (x - y) / size.reshape(-1, *[1] * (x.ndim - 1))
        due_near = (torch.full_like(size, 1e-6) + c**2).sqrt() - c
        is_close(
            name, "without c it is 0.00054 sqrt(numbers in one x)", given, call(name, fn, x, y), due, DEFAULT, 1e-5
        )
        scaled = call(name, fn, near, y) / due_near
        is_close(name, "without c it is 0.00054 sqrt(numbers in one x)", given, scaled, 0 * due + 1, DEFAULT, 1e-6)
    right(name, 6)


# ---- exercise 4 ----------------------------------------------------------------------------------


class _Spied(nn.Module):
    """A small network that remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(3, 3, generator=g, dtype=F64))
        self.v = nn.Parameter(torch.randn(3, generator=g, dtype=F64))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.seen.append((x.detach(), torch.as_tensor(c).detach()))
        return torch.tanh(x @ self.w + c.reshape(-1, 1) * self.v)


def _jump(net: nn.Module, x: Tensor, level: Tensor, sd: float, least: float) -> Tensor:
    level = level[:, None]
    gap = level - least
    out = net(x / (level**2 + sd**2).sqrt(), level[:, 0].log() / 4)
    return sd**2 / (gap**2 + sd**2) * x + sd * gap / (level**2 + sd**2).sqrt() * out


def ct_loss(fn: Callable) -> None:
    """Exercise 4: fn(net, x0, eps, high, low, sd, least) -> (b,); high and low (b,)."""
    name, b = "ct_loss", 5
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(b, 3, generator=g, dtype=F64), torch.randn(b, 3, generator=g, dtype=F64)
    for sd, least in ((0.5, 0.1), (1.3, 0.02)):
        high = torch.tensor([0.4, 0.9, 2.0, 5.0, 60.0], dtype=F64)
        low = torch.tensor([0.3, 0.6, 1.5, 4.0, 40.0], dtype=F64)
        given, net, copy = f"x0 of shape {tuple(x0.shape)}, sd = {sd}, least = {least}", _Spied(), _Spied()
        out = call(name, fn, net, x0, eps, high, low, sd, least)
        is_tensor_like(name, "the loss", out, high, "one number for each pair")
        asked = {}
        for which, level in (("higher", high), ("lower", low)):
            told = [s for s in net.seen if s[1].shape == level.shape and torch.allclose(s[1].to(F64), level.log() / 4)]
            if not told:
                prop = f"the network is asked at the {which} levels, and told log(level) / 4 of each, (b,)"
                fail(name, prop, given, f"{len(net.seen)} calls, none with these numbers", TOLD)
            asked[which] = told[0][0] * (level**2 + sd**2).sqrt()[:, None]
        line = (asked["higher"] - x0) / high[:, None]
        is_close(name, "at the higher level it is shown c_in (x0 + high eps)", given, line, eps, SEEN)
        line = (asked["lower"] - x0) / low[:, None]
        is_close(name, "at the lower level it is shown c_in (x0 + low eps)", given, line, eps, SAME)
        answer = _jump(copy, x0 + high[:, None] * eps, high, sd, least)
        target = _jump(copy, x0 + low[:, None] * eps, low, sd, least)
        due = (answer - target).square().mean(1)
        both = out.allclose(due) or out.allclose((answer - target).square().sum(1))
        is_close(name, "the loss is the squared distance of two jumps", given, out, due, MEAN if both else FORM)
        if not out.requires_grad:
            fail(name, "the answer at the higher level has a gradient", given, "a loss without any", NO_GRADIENT)
        parts = {}
        for what, value in (
            ("right", answer - target.detach()),
            ("both", answer - target),
            ("swapped", target - answer.detach()),
        ):
            parts[what] = torch.autograd.grad(value.square().mean(1).sum(), copy.w, retain_graph=True)[0]
        mine = torch.autograd.grad(out.sum(), net.w)[0]
        hint = SWAPPED if torch.allclose(mine, parts["swapped"]) else STOP
        is_close(name, "the target has no gradient", given, mine, parts["right"], hint)

        first = torch.full((b,), least, dtype=F64)
        out = call(name, fn, net, x0, eps, high, first, sd, least)
        due = (answer - (x0 + least * eps)).square().mean(1)
        is_close(name, "at `least` the target is x0 + least eps", given, out, due, BOUNDARY)
    right(name, 6)


# ---- exercise 5 ----------------------------------------------------------------------------------


def several_calls(fn: Callable) -> None:
    """Exercise 5: fn(f, x, levels, least, generator) -> like x; f(x, level) -> like x, levels decreasing floats."""
    name, n, s = "several_calls", 40_000, 0.7
    for least, levels in ((0.5, [10.0]), (0.5, [10.0, 2.0, 0.8]), (0.1, [20.0, 1.0])):
        given = f"levels {levels}, least = {least}"
        asked: list[tuple[Tensor, float, Tensor]] = []

        def f(x: Tensor, level: float, least: float = least, asked: list = asked) -> Tensor:
            level = float(level)
            out = x * ((s**2 + least**2) / (s**2 + level**2)) ** 0.5
            asked.append((x.clone(), level, out.clone()))
            return out

        g = torch.Generator().manual_seed(0)
        x = (s**2 + levels[0] ** 2) ** 0.5 * torch.randn(n, 1, generator=g, dtype=F64)
        out = call(name, fn, f, x, levels, least, torch.Generator().manual_seed(1))
        is_tensor_like(name, "the answer", out, x, "the samples, and nothing else")
        came = [level for _, level, _ in asked]
        if came != levels:
            fail(name, "f is asked once at each level, in order", given, f"asked at {came}", CALLS)
        if not torch.equal(asked[0][0], x):
            fail(name, "the first call is at x as it came", given, "another x", CALLS)
        if not torch.equal(out, asked[-1][2]):
            fail(name, "the last answer comes back as it is", given, "something else", LAST)
        earlier = None
        for (_, _, answer), (there, level, _) in zip(asked[:-1], asked[1:], strict=True):
            z = (there - answer)[:, 0]
            has_moments(
                name, f"what is added for the level {level}", given, z, 0.0, (level**2 - least**2) ** 0.5, ADDED
            )
            for what, other in (("the answer", answer[:, 0]), ("what was added before", earlier)):
                if other is not None and not abs(torch.corrcoef(torch.stack([z, other]))[0, 1]) < 5 / n**0.5:
                    fail(name, f"what is added does not depend on {what}", given, "they are correlated", FRESH)
            earlier = z
        again = call(name, fn, f, x, levels, least, torch.Generator().manual_seed(1))
        if not torch.equal(out, again):
            fail(name, "the same generator gives the same samples", given, "two different answers", FRESH)
    right(name, 6)
