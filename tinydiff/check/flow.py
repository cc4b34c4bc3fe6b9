"""Checks of exercises 10: a velocity from a score, pairs on a line, points, another paper's network."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from tinydiff.check.core import call, fail, is_close, is_tensor_like, right
from tinydiff.targets import Prediction

F64 = torch.float64

VELOCITY = (
    "the velocity is alpha' x0 + sigma' eps, for any path; the score is -eps / sigma, and x = alpha x0 + sigma eps "
    "gives x0"
)
SIGN = "the sign is turned round: dx/dt is with t growing, from data to noise, so it points away from the data"
OF_SCORE = (
    "somewhere a sign is turned round: the score points to where data are likelier, so eps is *minus* sigma times the "
    "score, and x = alpha x0 + sigma eps has to hold for x0 and this eps"
)
HALF = "that is the drift of the reverse SDE: the ODE has half of its score"
ANGLE = "alpha eps - sigma x0 is the target v; it is a velocity on the cosine path only, and there up to pi / 2"
SAME_NOISE = "only the order may change: each noise is used once"
ROWS = "entry i goes with x0[i], which stays where it is; the noise's rank must be the rank of x0[i] (argsort twice)"
ORDER = "on a line the cheapest pairs do not cross: small goes with small and large with large"
BAYES = (
    "which point did x come from? N((1 - t) point, t^2 I) says how likely each is; then the velocity is the mean of "
    "eps - x0"
)
STABLE = "far from all points every density is 0 in floating point: take a softmax of logarithms"
TAU = (
    "find tau at which their path has the ratio of signal to noise that td.Flow() has at t; their time runs the other "
    "way, and sigma_min is in it"
)
SCALE = "at equal ratios of signal to noise their point is a multiple of ours: how do alpha and sigma compare?"
SOLVE = "two equations, what the network sees and what it says, for two unknowns, x1 and z; sigma_min is in both"


def velocity_from_score(fn: Callable) -> None:
    """Exercise 1: fn(x, score, alpha, sigma, dalpha, dsigma) -> dx/dt; x and score (b, d), the others (b,)."""
    name, h = "velocity_from_score", 1e-5
    paths = {
        "the straight path": (lambda t: 1 - t, lambda t: t),
        "a variance-preserving path": (lambda t: (-3 * t**2).exp(), lambda t: (1 - (-6 * t**2).exp()).sqrt()),
        "a path with alpha = 1": (lambda t: torch.ones_like(t), lambda t: 3 * t**2),
        "a path of no name": (lambda t: 1 + t**2, lambda t: t.sin()),
    }
    g = torch.Generator().manual_seed(0)
    m, s = 0.7, 0.4  # the data are N(m, s^2) in each coordinate
    t = torch.tensor([0.2, 0.5, 0.8, 0.35, 0.65], dtype=F64)
    z = torch.randn(5, 3, generator=g, dtype=F64)

    def at(path: tuple, t: Tensor) -> Tensor:
        """Where the flow has carried z: it keeps its place in units of the standard deviation."""
        alpha, sigma = (f(t)[:, None] for f in path)
        return alpha * m + (alpha**2 * s**2 + sigma**2).sqrt() * z

    for given, path in paths.items():
        (alpha, dalpha), (sigma, dsigma) = (torch.func.jvp(f, (t,), (torch.ones_like(t),)) for f in path)
        x = at(path, t)
        score = -(x - alpha[:, None] * m) / (alpha**2 * s**2 + sigma**2)[:, None]
        out = call(name, fn, x, score, alpha, sigma, dalpha, dsigma)
        is_tensor_like(name, "the velocity", out, x)
        moves = (at(path, t + h) - at(path, t - h)) / (2 * h)
        hint = VELOCITY
        f = (dalpha / alpha)[:, None]
        if torch.allclose(out, f * x + 2 * (moves - f * x)):
            hint = HALF
        elif torch.allclose(out, -moves):
            hint = SIGN
        elif any(torch.allclose(out, wrong) for wrong in _wrong_signs(x, score, alpha, sigma, dalpha, dsigma)):
            hint = OF_SCORE
        else:
            eps = -sigma[:, None] * score
            x0 = (x - sigma[:, None] * eps) / alpha[:, None]
            if torch.allclose(out, alpha[:, None] * eps - sigma[:, None] * x0):
                hint = ANGLE
        prop = "a point of the flow of Gaussian data moves with this velocity (by differences in t)"
        is_close(name, prop, given, out, moves, hint, 1e-6)
    right(name, 2)


def _wrong_signs(x: Tensor, score: Tensor, *coefs: Tensor) -> list[Tensor]:
    """With the wrong sign of the score in x0, in eps, or in both."""
    alpha, sigma, dalpha, dsigma = (c[:, None] for c in coefs)
    x0, eps = ([(x + s * sigma**2 * score) / alpha for s in (1, -1)], [-s * sigma * score for s in (1, -1)])
    return [dalpha * x0[i] + dsigma * eps[j] for i, j in ((1, 0), (0, 1), (1, 1))]


def sorted_pairs(fn: Callable) -> None:
    """Exercise 2: fn(x0, eps) -> (b,), eps in the order in which row i goes with x0[i] at the least cost."""
    name = "sorted_pairs"
    g = torch.Generator().manual_seed(0)
    for b in (6, 5, 300):
        x0, eps = torch.randn(b, generator=g, dtype=F64) ** 3, torch.randn(b, generator=g, dtype=F64)
        given = f"{b} numbers x0 in no order, and as many eps"
        out = call(name, fn, x0, eps)
        is_tensor_like(name, "the answer", out, eps, "one noise for each entry of x0")
        if not torch.equal(out.sort().values, eps.sort().values):
            fail(
                name, "the answer holds the noise that came in, each once", given, f"{out[:4].tolist()} ...", SAME_NOISE
            )
        cost = (x0 - out).square().sum().item()
        if b < 10:  # all pairings there are
            least = min((x0 - eps[list(p)]).square().sum().item() for p in itertools.permutations(range(b)))
            if not cost <= least + 1e-9:
                prop = f"no pairing of the {b} costs less: the least sum of (x0 - eps)^2 is {least:.4f}"
                fail(name, prop, given, f"{cost:.4f}", _order_or_rows(x0, eps, out))
        crossings = int((((x0[:, None] - x0) * (out[:, None] - out)) < 0).sum()) // 2
        if crossings:
            prop = "no two lines from eps to x0 cross"
            fail(name, prop, given, f"{crossings} crossings", _order_or_rows(x0, eps, out))
    right(name, 3)


def _order_or_rows(x0: Tensor, eps: Tensor, out: Tensor) -> str:
    """Whether the right noise stands in the wrong rows, or the order itself is wrong."""
    return ROWS if not torch.equal(out, eps.sort(descending=True).values[x0.argsort().argsort()]) else ORDER


def points_velocity(fn: Callable) -> None:
    """Exercise 3: fn(x, t, points) -> E[eps - x0 | x] on the straight path; x (b, d), t (b,), points (n, d)."""
    name = "points_velocity"
    line = torch.tensor([-1.5, -0.2, 0.4, 1.8], dtype=F64)
    x, h = torch.linspace(-2, 2, 9, dtype=F64), 1e-5
    for time in (0.25, 0.5, 0.9):
        given = f"four points on a line, t = {time}"
        t = torch.full_like(x, time)
        out = call(name, fn, x[:, None], t, line[:, None])
        is_tensor_like(name, "the velocity", out, x[:, None])

        def below(t: Tensor) -> Tensor:
            """The share of the mass below x at time t, whose change is what flows through x."""
            return torch.special.ndtr((x[:, None] - (1 - t[:, None]) * line) / t[:, None]).mean(1)

        away = (x[:, None] - (1 - time) * line) / time
        density = (-(away**2) / 2).exp().mean(1) / (2 * torch.pi) ** 0.5 / time
        flows = -(below(t + h) - below(t - h)) / (2 * h) / density
        prop = "mass is kept: velocity times density is the rate at which mass passes x"
        hint = SIGN if torch.allclose(out[:, 0], -flows, atol=1e-6) else BAYES
        is_close(name, prop, given, out[:, 0], flows, hint, 1e-6)
    g = torch.Generator().manual_seed(0)
    x, points = torch.randn(6, 3, generator=g, dtype=F64), torch.randn(5, 3, generator=g, dtype=F64)
    t = torch.linspace(0.3, 0.9, 6, dtype=F64)
    out = call(name, fn, x, t, points)
    is_tensor_like(name, "the velocity", out, x)
    given = "5 points in three dimensions, a time for each x"
    one = call(name, fn, x, t, points[:1])
    is_close(
        name, "one point: x moves away from it, at (x - point) / t", given, one, (x - points[0]) / t[:, None], BAYES
    )
    axes = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=F64)).Q
    turned = call(name, fn, x @ axes, t, points @ axes)
    is_close(name, "turning x and the points turns the velocity", given, turned, out @ axes, BAYES)
    twice = call(name, fn, x, t, torch.cat([points, points]))
    is_close(name, "the same points twice are the same data", given, twice, out, BAYES)
    end = call(name, fn, x, torch.ones(6, dtype=F64), points)
    is_close(name, "at t = 1, x says nothing of x0", given, end, x - points.mean(0), BAYES)
    near, t = 40 + torch.zeros(2, 3, dtype=F64), torch.full((2,), 1e-3, dtype=F64)
    nearest = points[(near[0] - (1 - t[0]) * points).square().sum(1).argmin()]
    out = call(name, fn, near, t, points)
    prop = "far away with little noise, only the nearest point counts"
    is_close(name, prop, "x = (40, 40, 40), t = 0.001", out, (near - nearest) / t[:, None], STABLE)
    right(name, 7)


def adopt_lipman(fn: Callable) -> None:
    """Exercise 4: fn(net, x, t, sigma_min) -> Prediction on td.Flow() by a network of Lipman et al.

    net(y, tau) says E[x1 - (1 - sigma_min) z | y] for y = tau x1 + (1 - (1 - sigma_min) tau) z; x (b, ...), t (b,).
    """
    name = "adopt_lipman"
    g = torch.Generator().manual_seed(0)
    points = 1.5 * torch.randn(5, 4, generator=g, dtype=F64)

    def belief(y: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x1 | y] and E[z | y] for y = alpha x1 + sigma z, by Bayes' rule over the five points."""
        away = y[:, None] - alpha[:, None, None] * points
        r = (-away.square().sum(2) / (2 * sigma[:, None] ** 2)).softmax(1)
        return r @ points, (r[:, :, None] * away).sum(1) / sigma[:, None]

    for sigma_min, shape in ((0.0, (4,)), (0.1, (4,)), (0.3, (1, 2, 2))):
        given = f"sigma_min = {sigma_min}, x of shape (6, {', '.join(map(str, shape))})"
        t = torch.tensor([0.25, 0.4, 0.55, 0.7, 0.85, 1.0], dtype=F64)
        x = 1.5 * torch.randn(6, 4, generator=g, dtype=F64)
        asked: list[tuple[Tensor, Tensor]] = []

        def net(y: Tensor, tau: Tensor, sigma_min: float = sigma_min, asked: list = asked) -> Tensor:
            asked.append((y, tau))
            if not isinstance(tau, Tensor) or tau.shape != y.shape[:1]:
                raise ValueError(f"tau must be one time for each y, of shape {tuple(y.shape[:1])}")
            if not ((tau >= -1e-9) & (tau <= 1 + 1e-9)).all():
                raise ValueError(f"tau must lie in [0, 1]; got {tau.min().item():g} to {tau.max().item():g}")
            x1, z = belief(y.flatten(1), tau, 1 - (1 - sigma_min) * tau)
            return (x1 - (1 - sigma_min) * z).reshape(y.shape)

        out = call(name, fn, net, x.reshape(6, *shape), t, sigma_min)
        if not isinstance(out, Prediction):
            fail(name, "the answer is a td.Prediction", given, type(out).__name__, "return td.Prediction(x0, eps)")
        x0, eps = belief(x, 1 - t, t)
        for what, mine in (("x0", out.x0), ("eps", out.eps)):
            is_tensor_like(name, what, mine, x.reshape(6, *shape))
        if not asked:
            fail(name, "the network is asked", given, "no call of net", "net(y, tau) knows the data; you do not")
        y, tau = asked[-1]
        if not (tau.isfinite().all() and y.isfinite().all()):
            prop, hint = (
                "tau and y are finite at every t, t = 1 among them",
                "at t = 1 sigma / alpha is infinite: avoid it",
            )
            fail(name, prop, given, "nan or infinity", hint)
        ratio = tau * t - (1 - t) * (1 - (1 - sigma_min) * tau)
        is_close(name, "signal / noise at tau is what it is at t", given, ratio, torch.zeros(6, dtype=F64), TAU)
        scaled = y.flatten(1) * t[:, None] - x * (1 - (1 - sigma_min) * tau)[:, None]
        prop = "the network is shown x at the scale of its own path"
        is_close(name, prop, given, scaled, torch.zeros_like(x), SCALE)
        mine = (1 - t)[:, None] * out.x0.flatten(1) + t[:, None] * out.eps.flatten(1)
        is_close(name, "x = (1 - t) x0 + t eps", given, mine, x, SOLVE)
        is_close(name, "x0 is the mean of what x may have come from (Bayes)", given, out.x0.flatten(1), x0, SOLVE)
        is_close(name, "eps is the mean of the noise in x (Bayes)", given, out.eps.flatten(1), eps, SOLVE)
    right(name, 5)
