"""Checks of exercises 07: bits of a pixel, a linear flow, Hutchinson's estimate, Euler steps. Each by another way."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinydiff.check.core import CheckFailed, call, fail, is_close, is_tensor_like, right

F64 = torch.float64

UNIT = (
    "a pixel of 256 equal levels costs 8 bits, in any units; a bin is 1 wide in grey levels: how wide is it in "
    "the units of x? Then nats to bits, and a mean over pixels"
)
PER_PIXEL = "right if all std are equal: here each pixel has its own, and so its own bin"
DENSITY = (
    "log N(x_1; 0, I) plus the integral of the divergence; rows are points, so x_1 = x M^T with M = exp(A); the "
    "divergence of x -> A x is the same everywhere"
)
SUM_TO_ONE = "a density adds up to 1: is the sign of the divergence right, and the direction of the flow?"
FORMS = "z^T J z of each probe, a sum over i and j; one backward or forward derivative gives J^T z or J z; then times z"
ERROR = "the standard error of a mean of k numbers: their standard deviation (with k - 1) over the root of k"
ROWS = "the rows of a batch are points of their own: nothing of one enters another's answer"
EULER = (
    "each step is a map x -> x + h v(x, t), whose Jacobian is I + h J(x, t), at the point before the step; its "
    "determinant counts, not only the trace; add the logarithms of all steps to log N(x_n; 0, I)"
)
CLOCK = "steps start at t = 0, 1/n, ..., (n - 1)/n, and h = 1/n"
GRAPH = (
    "autograd needs an unbroken way from x to f(x): a copy of x that requires a gradient (the x that comes in does "
    "not) before f is called on that copy, and neither no_grad nor detach on the way"
)
TWICE = "a graph is freed by its first derivative: keep it (retain_graph=True), or call f anew for each probe"
ABS = "a volume has no sign: the logarithm of |det|"


class Named:
    """A function that a message shows as its formula."""

    def __init__(self, fn: Callable, words: str) -> None:
        self.fn, self.words = fn, words

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args)

    def __repr__(self) -> str:
        return self.words


def call_for_gradient(name: str, fn: Callable, *args: Any) -> Any:
    """`call`, with a hint of its own where autograd found no graph, or one that is broken or used up."""
    try:
        return call(name, fn, *args)
    except CheckFailed as failure:
        told, hint, _ = str(failure).partition("  hint:      ")
        if hint and "a second time" in told:
            raise CheckFailed(told + hint + TWICE) from None
        if hint and any(words in told for words in ("require grad", "in the graph", "NoneType")):
            raise CheckFailed(told + hint + GRAPH) from None
        raise


def pixel_bits(fn: Callable) -> None:
    """Exercise 1: fn(log_p, std) -> (b,) bits per pixel of grey levels, from the log-density of x = (pixel - m) / std.

    Pixels are whole numbers with noise uniform on +-1/2; std is (d,), one for each pixel; log_p is (b,), in nats.
    """
    name = "pixel_bits"
    g = torch.Generator().manual_seed(0)
    out = call(name, fn, torch.zeros(3, dtype=F64), torch.ones(5, dtype=F64))
    is_tensor_like(name, "the answer", out, torch.empty(3, dtype=F64), "a number for each row of log_p")
    for d, n in ((1, 256), (64, 17), (3, 2)):
        for equal in (True, False):
            std = torch.full((d,), 2.5, dtype=F64) if equal else 0.3 + 5 * torch.rand(d, generator=g, dtype=F64)
            log_p = (std / n).log().sum().expand(4).clone()
            given = f"{n} equal levels in {d} pixels, std {'all 2.5' if equal else 'different'}"
            hint = UNIT if equal else PER_PIXEL
            want = torch.full((4,), math.log2(n), dtype=F64)
            is_close(name, f"{n} equal levels cost log2({n}) bits", given, call(name, fn, log_p, std), want, hint, 1e-9)
    # a broad Gaussian of grey levels: its density at a level is the mass of the level's bin
    k, s, m, c = torch.tensor([90.0, 128.0, 141.0], dtype=F64), 40.0, 120.0, 31.0
    cdf = torch.distributions.Normal(torch.tensor(m, dtype=F64), torch.tensor(s, dtype=F64)).cdf
    want = -(cdf(k + 0.5) - cdf(k - 0.5)).log2()
    x = (k - 100) / c
    log_p = -(((x - (m - 100) / c) * c / s) ** 2) / 2 - math.log(s / c * math.sqrt(2 * math.pi))
    out = call(name, fn, log_p, torch.tensor([c], dtype=F64))
    given = "levels 90, 128, 141 under N(120, 40^2), standardised by 100 and 31"
    is_close(name, "bits are those of the mass in a level's bin", given, out, want, UNIT, 1e-4)
    right(name, 3)


def linear_flow_log_prob(fn: Callable) -> None:
    """Exercise 2: fn(x, A) -> (b,) log p_0(x) for dx/dt = A x from t = 0 to 1, where x_1 ~ N(0, I)."""
    name = "linear_flow_log_prob"
    g = torch.Generator().manual_seed(0)
    for d in (1, 2, 4):
        A = torch.randn(d, d, generator=g, dtype=F64) / d**0.5 + 0.4 * torch.eye(d, dtype=F64)
        x = torch.randn(6, d, generator=g, dtype=F64)
        out = call(name, fn, x, A)
        is_tensor_like(name, "the answer", out, x[:, 0], "one log-density for each row of x")
        # x = x_1 M^-T with x_1 normal, so x is normal, too; M by a million Euler steps, halved again by Richardson
        M = 2 * _many_steps(A, 21) - _many_steps(A, 20)
        back = torch.linalg.inv(M)
        law = torch.distributions.MultivariateNormal(torch.zeros(d, dtype=F64), back @ back.T)
        given = f"A of {d} x {d}, 6 points"
        is_close(name, "it is the log-density of exp(-A) z, z ~ N(0, I)", given, out, law.log_prob(x), DENSITY, 1e-6)
    A = torch.tensor([[0.6, -1.1], [0.3, -0.2]], dtype=F64)
    line = torch.linspace(-9, 9, 181, dtype=F64)
    total = call(name, fn, torch.cartesian_prod(line, line), A).exp().sum() * 0.1**2
    is_close(name, "the density adds up to 1", "a grid of 181 x 181", total[None], torch.ones(1, dtype=F64), SUM_TO_ONE)
    right(name, 2)


def _many_steps(A: Tensor, log2_n: int) -> Tensor:
    return torch.linalg.matrix_power(torch.eye(len(A), dtype=A.dtype) + A / 2**log2_n, 2**log2_n)


def trace_estimate(fn: Callable) -> None:
    """Exercise 3: fn(f, x, z) -> (estimate, standard_error), each (b,): Hutchinson's, of tr df/dx, with probes z."""
    name = "trace_estimate"
    g = torch.Generator().manual_seed(0)
    for k, b, d in ((2, 3, 2), (7, 4, 5), (64, 2, 3)):
        A = torch.randn(d, d, generator=g, dtype=F64)
        x, z = torch.randn(b, d, generator=g, dtype=F64), torch.randn(k, b, d, generator=g, dtype=F64)
        f = Named(lambda x, A=A: x @ A.T + torch.sin(2 * x), "f(x) = x A^T + sin(2 x)")
        J = A + torch.diag_embed(2 * torch.cos(2 * x))
        forms = torch.einsum("kbi,bij,kbj->kb", z, J, z)
        out = call_for_gradient(name, fn, f, x, z)
        given = f"{f}, {k} probes, {b} points in {d} dimensions"
        if not isinstance(out, tuple | list) or len(out) != 2:
            came = f"{type(out).__name__}"
            fail(name, "the answer is a pair", given, came, "return the estimate and its standard error, in this order")
        for what, v in zip(("the estimate", "the standard error"), out, strict=True):
            is_tensor_like(name, what, v, x[:, 0], "one number for each point")
        estimate, error = (v.detach() for v in out)
        # a single point at a time: is anything of the neighbours in it?
        alone = torch.cat([torch.as_tensor(call(name, fn, f, x[i : i + 1], z[:, i : i + 1])[0]) for i in range(b)])
        is_close(name, "a point alone has the answer it has in a batch", given, estimate, alone.detach(), ROWS, 1e-9)
        is_close(name, "the estimate is the mean of z^T J z", given, estimate, forms.mean(0), FORMS, 1e-8)
        want = forms.std(0) / k**0.5
        is_close(name, "its standard error is that of a mean", given, error, want, ERROR, 1e-8)
    right(name, 3)


def euler_log_prob(fn: Callable) -> None:
    """Exercise 4: fn(v, x, n) -> (b,), the exact log-density at x of what n Euler steps x + v / n carry to N(0, I)."""
    name = "euler_log_prob"
    g = torch.Generator().manual_seed(0)
    log_normal = lambda x, std: -((x / std) ** 2).sum(1) / 2 - x.shape[1] * (math.log(2 * math.pi) / 2 + std.log())  # noqa: E731
    for n, rate in ((1, lambda t: 0.8), (3, lambda t: 1 - 2 * t), (4, lambda t: t), (2, lambda t: -5.0)):
        x = torch.randn(5, 3 if rate(0) < -n else 2, generator=g, dtype=F64)  # in three dimensions |det| needs its bars
        v = Named(lambda x, t, rate=rate: rate(t) * x, "v(x, t) = a(t) x")
        out = call_for_gradient(name, fn, v, x, n)
        is_tensor_like(name, "the answer", out, x[:, 0], "one log-density for each row of x")
        factor = math.prod(1 + rate(k / n) / n for k in range(n))
        want = log_normal(x, torch.tensor(1 / abs(factor), dtype=F64))
        rates = ", ".join(f"{rate(k / n):.3g}" for k in range(n))
        given = f"{v}, {n} steps, a = {rates}"
        hint = ABS if rate(0) < -n else CLOCK if n in (3, 4) else EULER
        is_close(name, "a linear flow gives N(0, 1 / product^2)", given, out.detach(), want, hint, 1e-9)

    def swirl(x: Tensor, t: float) -> Tensor:  # not linear, and no two coordinates alike
        a, b = x[:, 0], x[:, 1]
        return torch.stack([0.9 * torch.tanh(a + b) + t * b, 0.5 * a - 0.8 * torch.sin(b)], 1)

    swirl = Named(swirl, "v(x, t), a flow that is not linear")
    line = torch.linspace(-8, 8, 161, dtype=F64)
    for n in (2, 3):
        total = call(name, fn, swirl, torch.cartesian_prod(line, line), n).detach().exp().sum() * 0.1**2
        given = f"{n} steps of a flow that is not linear, on a grid of 161 x 161"
        prop = "the density of the steps adds up to 1, however few they are"
        is_close(name, prop, given, total[None], torch.ones(1, dtype=F64), EULER, 1e-3)
    x, n, h = torch.randn(6, 2, generator=g, dtype=F64), 3, 1e-5
    ends = []
    for shift in ([0, 0], [h, 0], [-h, 0], [0, h], [0, -h]):  # the whole map by differences
        y = x + torch.tensor(shift, dtype=F64)
        for k in range(n):
            y = y + swirl(y, k / n) / n
        ends.append(y)
    du, dv = (ends[1] - ends[2]) / (2 * h), (ends[3] - ends[4]) / (2 * h)
    want = log_normal(ends[0], torch.tensor(1.0, dtype=F64)) + (du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0]).abs().log()
    out = call(name, fn, swirl, x, n).detach()
    is_close(name, "it agrees with how areas grow", "3 steps, by finite differences", out, want, EULER, 1e-6)
    right(name, 3)
