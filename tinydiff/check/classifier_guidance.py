"""Checks of exercises 12: a classifier's gradient, a guided belief, a noisy posterior, ADM's step, the tempting law.

Each compares with closed forms of linear classifiers and Gaussians, and with the exact mixture of the library.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinydiff.check.core import CheckFailed, call, fail, is_close, is_tensor_like, right
from tinydiff.exact import GaussianMixture
from tinydiff.schedules import VP, Flow, Schedule

F64 = torch.float64
NORMALISED = (
    "what guides is the log of the *probability*: log_softmax over the classes first, then the entry of y; a single "
    "logit leaves out that the other classes lose"
)
LOG = (
    "the gradient is that of the log of the probability, not of the probability: without the log it is p times as long"
)
SUM = "each sample has a gradient of its own: sum the batch before you differentiate; a mean divides by the batch size"
UP = "uphill: along the gradient of log p, in which p grows; a loss has the other sign"
OWN_CLASS = "each row has its own class: entry y[i] of row i, as by gather or by indexing with arange and y"
COLUMNS = "[:, y] takes the columns of every y in every row, b entries a row; row i has one class, y[i]"
IN_TURN = (
    "look in turn at the axis of the softmax, the log, the entry of each row, the sum over the batch, and the sign"
)
EXTREME = (
    "the exponential of a number far from 0 is 0 or infinite, and its log has no gradient that is of use: softmax "
    "and log are to be one step, which never leaves the logs"
)
OVER_CLASSES = "the softmax runs over the classes, axis 1: the rows of the batch are nothing to each other"
ENABLE = (
    "samplers run under torch.no_grad(), where nothing can be differentiated: put the forward pass and the gradient "
    "under `with torch.enable_grad():`"
)
GRAPH = "what goes back into the sampler carries no graph: torch.autograd.grad without create_graph, or .detach()"
LEAF = "differentiate a copy: x.detach().requires_grad_() leaves the caller's x as it was"
ORDER = "the two are exchanged: return x0 first, then eps"
ANY_PATH = "alpha and sigma are given both: alpha^2 + sigma^2 = 1 holds on some paths, not on this one"
PAIR = "x0 and eps are two sides of one belief, x = alpha x0 + sigma eps: x0 follows from x and the new eps"
SCORE = "the score is -eps / sigma. To add to the score is to change eps by -sigma times as much: mind sign and sigma"
ONE_IS_ONE = "scale 0 is the unconditional answer, and scale 1 adds the gradient once"
ROWS = "the probabilities of the components of one x sum to 1: normalise over the components, axis 1"
SCALED = "noisy data are x = alpha x0 + sigma eps: the mean of component k is alpha m_k, not m_k"
SPREAD = "variances add, not standard deviations: alpha^2 std_k^2 + sigma^2"
WIDTH = "a Gaussian in d dimensions is divided by its width to the power d; with widths that differ it does not cancel"
IGNORED = "this is the posterior of clean data: the noise, sigma, is not in it. Noisy x spread wider"
PRIOR = "Bayes' rule: weight times density, normalised"
LOGS = "far from all means each density underflows to 0: work with logs, and let softmax (or logsumexp) normalise"
AT_X = "the gradient is taken at x_t, the point that the step starts from, not at the mean: gradient(x)"
BY_VAR = "the mean moves by the variance times the gradient (equation (4)): not by the standard deviation, nor by 1"
NOISE = "noise is multiplied by the standard deviation, the root of var, whatever the scale"
MEAN = "without a scale the mean is a_x0 x0 + a_x x, as in notebook 01"
ONCE = "the gradient is asked for once a step: each time costs a forward and a backward pass"
CONVENTION = (
    "the draws are of p(x) p(y|x) / Z already, which is scale 1: at scale 1 all draws count alike, and the exponent of "
    "the weights is what is left to do"
)
SELF = "weights count only relative to each other: divide by their sum"
STABLE = "log p can be -2000, whose exponential is 0: subtract the largest exponent first, or use softmax"
WEIGHTED = "both moments are weighted: the mean, and the squared distance from *that* mean"
ROOT = "this is the standard deviation: the variance is asked for, of which no root is taken"
ZERO = "a number given may be 0: write it so that nothing is divided by it, and no log taken of it"
NUMBER = "a plain number is no tensor: functions of torch take tensors; numbers have powers (**) and the module math"
READ = "the line and what it says of itself are above: print the types and shapes of what goes into it"


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _call(name: str, sizes: str, fn: Callable, *args: Any) -> Any:
    """`call`, whose hint is that of the error that was raised: `sizes` for shapes that do not fit."""
    raised: list[Exception] = []

    def watched(*args: Any) -> Any:
        try:
            return fn(*args)
        except Exception as error:
            raised.append(error)
            raise

    try:
        return call(name, watched, *args)
    except CheckFailed as failed:
        if not raised or isinstance(raised[0], NotImplementedError):
            raise
        message, mark, _ = str(failed).rpartition("  hint:      ")
        raise CheckFailed(message + mark + _cause(raised[0], sizes)) from None


def _cause(error: Exception, sizes: str) -> str:
    said = str(error).lower()
    if isinstance(error, ZeroDivisionError) or "math domain" in said or "expected a positive input" in said:
        return ZERO
    if isinstance(error, TypeError | AttributeError) and ("not float" in said or "'float' object has no" in said):
        return NUMBER
    if "scalar outputs" in said:
        return SUM
    return sizes if any(word in said for word in ("size", "shape", "dimension")) else READ


def _world(schedule: Schedule) -> GaussianMixture:
    """Five places in the plane, three classes."""
    means = torch.tensor([[1.0, 0.0], [0.3, 1.1], [-1.0, 0.4], [-0.5, -1.0], [0.8, -0.9]], dtype=F64)
    weights = torch.tensor([0.3, 0.1, 0.2, 0.15, 0.25], dtype=F64)
    return GaussianMixture(means, 0.4, weights, schedule, torch.tensor([0, 0, 1, 2, 2]))


def class_gradient(fn: Callable) -> None:
    """Exercise 1: fn(logits, x, y), logits: (b, d) -> (b, k), x (b, d), y (b,) -> (b, d)."""
    name = "class_gradient"
    sizes = "y is (b,), the logits are (b, k): gather takes an index of as many axes, (b, 1)"
    w, x, y = _draw(4, 3, seed=1), _draw(6, 3, seed=2), torch.tensor([0, 3, 1, 1, 2, 0])

    def linear(x: Tensor) -> Tensor:
        return x @ w.to(x).T

    def ask(logits: Callable, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():  # as samplers do
            try:
                out = _call(name, sizes, lambda x, y: fn(logits, x, y), x, y)
            except CheckFailed as error:
                if "does not require grad" in str(error):
                    fail(name, "it works within a sampler", "under torch.no_grad()", "no gradient", ENABLE)
                raise
        if x.requires_grad:
            fail(name, "x is left as it was", "any", "an x that requires gradients now", LEAF)
        is_tensor_like(name, "the gradient", out, x, "a gradient is like x: one row a sample")
        if out.requires_grad:
            fail(name, "the gradient is a plain tensor", "any", "one that requires gradients", GRAPH)
        return out

    given = "a linear classifier of 4 classes, logits = x W^T, 6 points"
    p, out = linear(x).softmax(1), ask(linear, x, y)
    due, lost = w[y] - p @ w, p @ w  # the gradient of w_y x - log sum exp, and its second part
    usual = (
        (w[y], NORMALISED),
        (-due, UP),
        (due / len(x), SUM),
        (p.gather(1, y[:, None]) * due, LOG),
        (w[0] - lost, OWN_CLASS),
        (w[p.argmax(1)] - lost, OWN_CLASS),
        (w.sum(0) - 4 * lost, OWN_CLASS),
        (w[y] - linear(x).softmax(0)[:, y] @ w[y], OVER_CLASSES),
        (w[y].sum(0) - 6 * lost, COLUMNS),
        (w[y].mean(0) - lost, COLUMNS),
        ((w[y].mean(0) - lost) / 6, COLUMNS),
    )
    hint = next((told for wrong, told in usual if torch.allclose(out, wrong)), IN_TURN)
    is_close(name, "it is w_y less the mean of all w by their probabilities", given, out, due, hint, 1e-9)
    alone = ask(linear, x[2:3], y[2:3])
    prop, given = "a row does not depend on the others", "the third of the 6 points alone"
    is_close(name, prop, given, alone, out[2:3], SUM, 1e-9)
    moved = ask(lambda x: linear(x) + 3 * (x**2).sum(1, keepdim=True), x, y)
    prop, given = "what is added to all logits alike changes nothing", "the same, with 3 |x|^2 added to each logit"
    is_close(name, prop, given, moved, due, NORMALISED, 1e-9)
    for dtype, slope in ((torch.float32, 40), (F64, 400)):
        x, due = torch.tensor([[-5.0], [5.0]], dtype=dtype), torch.tensor([[float(slope)], [0.0]], dtype=dtype)
        given = f"logits ({slope} x, 0) in {str(dtype).removeprefix('torch.')} at x = -5 and 5: ±{5 * slope} and 0"
        out = ask(lambda x, slope=slope: torch.cat([slope * x, 0 * x], 1), x, torch.tensor([0, 0]))
        is_close(name, "logits may be any real numbers", given, out, due, EXTREME, 1e-5)
    world, x = _world(VP()), _draw(8, 2, seed=3)
    y = torch.arange(8) % 3
    for t in (0.1, 0.6):

        def joint(x: Tensor, t: float = t) -> Tensor:
            classes = [torch.full((len(x),), k) for k in range(3)]
            return torch.stack([world.log_class(x, t, c) for c in classes], 1) + world.log_prob(x, t)[:, None]

        due, given = world.score(x, t, y) - world.score(x, t), f"the exact classifier of a mixture at t = {t}"
        prop = "it is the difference of the scores of the class and of all"
        is_close(name, prop, given, ask(joint, x, y), due, NORMALISED, 1e-9)
    right(name, 7)


def guided_belief(fn: Callable) -> None:
    """Exercise 2: fn(x, eps, gradient, alpha, sigma, scale) -> (x0, eps); alpha and sigma are (b, 1)."""
    name, world, other = "guided_belief", _world(VP()), _world(Flow())
    sizes = "x, eps and gradient are (b, d), alpha and sigma are (b, 1) already: they multiply as they are"
    x, y, t = _draw(9, 2, seed=4), torch.arange(9) % 3, torch.linspace(0.05, 0.95, 9, dtype=F64)
    c, plain, exact = world.schedule(t, like=x), world(x, t), world(x, t, y=y)

    def ask(scale: float, world: GaussianMixture = world) -> tuple[Tensor, Tensor]:
        c, gradient = world.schedule(t, like=x), world.score(x, t, y) - world.score(x, t)
        out = _call(name, sizes, fn, x, world(x, t).eps, gradient, c.alpha, c.sigma, scale)
        if not isinstance(out, tuple | list) or len(out) != 2:
            fail(name, "two tensors come back", "any", type(out).__name__, "return x0, eps")
        for what, part in zip(("x0", "eps"), out, strict=True):
            is_tensor_like(name, what, part, x, "like x; alpha and sigma are (b, 1) and broadcast")
        return out[0], out[1]

    none, given = ask(0.0), "a mixture, 9 points at 9 noise levels, scale 0"
    if torch.allclose(none[0], plain.eps) and torch.allclose(none[1], plain.x0):
        fail(name, "x0 comes back, then eps", given, "eps, then x0", ORDER)
    is_close(name, "eps is that of no guidance", given, none[1], plain.eps, ONE_IS_ONE, 1e-9)
    is_close(name, "x0 is that of no guidance", given, none[0], plain.x0, PAIR, 1e-9)
    one, given = ask(1.0), "the exact gradient, scale 1"
    is_close(name, "eps is the exact one of the class", given, one[1], exact.eps, SCORE, 1e-9)
    is_close(name, "x0 is the exact one of the class", given, one[0], exact.x0, PAIR, 1e-9)
    for scale in (0.5, 4.0):
        out, given = ask(scale), f"scale {scale}"
        due = plain.eps + scale * (exact.eps - plain.eps)
        is_close(name, "eps moves in proportion to the scale", given, out[1], due, ONE_IS_ONE, 1e-9)
        both = c.alpha * out[0] + c.sigma * out[1]
        is_close(name, "x = alpha x0 + sigma eps holds after it", given, both, x, PAIR, 1e-9)
    out, exact, given = ask(1.0, other), other(x, t, y=y), "the path of notebook 10, alpha + sigma = 1, scale 1"
    for what, came, due in (("eps", out[1], exact.eps), ("x0", out[0], exact.x0)):
        is_close(name, f"{what} is that of the class on every path", given, came, due, ANY_PATH, 1e-9)
    right(name, 7)


def noisy_posterior(fn: Callable) -> None:
    """Exercise 3: fn(x, means, std, weights, alpha, sigma), x (b, d), means (k, d), std and weights (k,) -> (b, k)."""
    name, k = "noisy_posterior", 4
    sizes = "std and weights are (k,), one number a component: they fit (b, k), but neither (b, k, d) nor (k, d)"
    x, means = 1.5 * _draw(7, 2, seed=5), _draw(k, 2, seed=6)
    same, std = torch.full((k,), 0.5, dtype=F64), torch.tensor([0.2, 0.5, 0.8, 0.3], dtype=F64)
    even, weights = torch.full((k,), 0.25, dtype=F64), torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=F64)

    def ask(x: Tensor, std: Tensor, weights: Tensor, alpha: float, sigma: float) -> Tensor:
        out = _call(name, sizes, fn, x, means, std, weights, alpha, sigma)
        is_tensor_like(name, "the posterior", out, x.new_empty(len(x), k), "one row a point, one column a component")
        return out

    def due(x: Tensor, std: Tensor, weights: Tensor, alpha: float, sigma: float) -> Tensor:
        var = alpha**2 * std**2 + sigma**2
        away = ((x[:, None] - alpha * means) ** 2).sum(2)
        return (weights.log() - away / var / 2 - x.shape[1] / 2 * var.log()).softmax(1)

    def holds(prop: str, given: str, hint: str, *args: Any) -> None:
        is_close(name, prop, given, ask(*args), due(*args), hint, 1e-9)

    out, given = ask(x, std, weights, 0.8, 0.6), "4 components in the plane, alpha = 0.8, sigma = 0.6"
    is_close(name, "each row sums to 1", given, out.sum(1), torch.ones(7, dtype=F64), ROWS, 1e-9)
    given = "equal widths and weights, alpha = 1, sigma = 0: clean data"
    holds("at no noise it is the posterior of clean data", given, PRIOR, x, same, even, 1.0, 0.0)
    holds("the weights count", "equal widths, weights that differ, clean data", PRIOR, x, same, weights, 1.0, 0.0)
    holds("so do the widths", "widths that differ, clean data", WIDTH, x, std, weights, 1.0, 0.0)
    given = "alpha = 1, sigma = 2: noise is added, and nothing is scaled"
    clean = torch.allclose(ask(x, same, even, 1.0, 2.0), due(x, same, even, 1.0, 0.0))
    holds("noise makes it less sure", given, IGNORED if clean else SPREAD, x, same, even, 1.0, 2.0)
    given, wide = "alpha = 0.5, sigma = 0.8", ((x[:, None] - 0.5 * means) ** 2).sum(2) / (0.5**2 + 0.8**2) / -2
    hint = SPREAD if torch.allclose(ask(x, same, even, 0.5, 0.8), wide.softmax(1)) else SCALED
    holds("alpha scales the means, and the widths", given, hint, x, same, even, 0.5, 0.8)
    given = "alpha = 0, sigma = 1: nothing but noise"
    hint = SCALED if ask(x, std, weights, 0.0, 1.0).isfinite().all() else ZERO
    holds("of noise alone nothing is known but the weights", given, hint, x, std, weights, 0.0, 1.0)
    given = "points 60 times as far out, alpha = 0.9, sigma = 0.3"
    holds("it holds far from all means", given, LOGS, 60 * x, std, weights, 0.9, 0.3)
    right(name, 8)


class _Recorder:
    """A gradient that keeps where it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        return 1 + x**2


def guided_step(fn: Callable) -> None:
    """Exercise 4: fn(x, x0, a_x0, a_x, var, gradient, scale, noise) -> like x; a_x0, a_x, var are numbers."""
    name, (x, x0, noise) = "guided_step", _draw(3, 5, 2, seed=7)
    sizes = "x, x0 and noise are (b, d), a_x0, a_x, var and scale are numbers: all multiply as they are"
    a_x0, a_x, var = 0.3, 0.6, 0.04
    mean, still = a_x0 * x0 + a_x * x, torch.zeros_like(x)

    def ask(scale: float, noise: Tensor) -> tuple[Tensor, _Recorder]:
        gradient = _Recorder()
        step = lambda x, x0, noise: fn(x, x0, a_x0, a_x, var, gradient, scale, noise)  # noqa: E731
        out = _call(name, sizes, step, x, x0, noise)
        is_tensor_like(name, "the next x", out, x, "like x")
        return out, gradient

    out, _ = ask(0.0, still)
    is_close(name, "scale 0 and no noise give the mean of the posterior", "scale = 0, noise = 0", out, mean, MEAN, 1e-9)
    out, _ = ask(0.0, noise)
    prop = "noise has the standard deviation root var"
    is_close(name, prop, "var = 0.04, scale = 0", out, mean + 0.2 * noise, NOISE, 1e-9)
    out, gradient = ask(2.0, still)
    if len(gradient.asked) != 1:
        fail(name, "the gradient is asked for once", "scale = 2", f"{len(gradient.asked)} times", ONCE)
    is_close(name, "the gradient is taken at x_t", "scale = 2, noise = 0", gradient.asked[0], x, AT_X, 1e-9)
    due, given = mean + 2 * var * (1 + x**2), "var = 0.04, scale = 2, noise = 0"
    hint = UP if torch.allclose(out, 2 * mean - due) else BY_VAR
    is_close(name, "the mean moves by scale times var times the gradient", given, out, due, hint, 1e-9)
    out, _ = ask(2.0, noise)
    prop, given = "guidance moves the mean, and leaves the noise as it is", "var = 0.04, scale = 2, with noise"
    is_close(name, prop, given, out, due + 0.2 * noise, NOISE, 1e-9)
    right(name, 5)


def tempting_law(fn: Callable) -> None:
    """Exercise 5: fn(x, log_p, scale), draws x (n, d) of p(x | y), log p(y | x) of each (n,) -> mean, var: (d,)."""
    name, n = "tempting_law", 20_001
    sizes = "each row of x has one weight: (n,) must become (n, 1) before it multiplies (n, d)"
    even = (torch.arange(n, dtype=F64) + 0.5) / n
    z = torch.distributions.Normal(torch.tensor(0.0, dtype=F64), 1.0).icdf(even)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(8))
    x = torch.stack([z, z[order] + 1], 1)  # N(0, 1) and N(1, 1), independent
    log_p = -((x[:, 0] - 1.5) ** 2) / 2

    def ask(scale: float, log_p: Tensor = log_p) -> tuple[Tensor, Tensor]:
        out = _call(name, sizes, fn, x, log_p, scale)
        if not isinstance(out, tuple | list) or len(out) != 2:
            fail(name, "two tensors come back", "any", type(out).__name__, "return mean, var")
        for what, part in zip(("the mean", "the variance"), out, strict=True):
            is_tensor_like(name, what, part, x[0], "one number a coordinate, shape (d,)")
        return out[0], out[1]

    given = "20,001 draws in the plane; the class depends on the first coordinate"
    plain = x.mean(0), x.var(0, correction=0)
    for what, came, due in zip(("mean", "variance"), ask(1.0), plain, strict=True):
        is_close(name, f"at scale 1 the {what} is that of the draws", given, came, due, CONVENTION, 1e-3)
    for shift, how in ((2.0, "log p + 2"), (-2000.0, "log p - 2000")):
        hint = SELF if shift > 0 else STABLE
        for what, came, due in zip(("mean", "variance"), ask(2.0, log_p + shift), ask(2.0), strict=True):
            is_close(name, f"a factor common to all p(y|x) leaves the {what}", f"{how}, scale 2", came, due, hint, 1e-6)
    for scale in (0.5, 2.0, 5.0):
        precision = 1 + (scale - 1)  # of N(0, 1) times exp((scale - 1) log p)
        due = torch.tensor([[(scale - 1) * 1.5 / precision, 1.0], [1 / precision, 1.0]], dtype=F64)
        mean, var = ask(scale)
        case = f"first coordinate of p(x|y): N(0, 1), log p(y|x) = -(x - 1.5)^2 / 2, scale {scale}"
        is_close(name, "the mean is that of p(x) p(y|x)^scale", case, mean, due[0], CONVENTION, 0.1)
        # the weights of finitely many draws leave a little: the closed form to 10 %, the weighted spread exactly
        w = ((scale - 1) * log_p).softmax(0)[:, None]
        is_close(name, "so it is, for these draws", case, mean, (w * x).sum(0), CONVENTION, 1e-6)
        spread = (w * (x - (w * x).sum(0)) ** 2).sum(0)
        hint = ROOT if torch.allclose(var**2, spread, rtol=1e-3) else WEIGHTED
        is_close(name, "the variance is that of p(x) p(y|x)^scale", case, var, due[1], hint, 0.15)
        is_close(name, "so it is, for these draws", case, var, spread, hint, 1e-3)
    right(name, 6)
