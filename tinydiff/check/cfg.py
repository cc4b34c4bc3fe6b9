"""Checks of exercises 13: dropping labels, two answers in one call, an interval, rescaling, what n steps sample.

Each compares with another computation: counts, the two answers asked for apart, schedules, the library's own steps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinydiff.check.core import STANDARD_ERRORS, call, fail, is_close, is_tensor_like, right
from tinydiff.exact import GaussianMixture
from tinydiff.guidance import autoguide
from tinydiff.samplers import ddim, final
from tinydiff.schedules import EDM, Cosine, Flow, Schedule, grid

F64 = torch.float64
SHARE = "`share` is the probability of being dropped: compare one random number in [0, 1) for each label with it"
LEFT = "a label is either dropped, and then it is `null`, or left as it was: torch.where(dropped, null, y)"
EACH = "each label is dropped or kept for itself: one random number a label, fresh in each call, not one for the batch"
NUMBER = (
    "the number of dropped labels must vary from batch to batch: each label is dropped or kept by its own coin, thrown "
    "afresh in each call; no fixed count, and no seed"
)
PLACES = "every place of the batch is dropped equally often: it is not the first ones that are dropped"
ONE_CALL = "ask both in one call: torch.cat([x, x]), and t and the labels twice as long, too"
LONG = "whatever is as long as the batch must be repeated for both halves: not x and the labels alone, t as well"
HALVES = "one half of the batch is told y, the other null, and every row keeps its own x and t"
COUNTING = (
    "in this course w = 0 is the answer without a class and w = 1 that with it; Ho and Salimans' scale is ours less 1"
)
BRANCHES = "which half of the output is the answer with the class? The order is that in which you asked"
FORMULA = "from the answer without a class, w times the way to the answer with it"
WIDEST = "guided are the steps whose noise level lies in [low, high]; an interval that holds every level guides all"
NO_GUIDANCE = "without guidance the network is asked with the class: that is a scale of 1, not 0"
LEVEL = "the noise level is sigma / alpha: not t, not sigma alone, no square, no logarithm"
START = "a step from ts[i] to ts[i + 1] asks the network at ts[i], so it is that level which counts"
ENDS = "both ends belong to the interval: a level that is equal to low or to high is guided (<=, not <)"
INCLUSIVE = "low is the smaller level, so nearer to the data, and high the larger one"
PHI_0 = "phi = 0 is plain guidance, u + w (c - u); phi is the share of the way to the rescaled one"
PHI_1 = "phi = 1: the std of each sample is that of c, the answer with the class"
OWN = "a std for each sample, over all its numbers: every axis but the first, kept (keepdim=True) so that it broadcasts"
FACTOR = "one factor for all numbers of a sample, also for their mean: nothing is subtracted"
MIX = "phi of the rescaled, 1 - phi of the plain guidance"
PAIR = "return the mean and the variance, two numbers"
ZERO = "at w = 0 both means are 0, and they stay there"
AFFINE = (
    "each step maps x to slope * x + shift, the same for all x: the mean is mapped as a point is, and the variance is "
    "multiplied by the slope squared"
)
BELIEF = (
    "with v = alpha^2 a + sigma^2, E[x0 | x] = m + alpha a (x - alpha m) / v and E[eps | x] = sigma (x - alpha m) / v; "
    "guide both, u + w (c - u), and step to alpha_s x0 + sigma_s eps"
)
OTHER_LAWS = (
    (
        lambda a, b, w: a**w * b ** (1 - w),
        "the variance that endless steps sample, a^w b^(1 - w)",
        "here it is what the steps along ts sample, which depends on ts: follow them one by one",
    ),
    (
        lambda a, b, w: 1 / (w / a + (1 - w) / b),
        "the variance of the tilted density, N(m, a)^w N(0, b)^(1 - w)",
        "guidance samples something else than that product, with few steps and with many: follow the steps one by one",
    ),
)
ALL_STEPS = "the moments of one step are where the next one starts; all pairs of neighbours in ts, to the last"


def label_drop(fn: Callable) -> None:
    """Exercise 1: fn(y, null, share) -> labels like y, each replaced by null with probability share."""
    name = "label_drop"
    y = torch.arange(250) % 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(13)
        out = call(name, fn, y, 10, 0.3)
        is_tensor_like(name, "what comes back", out, y, "one label for each label, whole numbers (int64)")
        for share, what in ((0.0, "nothing is dropped"), (1.0, "everything is dropped")):
            out, want = call(name, fn, y, 10, share), torch.full_like(y, 10) if share else y
            if not torch.equal(out, want):
                came = f"{int((out == 10).sum())} of 250 labels are null, {int((out == y).sum())} as they were"
                fail(name, f"with share = {share:g} {what}", "y = 0 1 2 3 4 0 ..., null = 10", came, f"{SHARE}; {LEFT}")
        for share in (0.1, 0.4):
            outs = torch.stack([call(name, fn, y, 10, share) for _ in range(400)])
            dropped, given = outs == 10, f"400 batches of 250 labels, null = 10, share = {share}"
            if not torch.equal(outs[~dropped], y.expand_as(outs)[~dropped]):
                strange = outs[~dropped & (outs != y)][0].item()
                fail(name, "what is not dropped is left as it was", given, f"a label {strange} where none was", LEFT)
            each = dropped.sum(1).double()  # of a batch
            # one of n tries: mean n p, variance n p (1 - p); the variance of 400 has a relative error of (2 / 400)^1/2
            came = dropped.double().mean().item()
            spread, due = each.var().item(), 250 * came * (1 - came)
            if not abs(spread - due) < STANDARD_ERRORS * (2 / 400) ** 0.5 * due:
                want = f"variance {250 * share * (1 - share):g}"
                prop = f"the number dropped in a batch varies as that of 250 single throws does: {want}"
                many = f"variance {spread:.1f}, from {each.min():.0f} to {each.max():.0f}"
                fail(name, prop, given, many, NUMBER if spread < due else EACH)
            error = (share * (1 - share) / dropped.numel()) ** 0.5
            if not abs(came - share) < STANDARD_ERRORS * error:
                fail(name, f"a share of {share} is dropped (to {5 * error:.4f})", given, f"{came:.4f}", SHARE)
            worst = (dropped.double().mean(0) - share).abs().max().item()
            if not worst < STANDARD_ERRORS * (share * (1 - share) / 400) ** 0.5:
                came = f"one place is off by {worst:.2f}"
                fail(name, f"each place is dropped in a share of {share} of the batches", given, came, PLACES)
    right(name, 6)


class _Asked:
    """A stand-in for a network, that remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls.append((x, t, y))
        if not len(x) == t.numel() == y.numel():
            return torch.zeros_like(x)  # no matter what: the check looks at the calls first
        tall = [-1] + [1] * (x.ndim - 1)
        return (x * (1 + y.reshape(tall)) + 3 * t.reshape(tall)).sin() + y.reshape(tall)

    def __repr__(self) -> str:
        return "net"


def guided_eps(fn: Callable) -> None:
    """Exercise 2: fn(net, x, t, y, null, w) -> guided eps like x, from one call of net(x, t, y)."""
    name = "guided_eps"
    for shape in ((3, 2), (4, 1, 3, 3)):
        b, g = shape[0], torch.Generator().manual_seed(shape[0])
        x, t, y, null = torch.randn(shape, generator=g), torch.rand(b, generator=g), torch.arange(b), 10
        truth = _Asked()
        c, u = truth(x, t, y), truth(x, t, torch.full_like(y, null))
        outs = {}
        for w in (0.0, 1.0, 2.5):
            net, given = _Asked(), f"x of shape {shape}, y = {y.tolist()}, null = {null}, w = {w}"
            out = outs[w] = call(name, fn, net, x, t, y, null, w)
            for x_, t_, y_ in net.calls:
                if not len(x_) == t_.numel() == y_.numel():
                    came = f"x has {len(x_)} rows, t {t_.numel()}, the labels {y_.numel()}"
                    fail(name, "x, t and the labels of a call are equally long", given, came, LONG)
            is_tensor_like(name, "what comes back", out, x, "the answer of one half: chunk(2)")
            if len(net.calls) != 1:
                fail(name, "the network is called once", given, f"{len(net.calls)} calls", ONE_CALL)
            x_, t_, y_ = net.calls[0]
            if len(x_) != 2 * b or t_.shape != (2 * b,) or y_.shape != (2 * b,):
                came = f"shapes {tuple(x_.shape)}, {tuple(t_.shape)} and {tuple(y_.shape)}"
                fail(name, f"x, t and labels of the call have {2 * b} rows", given, came, ONE_CALL)
            rows = sorted((*x_[i].flatten().tolist(), t_[i].item(), y_[i].item()) for i in range(2 * b))
            want = [(*x[i].flatten().tolist(), t[i].item(), k) for i in range(b) for k in (y[i].item(), null)]
            if rows != sorted(want):
                prop = "each x is asked with its own t, once with its class and once with null"
                fail(name, prop, given, f"labels {y_.tolist()}", HALVES)
        given = f"x of shape {shape}, y = {y.tolist()}, null = {null}"
        same = lambda a, b: (a - b).abs().max() < 1e-4  # noqa: E731
        if same(outs[0.0], c):
            hint = BRANCHES if same(outs[1.0], u) else COUNTING
            fail(name, "w = 0 is the answer without a class", f"{given}, w = 0", "the answer with the class", hint)
        for w, out in outs.items():
            is_close(name, "the guided answer is right", f"{given}, w = {w}", out, u + w * (c - u), FORMULA, 1e-4)
    right(name, 6)


def interval_scales(fn: Callable) -> None:
    """Exercise 3: fn(schedule, ts, w, low, high) -> (n,) scales of the n steps along ts, (n + 1,)."""
    name = "interval_scales"
    cases: tuple[tuple[str, Schedule, float, float], ...] = (
        ("Cosine()", Cosine(), 0.3, 3.0),
        ("Cosine()", Cosine(), 0.9, 12.0),
        ("Flow()", Flow(), 0.3, 3.0),
        ("EDM()", EDM(), 0.3, 5.0),
    )
    for title, schedule, low, high in cases:
        ts, w = grid(schedule, 20), 2.5
        scales = lambda low, high: call(name, fn, schedule, ts, w, low, high)  # noqa: E731, B023
        all_, out = scales(0.0, 1e20), scales(low, high)
        for v in (all_, out):
            is_tensor_like(name, "what comes back", v, torch.empty(20, dtype=F64), "20 steps lie between 21 times")
        given = f"{title}, 20 steps, w = {w}"
        ones = torch.ones(20, dtype=F64)
        wide, narrow = f"{given}, low = 0, high = 1e20", f"{given}, low = 1e20, high = 1e21"
        is_close(name, "all steps are guided by w", wide, all_, w * ones, WIDEST)
        is_close(name, "no step is guided: the scale is 1", narrow, scales(1e20, 1e21), ones, NO_GUIDANCE)
        levels = torch.exp(-schedule.logsnr(ts) / 2)  # sigma / alpha
        inside = (low <= levels) & (levels <= high)
        due, late = (v.nonzero()[:, 0].tolist() for v in (inside[:-1], inside[1:]))
        given = f"{given}, low = {low}, high = {high}"
        guided = (out == w).nonzero()[:, 0].tolist()
        if guided != due or not ((out == w) | (out == 1)).all():
            prop = f"{len(due)} steps are guided, numbers {due[0]} to {due[-1]}"
            hint = START if guided == late else f"{LEVEL}; {INCLUSIVE}"
            fail(name, prop, given, f"{len(guided)} guided: {guided}, scales {sorted(set(out.tolist()))}", hint)
    ts = torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=F64)  # of Flow(): levels 4, 1 (exactly, however computed), 1/4
    for low, high, guided in ((1.0, 10.0, (1, 1, 0)), (0.1, 1.0, (0, 1, 1))):
        want = 1 + 1.5 * torch.tensor(guided, dtype=F64)
        given = f"Flow(), ts = 0.8, 0.5, 0.2, 0 (levels 4, 1, 0.25), w = 2.5, low = {low:g}, high = {high:g}"
        is_close(
            name, "a level equal to an end is guided", given, call(name, fn, Flow(), ts, 2.5, low, high), want, ENDS
        )
    right(name, 5)


def rescale_guided(fn: Callable) -> None:
    """Exercise 4: fn(u, c, w, phi) -> the guided answer, each sample's std a share phi of the way to that of c."""
    name = "rescale_guided"
    for shape in ((3, 5), (4, 2, 3, 3)):
        b, g = shape[0], torch.Generator().manual_seed(shape[0])
        sizes = (1 + torch.arange(b, dtype=F64)).view(-1, *[1] * (len(shape) - 1))  # each sample has its own
        u, c = (sizes * torch.randn(shape, generator=g, dtype=F64) + k for k in (0.5, 1.0))
        w, dims = 3.0, tuple(range(1, len(shape)))
        plain, std = u + w * (c - u), c.std(dims)
        given = f"u, c of shape {shape}, w = {w}"
        outs = {phi: call(name, fn, u, c, w, phi) for phi in (0.0, 0.7, 1.0)}
        for out in outs.values():
            is_tensor_like(name, "what comes back", out, u, f"a number for each number. {OWN}")
        is_close(name, "phi = 0 is plain guidance", f"{given}, phi = 0", outs[0.0], plain, PHI_0)
        prop, given_1 = "phi = 1: each sample has the std of its c", f"{given}, phi = 1"
        is_close(name, prop, given_1, outs[1.0].std(dims), std, f"{PHI_1}. {OWN}")
        factor = (std / plain.std(dims)).view_as(sizes)
        is_close(
            name,
            "phi = 1: a multiple of plain guidance",
            given_1,
            outs[1.0] / plain / factor,
            torch.ones_like(plain),
            FACTOR,
        )
        mixed = (0.7 * factor + 0.3) * plain
        is_close(name, "phi = 0.7 lies seven tenths of the way", f"{given}, phi = 0.7", outs[0.7], mixed, MIX)
    right(name, 4)


def guided_moments(fn: Callable) -> None:
    """Exercise 5: fn(schedule, ts, m, a, b, w) -> mean and variance of what DDIM draws along ts under guidance."""
    name = "guided_moments"

    def truth(schedule: Schedule, ts: Tensor, m: float, a: float, b: float, w: float) -> Tensor:
        of = lambda mean, var: GaussianMixture(torch.tensor([[mean]], dtype=F64), var**0.5, None, schedule)  # noqa: E731
        two = torch.tensor([[0.0], [1.0]], dtype=F64)  # the map of all steps is affine: two points tell all of it
        shift, end = final(ddim(autoguide(of(m, a), of(0.0, b), w), two, ts))[:, 0]
        return torch.stack([shift, (end - shift) ** 2])

    def moments(*args: Any) -> Tensor:
        out = call(name, fn, *args)
        if not isinstance(out, tuple | list) or len(out) != 2:
            fail(name, "two numbers come back", "any", type(out).__name__, PAIR)
        if any(isinstance(v, Tensor) and v.numel() != 1 for v in out):
            fail(name, "two numbers come back", "any", f"shapes {[tuple(v.shape) for v in out]}", PAIR)
        return torch.tensor([float(v) for v in out], dtype=F64)

    for title, schedule in (("Cosine()", Cosine()), ("Flow()", Flow())):
        ts = grid(schedule, 4)
        inner = torch.tensor([0.7, 0.4], dtype=F64)
        var = moments(schedule, inner, 1.0, 0.25, 1.0, 3.0)[1].item()
        for law, came, hint in OTHER_LAWS:
            if abs(var - law(0.25, 1.0, 3.0)) < 1e-6:
                given = f"{title}, ts = 0.7, 0.4, m = 1, a = 0.25, b = 1, w = 3"
                fail(name, "what these steps sample, not a law without steps", given, came, hint)
        stages = (
            ("w = 0, means at 0: the mean stays 0", inner, (1.0, 0.25, 1.0, 0.0), 0, ZERO),
            ("one step, w = 1: the mean", inner, (1.0, 0.25, 1.0, 1.0), 0, BELIEF),
            ("one step, w = 1: the variance", inner, (1.0, 0.25, 1.0, 1.0), 1, AFFINE),
            ("one step, w = 3: the mean", inner, (1.0, 0.25, 1.0, 3.0), 0, f"{BELIEF}. {COUNTING}"),
            ("one step, w = 3: the variance", inner, (1.0, 0.25, 1.0, 3.0), 1, f"{AFFINE}. {COUNTING}"),
            ("four steps: the mean", ts, (1.0, 0.25, 1.0, 3.0), 0, f"{ALL_STEPS}. {AFFINE}"),
            ("four steps: the variance", ts, (1.0, 0.25, 1.0, 3.0), 1, f"{ALL_STEPS}. {AFFINE}"),
            ("equal variances, four steps: the mean", ts, (-0.7, 0.5, 0.5, 2.0), 0, AFFINE),
            ("b smaller than a: the variance", ts, (0.7, 0.8, 0.3, 1.5), 1, AFFINE),
        )
        for prop, times, (m, a, b, w), i, hint in stages:
            out, want = moments(schedule, times, m, a, b, w), truth(schedule, times, m, a, b, w)
            where = ", ".join(f"{t:.3g}" for t in times.tolist())
            given = f"{title}, ts = {where}, m = {m}, a = {a}, b = {b}, w = {w}"
            is_close(name, prop, given, out[i : i + 1], want[i : i + 1], hint, 1e-7)
    right(name, 10)
