"""Checks of exercises 06: paths and their SDEs, the family forwards, colouring, the corrector. Each by another way."""

import math
from collections.abc import Callable

import torch

from tinydiff.check.core import STANDARD_ERRORS, call, fail, is_close, is_tensor_like, right
from tinydiff.samplers import langevin_corrector

F64 = torch.float64
RATE = "the mean of x obeys m' = f m, and it is alpha x0"
SPREAD = "the variance obeys V' = 2 f V + g^2, and it is sigma^2: what does the drift alone do to it?"
LIKE_T = "f and g2 are (b,), a number for each time; take derivatives of the sum over the batch, or one by one"
BALANCE = (
    "the noising spreads by g^2 and a noise of lam g by lam^2 g^2; what is missing, or too much, is the score's part"
)
NOISE = "a Wiener process moves by sqrt(dt) z in a time dt, and it is multiplied by lam g"
ALONG = "u.x = alpha u.x0 + sigma u.eps; how large is u.eps, for a direction of length |u|?"
ACROSS = "only the component of x along u may change; divide by the length of u twice, or normalise it first"
SETTLE = (
    "the step depends on the spread V of the chains themselves: |score| / |z| is sqrt(V) / v; put that into "
    "V = (1 - eps / v)^2 V + 2 eps"
)


def path_to_sde(fn: Callable) -> None:
    """Exercise 1: fn(alpha, sigma, t) -> (f, g2), each (b,), for functions alpha, sigma of a (b,) float64 tensor."""
    name, h = "path_to_sde", 1e-5
    t = torch.tensor([0.1, 0.25, 0.5, 0.8], dtype=F64)
    paths = {
        "alpha = 1, sigma = 0.1 * 50^t": (lambda t: 1 + 0 * t, lambda t: 0.1 * 50**t),
        "alpha = exp(-t^2), sigma^2 = 1 - alpha^2": (
            lambda t: torch.exp(-(t**2)),
            lambda t: torch.sqrt(-torch.expm1(-2 * t**2)),
        ),
        "alpha = 1 - t, sigma = t": (lambda t: 1 - t, lambda t: 1 * t),
        "alpha = exp(-2t), sigma = 1 - alpha^2": (lambda t: torch.exp(-2 * t), lambda t: -torch.expm1(-4 * t)),
    }
    for given, (alpha, sigma) in paths.items():
        out = call(name, fn, alpha, sigma, t)
        if not isinstance(out, tuple) or len(out) != 2:
            fail(name, "a pair (f, g2) comes back", given, type(out).__name__, "return f, g2")
        f, g2 = out
        is_tensor_like(name, "f", f, t, LIKE_T)
        is_tensor_like(name, "g2", g2, t, LIKE_T)
        # differences instead of derivatives; and g^2 as alpha^2 (sigma^2 / alpha^2)', which has no f in it
        rate = ((alpha(t + h)).log() - (alpha(t - h)).log()) / (2 * h)
        ratio = lambda t: (sigma(t) / alpha(t)) ** 2  # noqa: B023, E731
        spread = alpha(t) ** 2 * (ratio(t + h) - ratio(t - h)) / (2 * h)
        where = f"{given}, t = {t.tolist()}"
        prop = "(1 + f dt) alpha(t) is alpha(t + dt), for small dt"
        is_close(name, prop, where, f.detach(), rate, RATE, 1e-6)
        prop = "(1 + 2 f dt) sigma(t)^2 + g2 dt is sigma(t + dt)^2, for small dt (shown: g2)"
        is_close(name, prop, where, g2.detach(), spread, SPREAD, 1e-6)
    right(name, 2)


def noising_family(fn: Callable) -> None:
    """Exercise 2: fn(x, score, f, g2, lam, dt, z) -> x a time dt later; x, score, z are (b, d), the rest numbers."""
    name = "noising_family"
    g = torch.Generator().manual_seed(0)
    x, score, z = (torch.randn(6, 2, generator=g, dtype=F64) for _ in range(3))
    for lam in (0.0, 0.5, 1.0, 2.0):
        for f, g2, dt in ((-0.7, 1.4, 0.01), (0.0, 3.0, 0.002), (-2.0, 0.5, 0.05)):
            given = f"f = {f}, g2 = {g2}, lam = {lam}, dt = {dt}"
            out = call(name, fn, x, score, f, g2, lam, dt, z)
            is_tensor_like(name, "x", out, x, "return x of the later time")
            parts = torch.stack([x.flatten(), score.flatten(), z.flatten()], 1)
            found = torch.linalg.lstsq(parts, (out - x).flatten()[:, None]).solution[:, 0]
            gap = (parts @ found - (out - x).flatten()).abs().max().item()
            if not gap <= 1e-9:
                prop = "the step is a sum of x, score and z, each times a number"
                fail(name, prop, given, f"a rest of {gap:.3g}", "nothing else enters an Euler step")
            noise = found[2:] ** 2 / dt
            prop = "the variance of the noise, per unit of time, is lam^2 g2"
            is_close(name, prop, given, noise, torch.tensor([lam**2 * g2], dtype=F64), NOISE, 1e-8)
            prop = "the drift holds f x, per unit of time (shown: f)"
            is_close(name, prop, given, found[:1] / dt, torch.tensor([f], dtype=F64), "f is the drift's", 1e-8)
            # a Gaussian of variance v has score -x / v, and its variance has to grow as that of the noising SDE
            for v in (0.3, 2.0):
                grows = 2 * v * (found[:1] - found[1:2] / v) / dt + noise
                prop = f"the variance of N(0, {v:g}) grows at the rate 2 f v + g2, whatever lam is"
                is_close(name, prop, given, grows, torch.tensor([2 * f * v + g2], dtype=F64), BALANCE, 1e-8)
    right(name, 4)


def paste_along(fn: Callable) -> None:
    """Exercise 3: fn(x, u, y, alpha, sigma, z) -> x whose component along u is that of noised data with u.x0 = y.

    x is (b, d), u (d,) of any length, y and z (b,), alpha and sigma numbers.
    """
    name = "paste_along"
    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(*s, generator=g, dtype=F64) for s in ((7, 3), (7,), (7,)))
    for u in ([1.0, 0.0, 0.0], [3**-0.5] * 3, [0.0, -1.5, 2.0]):
        u = torch.tensor(u, dtype=F64)
        for alpha, sigma in ((1.0, 0.0), (0.8, 0.6), (1.0, 3.0)):
            given = f"u = {[round(v, 3) for v in u.tolist()]}, alpha = {alpha}, sigma = {sigma}"
            out = call(name, fn, x, u, y, alpha, sigma, z)
            is_tensor_like(name, "x", out, x)
            basis = torch.linalg.qr(torch.cat([u[:, None], torch.eye(3, dtype=F64)], 1)).Q  # the first axis is u's
            prop = "what is at right angles to u stays as it was"
            is_close(name, prop, given, out @ basis[:, 1:], x @ basis[:, 1:], ACROSS, 1e-9)
            silent = call(name, fn, x, u, y, alpha, sigma, 0 * z)
            prop = "without noise (z = 0), u.x is alpha y"
            is_close(name, prop, given, silent @ u, alpha * y, ALONG, 1e-9)
            prop = "the noise in u.x has the standard deviation that u.x of noised data has"
            many = torch.linspace(0, 1, 2002, dtype=F64)[1:-1]
            draws = torch.special.ndtri(many)[:, None] * u  # eps along u, evenly in probability, and nothing across it
            spread = (sigma * (draws / u.norm()) @ u).std(correction=0) / torch.special.ndtri(many).std(correction=0)
            is_close(name, prop, given, ((out - silent) @ u / z).abs(), spread.expand(len(z)), ALONG, 1e-9)
    right(name, 3)


def corrector_spread(fn: Callable) -> None:
    """Exercise 4: fn(r, a) -> V / v, where the corrector of ratio r and factor a settles on data N(0, v)."""
    name, n = "corrector_spread", 40_000
    for r, a in ((0.16, 1.0), (0.5, 1.0), (1.0, 0.5), (0.8, 0.98)):
        given = f"r = {r}, a = {a}"
        value = torch.as_tensor(call(name, fn, r, a), dtype=F64)
        if value.ndim:
            fail(name, "the answer is one number", given, f"shape {tuple(value.shape)}", "return a number")
        g, v = torch.Generator().manual_seed(0), 0.49
        x = math.sqrt(1.2 * v) * torch.randn(n, 1, generator=g, dtype=F64)
        for _ in range(math.ceil(4 / (a * r**2))):
            x = langevin_corrector(-x / v, x, torch.randn(n, 1, generator=g, dtype=F64), a, r)
        came, margin = x.var().item() / v, STANDARD_ERRORS * math.sqrt(2 / n) * max(value.item(), 1.0)
        if not abs(value.item() - came) <= margin:
            prop = f"{n:,} chains settle there: their variance is {came:.3f} v (to {margin:.3f})"
            fail(name, prop, given, f"{value.item():.4f}", SETTLE)
        ratio = 1.0  # the same without chance: the variance of one step after another
        for _ in range(5000):
            eps = 2 * a * r**2 / ratio  # in units of v
            ratio = (1 - eps) ** 2 * ratio + 2 * eps
        prop = "one more step leaves the variance as it is"
        is_close(name, prop, given, value[None], torch.tensor([ratio], dtype=F64), SETTLE, 1e-6)
    right(name, 2)
