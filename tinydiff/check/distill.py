"""Checks of exercises 23: a student's target, the times of all rounds, weights of v, guidance in one pass, a round."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.check.core import STANDARD_ERRORS, call, fail, has_moments, is_close, is_tensor_like, right
from tinydiff.denoisers import denoiser
from tinydiff.distill import progressive_target
from tinydiff.exact import GaussianMixture
from tinydiff.samplers import ddim, ddim_step, final
from tinydiff.schedules import Cosine
from tinydiff.targets import Prediction

F64 = torch.float64
S = Cosine(math.inf)  # so that alpha(1) is 0

TWICE = "two steps of the teacher, each with a belief of its own: one at x and t, one where the first step ended"
MIDDLE = "the first step ends half way in time, and there, at that time, the teacher is asked again"
LANDS = (
    "write down where one DDIM step from x lands with a belief x0, set it equal to where the teacher landed, and solve "
    "for x0; the coefficients of the middle have no place in it"
)
UPSIDE = "the ratio is upside down: a step to s keeps sigma_s / sigma_t of the noise that is in x"
NOISE_TOO = "that is the noise that would lead there; what is asked for is x0"
ONLY_END = "that is where the teacher lands, which is the answer only at s = 0"
STOPPED = "the target is a number for the student, so nothing is to be learned through the teacher: torch.no_grad()"
ROUNDS = "the first student has half as many steps as there are at first, and the last has one"
START = "sampling starts at pure noise, t = 1, and the last step ends at 0: n steps of 1 / n"
CHAIN = "a step begins where the one before ended"
ENDS = (
    "for a perfect student both errors are 0, but a weight of 0 / 0 or inf / inf is nan: find a form without division"
)
LARGER = (
    "on this path v = alpha eps - sigma x0, so errors of x0 and eps are sigma and alpha times that of v, up to sign"
)
GUIDE = "the guided belief is u + w (c - u): w = 0 is without the condition and w = 1 with it"
GENERAL = ("w = 2.5 for u + 2.5 (c - u)", "w = 4 for u + 4 (c - u)")
AXIS = "w and snr have one number for each element, so they need a shape that multiplies (b, d, ...)"
MEAN = "one number for each element: the mean over all others of weight times squared error, with weight max(SNR, 1)"
SAME = "the teacher and the student are asked about the same x and t"
COPY = "the student starts as a copy: what shares its weights with the teacher changes the target while it learns"
TIMES = "a student of n steps is only ever asked at i / n, i = 1 ... n: the last is pure noise, and 0 is not asked"
EQUALLY = "each point of a batch draws its own i, and all n are equally likely: torch.randint(1, n + 1, (b,)) / n"
HALF = "the teacher makes two steps of half the student's length: from t, and from t - 1 / (2 n)"
LOSS = "max(SNR, 1) times the squared error of x0, its mean over all; target: where two of the teacher's steps land"
LEARNS = "minimise(student, loss) trains; the target must come from the teacher as it was given"


def student_target(fn: Callable) -> None:
    """Exercise 1: fn(belief, x, t, s) -> x0 (b, d) on the cosine path; belief(x, t) -> x0; t and s are (b,)."""
    name = "student_target"
    g = torch.Generator().manual_seed(0)
    means = torch.tensor([[-0.9, 0.4, 0.1], [0.8, -0.3, 0.5], [0.1, 1.0, -0.7]], dtype=F64)
    mixture = GaussianMixture(means, torch.tensor([0.2, 0.3, 0.15], dtype=F64), [0.5, 0.3, 0.2], S)
    one = torch.ones((), dtype=F64, requires_grad=True)  # a weight of the teacher
    asked: list[tuple[Tensor, Tensor]] = []

    def belief(x: Tensor, t: Tensor) -> Tensor:
        if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
            raise ValueError(f"t must be one time for each x, of shape {tuple(x.shape[:1])}")
        asked.append((x.detach(), t))
        return one * mixture(x, t).x0

    x, inner, ends = torch.randn(5, 3, generator=g, dtype=F64), [0.75, 0.5, 0.9, 0.6, 0.35], [0.5, 0.25, 0.5, 0.1, 0.3]
    for given, t, s in (
        ("t = 0.75, 0.5, ..., each its own", inner, ends),
        ("from pure noise, t = 1", [1.0] * 5, inner),
        ("to data, s = 0", [1.0, *inner[1:]], [0.0] * 5),
    ):
        t, s = torch.tensor(t, dtype=F64), torch.tensor(s, dtype=F64)
        m, asked[:] = (t + s) / 2, []
        out = call(name, fn, belief, x, t, s)
        is_tensor_like(name, "the target", out, x)
        if len(asked) != 2:
            fail(name, "the teacher is asked twice", given, f"{len(asked)} times", TWICE)
        ct, cm, cs = (S(v, like=x) for v in (t, m, s))
        half = ddim_step(mixture(x, t), ct, cm)
        is_close(name, "the teacher is asked first about x at t", given, asked[0][0], x, TWICE)
        is_close(name, "the teacher is asked first about x at t", given, asked[0][1], t, TWICE)
        is_close(name, "the teacher is asked second at the time half way", given, asked[1][1], m, MIDDLE)
        is_close(name, "the teacher is asked second where its first step ended", given, asked[1][0], half, MIDDLE)
        end = ddim_step(mixture(half, m), cm, cs)
        if out.requires_grad:
            fail(name, "the target carries no gradient", given, "a tensor that requires a gradient", STOPPED)
        lands = cs.alpha * out + cs.sigma / ct.sigma * (x - ct.alpha * out)
        ratio, upside = cs.sigma / ct.sigma, ct.sigma / cs.sigma
        x0 = (end - ratio * x) / (cs.alpha - ratio * ct.alpha)
        wrong = {UPSIDE: (end - upside * x) / (cs.alpha - upside * ct.alpha), ONLY_END: end}
        wrong |= {NOISE_TOO: (x - ct.alpha * x0) / ct.sigma}
        hint = next((why for why, came in wrong.items() if torch.allclose(out, came)), LANDS)
        prop = "one DDIM step with this x0 lands where two of the teacher's do"
        is_close(name, prop, given, lands, end, hint, 1e-8)
    right(name, 5)


def halvings(fn: Callable) -> None:
    """Exercise 2: fn(first) -> a (n, 3) float64 tensor a round, with rows (t, middle, s), n = first / 2, ..., 1."""
    name = "halvings"
    for first in (2, 16, 64):
        given = f"first = {first}"
        out = call(name, fn, first)
        if not isinstance(out, list) or not all(isinstance(r, Tensor) and r.ndim == 2 for r in out):
            fail(name, "the answer is a list of tensors of two axes", given, type(out).__name__, "one for each round")
        ns, due = [len(r) for r in out], [first // 2**k for k in range(1, first.bit_length())]
        if ns != due:
            fail(name, f"rounds have {', '.join(map(str, due))} steps of the student", given, ns, ROUNDS)
        before = None
        for n, rows in zip(ns, out, strict=True):
            where = f"{given}, the round of {n} step{'s' * (n > 1)}"
            is_tensor_like(name, "a round", rows, torch.zeros(n, 3, dtype=F64), "a row (t, middle, s) for each step")
            t, m, s = rows.T
            if not (t[0] == 1 and s[-1] == 0):
                prop = "the first step begins at 1 and the last ends at 0, exactly"
                fail(name, prop, where, f"from {t[0].item():g} to {s[-1].item():g}", START)
            is_close(name, "a step ends where the next begins", where, s, torch.cat([t[1:], s[-1:]]), CHAIN)
            is_close(name, "each step has the length 1 / n", where, t - s, torch.full_like(t, 1 / n), START)
            is_close(name, "the teacher stops half way", where, m, (t + s) / 2, "half way in time, between t and s")
            asked = rows[:, :2].flatten()
            if before is not None:
                prop = "a teacher is asked only at times at which it was trained: those of the round before, in order"
                is_close(name, prop, where, asked, before, CHAIN)
            before = t
    right(name, 5)


def truncated_v_weight(fn: Callable) -> None:
    """Exercise 3: fn(alpha, sigma) -> (b,), the weight on |v - v'|^2 that is max(SNR, 1) on |x0 - x0'|^2."""
    name = "truncated_v_weight"
    alpha, sigma = S.alpha_sigma(t := torch.linspace(0.05, 0.95, 13, dtype=F64))
    given = "13 points of the cosine path, from t = 0.05 to 0.95"
    out = call(name, fn, alpha, sigma)
    is_tensor_like(name, "the weight", out, alpha)
    off_v = 0.1 + t  # the error of x0 is -sigma times it, that of eps is alpha times it
    x0, eps = (sigma * off_v) ** 2, (alpha * off_v) ** 2
    wrong = {"that is the smaller of both errors": torch.minimum(alpha, sigma) ** 2}
    wrong |= {f"that is the weight in x0 space. {LARGER}": (alpha / sigma).square().clamp(min=1)}
    hint = next((why for why, came in wrong.items() if torch.allclose(out, came)), LARGER)
    prop = "weight times the error of v is the larger of the errors of x0 and of eps (squares all)"
    is_close(name, prop, given, out * off_v**2, torch.maximum(x0, eps), hint)
    truncated = (alpha / sigma).square().clamp(min=1) * x0
    is_close(name, "it is also max(SNR, 1) times the error of x0", given, out * off_v**2, truncated, LARGER)
    ends = call(name, fn, torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64))
    given = "data, alpha = 1 and sigma = 0, and noise, alpha = 0 and sigma = 1"
    is_close(name, "the weight is 1 at both ends", given, ends, torch.ones(2, dtype=F64), ENDS)
    right(name, 3)


def guided_match(fn: Callable) -> None:
    """Exercise 4: fn(teacher, student, x, t, y, w, snr, null) -> (b,); teacher(x, t, y) and student(x, t, y, w): x0."""
    name, null = "guided_match", 3
    g = torch.Generator().manual_seed(0)
    for shape in ((4,), (1, 3, 2)):
        given = f"x of shape (4, {', '.join(map(str, shape))})"
        table = torch.randn(null + 1, *shape, generator=g, dtype=F64).requires_grad_()  # the teacher's weights
        mine = torch.randn(shape, generator=g, dtype=F64).requires_grad_()  # the student's
        x, t = torch.randn(4, *shape, generator=g, dtype=F64), torch.tensor([0.9, 0.6, 0.4, 0.2], dtype=F64)
        y, w = torch.tensor([0, 1, 2, 1]), torch.tensor([0.0, 1.0, 2.5, 4.0], dtype=F64)
        snr = 1 / torch.tan(math.pi / 2 * t) ** 2
        log: list[tuple[str, tuple]] = []

        def teacher(x: Tensor, t: Tensor, y: Any, table: Tensor = table, log: list = log) -> Tensor:
            y = torch.as_tensor(y).expand(len(x))
            log.append(("teacher", (x, t, y)))
            return table[y] * _wide(t, x) + 0.3 * x

        def student(x: Tensor, t: Tensor, y: Tensor, w: Tensor, mine: Tensor = mine, log: list = log):
            log.append(("student", (x, t, y, w)))
            return mine * _wide(1 + w, x) + x

        out = call(name, fn, teacher, student, x, t, y, w, torch.ones_like(snr), null)
        is_tensor_like(name, "the loss", out, w, MEAN)
        told = [v for who, v in log if who == "student"]
        if len(told) != 1 or not (torch.equal(told[0][2], y) and torch.equal(told[0][3], w)):
            fail(name, "the student is asked once, and told y and w", given, f"{len(told)} calls", GUIDE)
        for who, (shown, when, *_) in log:
            k = len(shown) // 4
            is_close(name, f"the {who} is asked about x", given, shown, torch.cat([x] * k), SAME)
            is_close(name, f"the {who} is asked at t", given, when, torch.cat([t] * k), SAME)
        u, c = table[null] * _wide(t, x) + 0.3 * x, table[y] * _wide(t, x) + 0.3 * x
        off = (u + _wide(w, x) * (c - u) - mine * _wide(1 + w, x) - x).square().flatten(1).mean(1)
        if torch.allclose(out / off, (out / off).mean()):
            is_close(name, "the mean squared error, once (SNR = 1)", given, out, off, MEAN)
        for i, what in enumerate(("w = 0 asks for the belief without a class", "w = 1 for that with it", *GENERAL)):
            is_close(name, f"{what} (SNR = 1)", given, out[i], off[i], f"{GUIDE}; {AXIS}")
        out = call(name, fn, teacher, student, x, t, y, w, snr, null)
        is_close(name, "max(SNR, 1) times the mean squared error of x0", given, out, snr.clamp(min=1) * off, MEAN)
        if not out.requires_grad:
            fail(name, "the loss has a gradient for the student", given, "none", "no_grad is for the target alone")
        out.sum().backward()
        if table.grad is not None:
            fail(name, "the teacher gets no gradient", given, "one", STOPPED)
    right(name, 7)


def _wide(v: Tensor, x: Tensor) -> Tensor:
    return v.reshape(-1, *[1] * (x.ndim - 1))


class _Teacher(nn.Module):
    """v = gain x, a gain for each of 2 n times: the exact network of N(0, std^2). It remembers what it is asked."""

    def __init__(self, n: int, std: float = 0.6) -> None:
        super().__init__()
        alpha, sigma = S.alpha_sigma(torch.arange(2 * n + 1, dtype=F64) / (2 * n))
        self.n, self.asked = n, []
        self.gain = nn.Parameter(alpha * sigma * (1 - std**2) / (alpha**2 * std**2 + sigma**2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not isinstance(t, Tensor) or t.shape != x.shape[:1]:
            raise ValueError(f"t must be one time for each x, of shape {tuple(x.shape[:1])}")
        self.asked.append((x.detach(), t.detach()))
        return self.gain[(t * 2 * self.n).round().long().clamp(0, 2 * self.n)][:, None] * x


def _as_denoiser(net: _Teacher) -> Any:
    def believe(x: Tensor, t: Tensor) -> Prediction:
        c, v = S(t, like=x), net(x, t)
        return Prediction(c.alpha * x - c.sigma * v, c.sigma * x + c.alpha * v)

    return denoiser(believe, S)


def one_round(fn: Callable) -> None:
    """Exercise 5: fn(teacher, n, minimise) -> the student; teacher(x, t) says v; minimise(net, loss); loss(x0): ()."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _one_round(fn)


def _one_round(fn: Callable) -> None:
    name, b = "one_round", 3000
    for n in (1, 4):
        given, seen = f"n = {n}, a teacher of {2 * n} steps", []
        teacher, x0 = _Teacher(n), 0.6 * torch.randn(b, 1, dtype=F64)
        was = teacher.gain.detach().clone()

        def look(net: nn.Module, loss: Callable, teacher=teacher, x0=x0, seen=seen) -> None:
            net.asked.clear(), teacher.asked.clear()
            value = loss(x0)
            seen.append((net, value, list(net.asked), list(teacher.asked)))

        out = call(name, fn, teacher, n, look)
        if not seen:
            fail(name, "minimise is called", given, "no call", LEARNS)
        net, value, mine, its = seen[0]
        if any(p is q for p in net.parameters() for q in teacher.parameters()):
            fail(name, "the student is another network than the teacher", given, "the same weights", COPY)
        is_tensor_like(name, "the loss", value, x0.sum(), "one number: the mean over the batch")
        if len(mine) != 1 or not value.requires_grad:
            came = f"{len(mine)} calls, {'with' if value.requires_grad else 'without'} a gradient"
            fail(name, "the loss asks the student once, with a gradient", given, came, LOSS)
        (x, t), i = mine[0], mine[0][1] * n
        if not torch.allclose(i, i.round(), atol=1e-6) or not ((i > 0.5) & (i < n + 0.5)).all():
            came = f"{t.min().item():.3f} to {t.max().item():.3f}, {len(t.unique())} values"
            fail(name, f"the student is asked at i / {n}, i = 1 ... {n}", given, came, TIMES)
        for k in range(1, n + 1):
            share, error = (i.round() == k).double().mean().item(), math.sqrt((1 - 1 / n) / n / b)
            if abs(share - 1 / n) > STANDARD_ERRORS * error + 1e-9:
                fail(name, "each time is drawn equally often", given, f"t = {k} / {n} in {share:.3f}", EQUALLY)
        c = S(t, like=x)
        noise = ((x - c.alpha * x0) / c.sigma)[:, 0]
        has_moments(name, "the noise in x", given, noise, 0.0, 1.0, "x = alpha x0 + sigma eps, with fresh eps")
        if len(its) != 2:
            fail(name, "the teacher is asked twice", given, f"{len(its)} times", TWICE)
        for (_, when), due in zip(its, (t, t - 1 / (2 * n)), strict=True):
            is_close(name, "the teacher is asked at t and at t - 1 / (2 n)", given, when, due, HALF)
        s = (t - 1 / n).clamp(min=0)
        target = progressive_target(_as_denoiser(teacher), x, t, torch.where(s < 1e-6, 0.0, s))
        off = (target - _as_denoiser(net)(x, t).x0).square()
        due = ((c.alpha / c.sigma).square().clamp(min=1) * off).mean().detach()
        hint = "the weight max(SNR, 1) is missing" if n > 1 and torch.isclose(value, off.mean()) else LOSS
        ratio, one = value.detach() / due, torch.ones((), dtype=F64)
        is_close(name, "the loss is that of the truncated SNR (their ratio is 1)", given, ratio, one, hint, 1e-5)
        value.backward()
        if teacher.gain.grad is not None:
            fail(name, "the teacher gets no gradient", given, "one", STOPPED)
        if out is not net:
            fail(name, "the answer is the network that was trained", given, "another", LEARNS)
        student = call(name, fn, teacher, n, _train)
        is_close(name, "the teacher's weights are left as they were", given, teacher.gain.detach(), was, COPY)
        prop = f"after training, {n} of its steps land where {2 * n} of the teacher's do (to 0.01)"
        is_close(name, prop, given, _lands(student, n), _lands(teacher, 2 * n), LEARNS, 0.01)
    right(name, 10)


def _train(net: nn.Module, loss: Callable) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for k in range(300):
        optimizer.zero_grad()
        loss(0.6 * torch.randn(64, 1, dtype=F64)).backward()
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - k / 300)
        optimizer.step()


def _lands(net: nn.Module, n: int) -> Tensor:
    return final(ddim(_as_denoiser(net), torch.ones(1, 1, dtype=F64), torch.linspace(1, 0, n + 1, dtype=F64)))
