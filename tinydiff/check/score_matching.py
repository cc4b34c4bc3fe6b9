"""Checks of exercises 04: score matching. Each compares with something computed in another way."""

import itertools
import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from tinydiff.check.core import call, fail, is_close, is_tensor_like, right

F64 = torch.float64
SIGN = "high energy is low probability: log p = -E - log Z, and the score is the gradient of log p"
BATCH = (
    "E of one element depends on that element alone, so the gradient of the sum over the batch holds every row's own"
)
MEAN = (
    "too small by the size of the batch: each row is a point of its own, so take the sum over the batch, not the mean"
)
CONSTANT = (
    "a constant in E goes into Z, and the score does not know it; "
    "a number such as exp(-1000) is 0 for a computer, and its logarithm is not finite"
)
NO_LEAF = "does x ask for a gradient? If it does not, take a detached copy that does"
GRAPH = (
    "the score will be differentiated again, for the trace and in the parameters: autograd has to be told to keep it"
)
SYMMETRIC = "in v^T A v the entries a_ij and a_ji only ever appear together, so only the symmetric part of A counts"
DIAGONAL = "v_i^2 = 1 for signs: which entries of A, then, are met by something that is random?"
AVERAGE = "the estimate is the mean of n independent ones: what happens to a variance, and to its root?"
VARIANCE = "that is the variance: its root was asked for"
PAIRS = "each pair i < j counts once, with a_ij + a_ji"
MINIMUM = (
    "write the mean of tr grad s + 1/2 ||s||^2 for s = -P (x - m), and set its derivatives in m and in P to zero, "
    "the first before the second"
)
CENTRE = "P is not 0, so what does a slope of 0 in m say about the mean of x - m?"
WIDTH = "the wider the data, the weaker the pull to their middle: this P grows with their width"
ONE_LESS = "the loss is a mean over all n data; nothing in it is divided by n - 1"
ABOUT_ZERO = "the squares in the loss are those of x - m, not of x"
FINITE = (
    "no term may hold 1 / sigma^2, or numbers of that size are subtracted; write the two squares out, "
    "and see what cancels between z and -z"
)
KEPT = "||z||^2 / (2 sigma^2) is still in it: each of the two losses holds it, and it is left out"
ONE_SIDED = (
    "this is (6) of the notebook, with its control variate; here the second point is on the other side: use -z as well"
)
CROSS = "the sign of the terms with 1 / sigma: at -z the denoising loss has s(x - sigma z) - z / sigma in its square"
FACTOR = "a factor: each loss has its 1/2, and of the two losses it is the mean"
OVER_D = "the sum over dimensions is asked for, not the mean"
SCALED = "both have the noise scaled by sigma, and the factor 1/2"


class _Bowl(nn.Module):
    """An energy with a known gradient: a/2 ||x||^2 + sum of b cos x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=F64))
        self.b = nn.Parameter(torch.tensor([0.3, -0.5, 0.2], dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a / 2 * (x**2).sum(1) + (self.b * x.cos()).sum(1)

    def score(self, x: Tensor) -> Tensor:
        return -self.a * x + self.b * x.sin()


def energy_score(fn: Callable) -> None:
    """Exercise 1: fn(energy, x) -> (b, d) score of p ~ exp(-E), differentiable again."""
    name, bowl = "energy_score", _Bowl()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    given = "E(x) = a/2 ||x||^2 + sum_i b_i cos x_i for a batch of 5 points in 3 dimensions"
    try:
        fn(bowl, x.clone())
    except Exception as error:  # any other is told by `call`, in the next line
        if "does not require grad" in str(error):
            fail(name, "the function runs", "an x with requires_grad = False", f"RuntimeError: {error}", NO_LEAF)
    score = call(name, fn, bowl, x)
    is_tensor_like(name, "the score", score, x, BATCH)
    hint = MEAN if _same(score * len(x), bowl.score(x)) else SIGN
    is_close(name, "the score is the gradient in x of log p", given, score, bowl.score(x), hint, 1e-9)
    raised = call(name, fn, lambda x: bowl(x) + 1000, x)
    prop = "a constant added to E changes nothing"
    is_close(name, prop, f"{given}, and the same + 1000", raised, bowl.score(x), CONSTANT, 1e-9)
    if x.requires_grad:
        fail(name, "the x that came in is left as it was", given, "x.requires_grad is now True", "work on a detached x")
    if not score.requires_grad:
        fail(name, "the score can be differentiated in the parameters", given, "a tensor without a graph", GRAPH)
    found = torch.autograd.grad(score.square().sum() / 2, list(bowl.parameters()), allow_unused=True)
    due = torch.autograd.grad(bowl.score(x).square().sum() / 2, list(bowl.parameters()))
    for which, g, want in zip("ab", found, due, strict=True):
        g = torch.full_like(want, math.nan) if g is None else g
        prop = f"the gradient of 1/2 ||s||^2 in the parameter {which}"
        is_close(name, prop, given, torch.atleast_1d(g), torch.atleast_1d(want), GRAPH, 1e-9)
    inner = x.clone().requires_grad_()
    score = call(name, fn, bowl, inner)
    try:
        (row,) = torch.autograd.grad(score.sum(), inner)
    except RuntimeError:
        fail(
            name,
            "the score can be differentiated in x, where x asks for it",
            "an x with requires_grad = True",
            "a score that does not depend on that x",
            "detach only an x that asks for no gradient; sliced_loss differentiates in the x it gives you",
        )
    want = -bowl.a.detach() + bowl.b.detach() * x.cos()
    is_close(name, "the derivative of the score in x", given, row, want, GRAPH, 1e-9)
    right(name, 5)


def _same(a: Tensor, b: Tensor, tol: float = 1e-9) -> bool:
    """Whether two tensors of one shape agree, for a hint that fits."""
    return a.shape == b.shape and torch.allclose(a.detach(), b.detach(), rtol=tol, atol=tol)


def _signs(d: int) -> Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)), dtype=F64)


def trace_std(fn: Callable) -> None:
    """Exercise 2: fn(A, n) -> standard deviation of the mean of n estimates v^T A v with signs v, for any square A."""
    name, g = "trace_std", torch.Generator().manual_seed(0)
    diagonal = torch.diag(torch.tensor([3.0, -1.0, 2.0], dtype=F64))
    symmetric = torch.tensor([[1.0, 0.5, 0.0], [0.5, -2.0, 1.5], [0.0, 1.5, 4.0]], dtype=F64)
    anti = torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=F64)
    for what, A, hint in (
        ("a diagonal A", diagonal, DIAGONAL),
        ("a symmetric A", symmetric, DIAGONAL),
        ("A = [[0, 2], [-2, 0]]", anti, SYMMETRIC),
        ("an A that is not symmetric", torch.randn(4, 4, generator=g, dtype=F64), SYMMETRIC),
    ):
        for n in (1, 16):
            out = call(name, fn, A, n)
            if not isinstance(out, Real | Tensor):
                fail(
                    name,
                    "one number comes back",
                    f"{what}, n = {n}",
                    type(out).__name__,
                    "does the function return it?",
                )
            out = torch.as_tensor(out).detach().to(F64)
            is_tensor_like(name, "the result", out, torch.zeros((), dtype=F64), "one number, not one for each entry")
            v = _signs(len(A))
            all_of_them = ((v @ A) * v).sum(1)  # every sign vector there is, all equally likely
            want = all_of_them.var(correction=0).sqrt() / math.sqrt(n)
            prop = "the standard deviation over all sign vectors there are" + (", of one" if n == 1 else f", of {n}")
            usual = hint if n == 1 else AVERAGE
            if want > 1e-9 and _same(out, want**2):
                usual = VARIANCE
            elif want > 1e-9 and (_same(out, want * 2**0.5) or _same(out, want / 2**0.5)):
                usual = PAIRS
            is_close(name, prop, f"{what}, n = {n}", out, want, usual, 1e-6)
    right(name, 3)


def fit_gaussian(fn: Callable) -> None:
    """Exercise 3: fn(x) -> (m, P), the minimiser of the mean implicit loss of s(y) = -P (y - m) over the data x."""
    name, g = "fit_gaussian", torch.Generator().manual_seed(0)
    for n, d in ((40, 3), (25, 1)):
        x = torch.randn(n, d, generator=g, dtype=F64) @ torch.randn(d, d, generator=g, dtype=F64) + 2.0
        out = call(name, fn, x)
        if not isinstance(out, tuple) or len(out) != 2:
            fail(name, "a pair (m, P) comes back", "any", type(out).__name__, "return m, P")
        given = f"{n} data in {d} dimensions, with mean near 2"
        for what, part, like in (("m", out[0], x[0]), ("P", out[1], x.T @ x)):
            is_tensor_like(name, what, part, like, "m is (d,), P is (d, d)")
        m, P = (part.detach().clone().requires_grad_() for part in out)
        s = -(x - m) @ P.T
        loss = -P.trace() + (s**2).sum(1).mean() / 2  # the trace of the Jacobian -P, and half the square
        for what, slope in zip(("m", "P"), torch.autograd.grad(loss, (m, P)), strict=True):
            prop = f"the mean implicit loss has slope 0 in {what}"
            is_close(name, prop, given, slope, torch.zeros_like(slope), _cause(what, x, P.detach()), 1e-6)
        if P.detach().abs().max() == 0:
            fail(name, "the loss is at its minimum", given, "P = 0", MINIMUM)
    right(name, 2)


def _cause(what: str, x: Tensor, P: Tensor) -> str:
    """The hint for a slope that is not 0."""
    if what == "m":
        return CENTRE
    n, about_zero = len(x), x.T @ x / len(x)
    covariance = (x - x.mean(0)).T @ (x - x.mean(0)) / n
    eye = torch.eye(len(P), dtype=P.dtype)
    if _same(P, covariance, 1e-6) or _same(P, covariance * n / (n - 1), 1e-6):
        return WIDTH
    if _same(P @ covariance * n / (n - 1), eye, 1e-6):
        return ONE_LESS
    return ABOUT_ZERO if _same(P @ about_zero, eye, 1e-6) else MINIMUM


def paired_loss(fn: Callable) -> None:
    """Exercise 4: fn(score, x, z, sigma) -> (b,), the mean of the denoising losses at z and -z without their constant.

    The constant is ||z||^2 / (2 sigma^2). The precision must not suffer from a small sigma.
    """
    name, g = "paired_loss", torch.Generator().manual_seed(0)
    x, z = (torch.randn(6, 3, generator=g, dtype=F64) for _ in range(2))
    weight = torch.randn(3, 3, generator=g, dtype=F64).requires_grad_()
    score = lambda y: torch.tanh(y @ weight) - y  # noqa: E731
    for sigma in (1.0, 0.3):
        given = f"s(y) = tanh(y W) - y, sigma = {sigma}, 6 data in 3 dimensions"
        out = call(name, fn, score, x, z, sigma)
        is_tensor_like(name, "the loss", out, x[:, 0], "one number for each datum: sum over dimensions")
        each = [((score(x + e * sigma * z) + e * z / sigma) ** 2).sum(1) / 2 for e in (1, -1)]
        want = (each[0] + each[1]) / 2 - (z**2).sum(1) / (2 * sigma**2)
        prop = "the mean of the denoising losses at z and -z, less ||z||^2 / (2 sigma^2)"
        is_close(name, prop, given, out, want, _paired_cause(out, want, score, x, z, sigma), 1e-9)
        whole = "leave the graph whole: no detach, no no_grad, no .item()"
        if not out.requires_grad:
            fail(
                name, "the loss can be differentiated in the score's parameters", given, "a loss without a graph", whole
            )
        slopes = [torch.autograd.grad(v.sum(), weight, materialize_grads=True)[0] for v in (out, want)]
        is_close(name, "the gradient of the loss in the score's parameters", given, *slopes, whole, 1e-9)
    small = 1e-4
    out = call(name, lambda *a: fn(lambda y: score(y.double()).to(y), *a), x.float(), z.float(), small)
    s = score(x)
    jacobian = torch.func.vmap(torch.func.jacrev(score))(x)
    limit = (s**2).sum(1) / 2 + torch.einsum("bi,bij,bj->b", z, jacobian, z)
    given = f"the same in float32 at sigma = {small}"
    is_close(name, "v^T grad s v + 1/2 ||s||^2 with v = z, to 0.01", given, out.double(), limit, FINITE, 0.01)
    right(name, 3)


def _paired_cause(out: Tensor, want: Tensor, score: Callable, x: Tensor, z: Tensor, sigma: float) -> str:
    """The hint for a loss that is not the one asked for."""
    plus, minus, middle = score(x + sigma * z), score(x - sigma * z), score(x)
    squares, cross = (plus**2 + minus**2).sum(1) / 4, (z * (plus - minus)).sum(1) / (2 * sigma)
    constant = (z**2).sum(1) / (2 * sigma**2)
    if _same(out, want + constant) or _same(out, want + 2 * constant):
        return KEPT
    if _same(out, (plus**2).sum(1) / 2 + (z * (plus - middle)).sum(1) / sigma):
        return ONE_SIDED
    if _same(out, squares - cross):
        return CROSS
    if _same(out, want / x.shape[1]):
        return OVER_D
    factors = (0.5, 1.0, 2.0)
    return FACTOR if any(_same(out, a * squares + b * cross) for a in factors for b in factors) else SCALED
