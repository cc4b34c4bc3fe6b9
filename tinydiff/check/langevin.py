"""Checks of exercises 03: Langevin steps, and what they settle at, each computed in another way."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinydiff.check.core import call, fail, is_close, is_tensor_like, right

F64 = torch.float64
FACTORS = "in coordinate i the step is eps m_i: half of it multiplies the score, its root multiplies z"
GIVEN = "z is given: use it, draw none"
POWER = "which power of eps_t is linear in t?"
ENDS = "there are n steps, so n - 1 falls from the first to the last; both ends come from a and b, none is cut off"
SIGNS = (
    "is each term the derivative of its log density, and the likelihood's a sum over all data? look at the signs, "
    "sigma^2 and the prior's variance"
)
PRIOR_ONCE = (
    "the sum over the batch stands for the sum over all data: what multiplies it, and does it multiply the prior?"
)
BALANCE = (
    "y is drawn around x + a s(x) with variance 2 a in each coordinate; the way back starts at y, with the score at y"
)
FLAT = (
    "the process moves with dx = 1/2 s dt + dW, whose variance grows by t in a time t: which factor is in front? "
    "And from where to where do the two integrals run; is the spacing in both?"
)


def _draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def preconditioned_step(fn: Callable) -> None:
    """Exercise 1: fn(score, x, eps, m, z) -> equation (1) of notebook 03 with the step eps m_i in coordinate i.

    x and z are (b, d), m is (d,), eps a number; score is a function (b, d) -> (b, d).
    """
    name, v = "preconditioned_step", torch.tensor([0.01, 1.0, 25.0], dtype=F64)
    one, zero = torch.ones(2, 3, dtype=F64), torch.zeros(2, 3, dtype=F64)
    for eps, m in ((0.01, torch.ones(3, dtype=F64)), (0.2, v), (0.5, torch.tensor([0.02, 0.3, 7.0], dtype=F64))):
        score = lambda x: -x / v  # noqa: E731
        given = f"a Gaussian of variances {v.tolist()}, eps = {eps}, m = {m.tolist()}"
        slope = call(name, fn, score, one, eps, m, zero)
        is_tensor_like(name, "the new x", slope, one)
        if not torch.equal(slope, call(name, fn, score, one, eps, m, zero)):
            fail(name, "the same x and z give the same new x", given, "two different ones", GIVEN)
        noise = call(name, fn, score, zero, eps, m, one)
        if not (slope.abs() < 1).all():
            fail(name, "x shrinks on average, so that it settles", given, slope[0].tolist(), FACTORS)
        settles = noise**2 / (1 - slope**2)
        want = (v / (1 - eps * m / (4 * v))).expand_as(one)
        prop = "every coordinate settles at v / (1 - step / (4 v)), with a step of its own (shown as a ratio)"
        _each(name, prop, given, settles / want, one)
        prop = "without noise, x moves by half a step along the score (shown: what is left of x = 1)"
        _each(name, prop, given, slope, (1 - eps * m / (2 * v)).expand_as(one))
    x, z = _draws(5, 3, seed=0), _draws(5, 3, seed=1)
    out = call(name, fn, torch.sin, x, 0.3, m, z)
    quiet = call(name, fn, torch.sin, x, 0.3, m, 0 * z)
    prop = "the noise of a row and a coordinate is its z times a factor that does not depend on x (shown: the factor)"
    _each(name, prop, "five points, score = sin", (out - quiet) / z, (0.3 * m).sqrt().expand_as(z))
    prop = "the score is taken at x (shown: its factor)"
    _each(name, prop, "five points, score = sin", (quiet - x) / x.sin(), (0.15 * m).expand_as(z))
    right(name, 4)


def _each(name: str, prop: str, given: str, out: Tensor, want: Tensor) -> None:
    """out and want (b, d) agree to 1e-6, relative to values above 1. Names the coordinate where they differ most."""
    gap = ((out - want).abs() / want.abs().clamp(min=1)).nan_to_num(torch.inf)
    row, column = divmod(gap.argmax().item(), gap.shape[1])
    if not gap[row, column] <= 1e-6:
        came = f"{out[row, column].item():.6g} where {want[row, column].item():.6g} was due, in coordinate {column + 1}"
        fail(name, prop, given, came, FACTORS)


def decaying_steps(fn: Callable) -> None:
    """Exercise 2: fn(first, last, gamma, n) -> (n,) step sizes a (b + t)^-gamma that fall from first to last."""
    name = "decaying_steps"
    for first, last, gamma, n in (
        (1e-2, 1e-4, 0.55, 1000),
        (0.5, 0.4, 1.0, 2),
        (0.1, 1e-3, 0.75, 37),
        (0.2, 0.01, 2.0, 12),
    ):
        given = f"first = {first}, last = {last}, gamma = {gamma}, n = {n}"
        steps = call(name, fn, first, last, gamma, n)
        is_tensor_like(name, "the steps", steps, torch.empty(n, dtype=F64), "one step size for each t = 0 ... n - 1")
        ends, want = steps[[0, -1]] / torch.tensor([first, last], dtype=F64), torch.ones(2, dtype=F64)
        is_close(
            name, "the first and the last step have the sizes asked for (shown as ratios)", given, ends, want, ENDS
        )
        linear = steps ** (-1 / gamma)
        want = torch.linspace(first ** (-1 / gamma), last ** (-1 / gamma), n, dtype=F64)
        prop = "eps_t^(-1/gamma) grows evenly, by the same amount in every step (shown as ratios)"
        is_close(name, prop, given, linear / want, torch.ones_like(want), POWER, 1e-6)
    right(name, 2)


def minibatch_score(fn: Callable) -> None:
    """Exercise 3: fn(theta, X, y, total, noise, prior) -> (c, d), the bracket of equation (3) for linear regression.

    theta is (c, d); the batches are X (c, n, d) and y (c, n), one for each chain; total is N; noise and prior are the
    variances of y given X theta and of each coordinate of theta.
    """
    name, c, d, N = "minibatch_score", 3, 2, 12
    X, y, theta = _draws(N, d, seed=0), _draws(N, seed=1), _draws(c, d, seed=2)
    for n, noise, prior in ((N, 1.0, 1.0), (N, 0.5, 4.0), (3, 1.0, 1.0), (1, 0.5, 4.0)):
        rows = torch.stack([(torch.arange(n) + 4 * chain) % N for chain in range(c)])
        given = f"N = {N}, batches of {n}, noise = {noise}, prior = {prior}, {c} chains"
        out = call(name, fn, theta, X[rows], y[rows], N, noise, prior)
        is_tensor_like(name, "the score", out, theta, "one gradient for each chain, from its own batch")
        with torch.enable_grad():
            leaf = theta.clone().requires_grad_()
            total = -(leaf**2).sum() / (2 * prior)
            for chain in range(c):
                for i in rows[chain].tolist():
                    total = total - N / n * (y[i] - X[i] @ leaf[chain]) ** 2 / (2 * noise)
            want = torch.autograd.grad(total, leaf)[0]
        if n == N:
            prop, hint = "with all the data it is the gradient of log prior + log likelihood", SIGNS
        else:
            prop, hint = "over all batches it is on average the gradient from all the data", PRIOR_ONCE
        is_close(name, prop, given, out, want, hint, 1e-8)
    right(name, 2)


def langevin_accept(fn: Callable) -> None:
    """Exercise 4: fn(log_p, score, x, y, a) -> (b,) probabilities of accepting y, drawn as x + a s(x) + sqrt(2 a) z.

    log_p is a function (b, d) -> (b,), up to a constant; score its gradient; x and y are (b, d).
    """
    name = "langevin_accept"
    log_p = lambda x: -(x**4).sum(1) / 4 + x[:, 0]  # noqa: E731
    score = lambda x: torch.stack([1 - x[:, 0] ** 3, -(x[:, 1] ** 3)], 1)  # noqa: E731
    x, y = _draws(40, 2, seed=0), _draws(40, 2, seed=1)
    for a in (0.05, 0.3):
        given = f"log p = -|x|_4^4 / 4 + x_1, a = {a}, 40 pairs (x, y)"
        there, back = call(name, fn, log_p, score, x, y, a), call(name, fn, log_p, score, y, x, a)
        is_tensor_like(name, "the probability", there, x[:, 0], "one number for each pair: sum over the coordinates")
        if not ((there >= 0) & (there <= 1)).all():
            worst = there[(there - 0.5).abs().nan_to_num(torch.inf).argmax()].item()
            hint = "differences of logarithms first, then min(1, ratio), and exp last"
            fail(name, "a probability lies in [0, 1]", given, f"{worst:.4g}", hint)
        flow = [_log_flow(log_p, score, p, q, a) + accept.log() for p, q, accept in ((x, y, there), (y, x, back))]
        prop = "p(x) q(y|x) accept(x, y) = p(y) q(x|y) accept(y, x) (shown: log of the ratio)"
        is_close(name, prop, given, flow[0] - flow[1], torch.zeros_like(there), BALANCE, 1e-6)
        is_close(
            name,
            "of a pair (x, y) and its reverse, one is always accepted",
            given,
            torch.maximum(there, back),
            torch.ones_like(there),
            "min(1, ratio) refuses as few steps as possible; a smaller probability may keep p, too, but wastes steps",
            1e-9,
        )
    far = torch.tensor([[30.0, 0.0]], dtype=F64)
    out = call(name, fn, lambda x: -100 * (x**2).sum(1), lambda x: -200 * x, far, far / 40, 1e-3)
    given = "log p = -100 |x|^2, from x = 30 to y = 0.75, where p(y) / p(x) is larger than any number of the machine"
    if not out.isfinite().all():
        fail(name, "the probability is a number", given, out.item(), "subtract logarithms before exp, not after")
    right(name, 4)


def _log_flow(log_p: Callable, score: Callable, x: Tensor, y: Tensor, a: float) -> Tensor:
    """log p(x) q(y|x), with the normal density of torch."""
    q = torch.distributions.Normal(x + a * score(x), math.sqrt(2 * a))
    return log_p(x) + q.log_prob(y).sum(1)


def escape_time(fn: Callable) -> None:
    """Exercise 5: fn(x, log_p, i, j) -> the mean time until dx = 1/2 s dt + dW first gets from x[i] to x[j] > x[i].

    x is (n,), an even grid; log_p (n,), up to a constant; the process is reflected at x[0]. Returns a number.
    """
    name = "escape_time"
    x = torch.linspace(0, 2, 4001, dtype=F64)
    for i, j in ((0, 4000), (1000, 4000), (1000, 3000)):
        given = f"p even on [0, 2], from {x[i]:g} to {x[j]:g}"
        want = x[j] ** 2 - x[i] ** 2
        prop = "with no slope anywhere, and a wall at 0, it takes x[j]^2 - x[i]^2 on average"
        is_close(name, prop, given, _number(name, call(name, fn, x, 0 * x, i, j)), want, FLAT, 5e-3)
    x = torch.linspace(-8, 8, 4001, dtype=F64)
    for m in (1.5, 3.0):
        two = torch.logaddexp(-((x - m) ** 2) / 2, -((x + m) ** 2) / 2 - 1)
        i, j = int((8 - m) / 16 * 4000), int((8 + m) / 16 * 4000)
        want = _by_elimination(x, two, i, j)
        given = f"hills of variance 1 at -{m:g} and {m:g}, the left one lower, from one top to the other"
        out = _number(name, call(name, fn, x, two, i, j))
        hint = "how much mass lies behind the walker at each place that has to be passed, and how thin is p there?"
        is_close(
            name, "the time is that of the backward equation 1/2 T'' + 1/2 s T' = -1", given, out, want, hint, 1e-2
        )
        hint = "a constant that is added to log p must drop out, also where exp of it is no number"
        shifted = _number(name, call(name, fn, x, two + 2000, i, j))
        is_close(name, "only ratios of p count", given + ", log p + 2000", shifted, want, hint, 1e-2)
    right(name, 3)


def _number(name: str, out: object) -> Tensor:
    if isinstance(out, int | float):
        out = torch.tensor(out, dtype=F64)
    if not isinstance(out, Tensor) or out.numel() != 1:
        came = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        fail(name, "one number comes back", "any", came, "two sums: one inside the other")
    return out.reshape(()).double()


def _by_elimination(x: Tensor, log_p: Tensor, i: int, j: int) -> Tensor:
    """T at x[i] from the tridiagonal equations of a walk between grid points, reflected at x[0] and ended at x[j].

    From k the walk goes up at rate sqrt(p[k+1] / p[k]) / (2 h^2) and down at sqrt(p[k-1] / p[k]) / (2 h^2): p stays.
    """
    h = (x[1] - x[0]).item()
    up = (((log_p[1 : j + 1] - log_p[:j]) / 2).exp() / (2 * h * h)).tolist()
    down = [0.0, *(((log_p[: j - 1] - log_p[1:j]) / 2).exp() / (2 * h * h)).tolist()]
    step, total = 0.0, 0.0  # the mean time from k to k + 1: (1 + down[k] * (that from k - 1 to k)) / up[k]
    for k in range(j):
        step = (1 + down[k] * step) / up[k]
        total += step if k >= i else 0.0
    return torch.tensor(total, dtype=F64)
