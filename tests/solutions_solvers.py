"""Solutions of exercises 09, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td

F64 = torch.float64

# ---- exercise 1 --------------------------------------------------------------------------------------


def levels_for_calls(calls, low, high, rho):
    n = (calls + 1) // 2
    ramp = torch.linspace(high ** (1 / rho), low ** (1 / rho), n, dtype=F64) ** rho
    return torch.cat([ramp, torch.zeros(1, dtype=F64)])


def levels_one_by_one(calls, low, high, rho):
    n, out = 1, []
    while 2 * (n + 1) - 1 <= calls:
        n += 1
    for i in range(n):
        u = i / (n - 1)
        out.append(((1 - u) * high ** (1 / rho) + u * low ** (1 / rho)) ** rho)
    return torch.tensor([*out, 0.0], dtype=F64)


def levels_with(steps=lambda c: (c + 1) // 2, power=lambda r: 1 / r, end=0.0, dtype=F64, zero=True):
    def f(calls, low, high, rho):
        n, p = steps(calls), power(rho)
        ramp = torch.linspace(high**p, low**p, n, dtype=F64) ** (1 / p)
        return torch.cat([ramp, torch.full((1,), end, dtype=F64)] if zero else [ramp]).to(dtype)

    return f


def levels_into_zero(calls, low, high, rho):
    n = (calls + 1) // 2
    return torch.linspace(high ** (1 / rho), 0.0, n + 1, dtype=F64) ** rho


def levels_even_in_log(calls, low, high, rho):
    n = (calls + 1) // 2
    ramp = torch.linspace(math.log(high), math.log(low), n, dtype=F64).exp()
    return torch.cat([ramp, torch.zeros(1, dtype=F64)])


LEVELS_MUTANTS = {
    "a step a call": (levels_with(lambda c: c), "steps that 35 calls pay for"),
    "two calls in the last step too": (levels_with(lambda c: c // 2), "steps that 35 calls pay for"),
    "calls rounded up": (levels_with(lambda c: c // 2 + 1), "steps that 36 calls pay for"),
    "no zero": (levels_with(zero=False), "steps that 35 calls pay for.*one more level, 0"),
    "the zero in the ramp": (levels_into_zero, "the last but one is low"),
    "rising": (lambda c, a, b, r: levels_for_calls(c, b, a, r), "the first level is high"),
    "rho for its inverse": (levels_with(power=lambda r: r), "the power 1/rho are evenly"),
    "even in sigma": (levels_with(power=lambda r: 1.0), "the power 1/rho are evenly"),
    "even in log": (levels_even_in_log, "the power 1/rho are evenly"),
    "ends in low twice": (levels_with(end=0.002), "the last level is 0"),
    "float32": (levels_with(dtype=torch.float32), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def unit_variance(alpha, sigma, std, skip):
    c_out = math.hypot((1 - skip * alpha) * std, skip * sigma)
    return 1 / math.hypot(alpha * std, sigma), c_out, c_out**-2


def unit_variance_by_covariance(alpha, sigma, std, skip):
    """Var(x0 - skip x) = Var x0 - 2 skip Cov(x0, x) + skip^2 Var x."""
    var_x = alpha**2 * std**2 + sigma**2
    var = std**2 - 2 * skip * alpha * std**2 + skip**2 * var_x
    return torch.tensor(var_x, dtype=F64).rsqrt(), torch.tensor(var, dtype=F64).sqrt(), 1 / var


def unit_variance_in_float32(alpha, sigma, std, skip):
    """Tensors without dimensions, as a learner may have them."""
    a, s, d = (torch.tensor(v) for v in (alpha, sigma, std))
    c_out = torch.hypot((1 - skip * a) * d, skip * s)
    return [1 / torch.hypot(a * d, s), c_out, c_out**-2]


def unit_with(var_in=None, var_out=None, root=True, weight=lambda c: c**-2, order=(0, 1, 2)):
    def f(alpha, sigma, std, skip):
        total = (var_in or (lambda a, s, d: a**2 * d**2 + s**2))(alpha, sigma, std)
        v = (var_out or (lambda a, s, d, k: (1 - k * a) ** 2 * d**2 + k**2 * s**2))(alpha, sigma, std, skip)
        c = v**0.5 if root else v
        out = total**-0.5, c, weight(c)
        return tuple(out[i] for i in order)

    return f


UNIT_MUTANTS = {
    "the standard deviation of x itself": (
        lambda a, s, d, k: (math.hypot(a * d, s), *unit_variance(a, s, d, k)[1:]),
        "input has variance 1",
    ),
    "input: alpha forgotten": (unit_with(var_in=lambda a, s, d: d**2 + s**2), "input has variance 1"),
    "input: standard deviations added": (unit_with(var_in=lambda a, s, d: (a * d + s) ** 2), "input has variance 1"),
    "EDM's c_out for any skip": (
        unit_with(var_out=lambda a, s, d, k: s**2 * d**2 / (s**2 + d**2)),
        "what F has to say has variance 1",
    ),
    "1 - skip without alpha": (
        unit_with(var_out=lambda a, s, d, k: (1 - k) ** 2 * d**2 + k**2 * s**2),
        "what F has to say has variance 1",
    ),
    "noise not counted": (unit_with(var_out=lambda a, s, d, k: (1 - k * a) ** 2 * d**2 + 1e-9), "what F has to say"),
    "no covariance": (
        unit_with(var_out=lambda a, s, d, k: d**2 + k**2 * (a**2 * d**2 + s**2)),
        "what F has to say has variance 1",
    ),
    "a variance for c_out": (unit_with(root=False), "what F has to say has variance 1"),
    "the weight upside down": (unit_with(weight=lambda c: c**2), r"weight \(D - x0\)\^2"),
    "the weight of standard deviations": (unit_with(weight=lambda c: 1 / c), r"weight \(D - x0\)\^2"),
    "EDM's weight for any skip": (
        lambda a, s, d, k: (*unit_variance(a, s, d, k)[:2], (s**2 + d**2) / (s * d) ** 2),
        r"weight \(D - x0\)\^2",
    ),
    "another order": (unit_with(order=(1, 0, 2)), "input has variance 1"),
    "negative c_out": (unit_with(order=(0, 1, 2), weight=lambda c: -(c**-2)), "one positive number"),
    "two numbers": (lambda *a: unit_variance(*a)[:2], "three numbers.*2 of them"),
    "one tensor": (lambda *a: torch.tensor(unit_variance(*a)), r"three numbers.*a tensor of shape \(3,\)"),
    "columns": (lambda *a: tuple(torch.tensor([v]) for v in unit_variance(*a)), r"c_in is one number.*shape \(1,\)"),
    "nothing for the weight": (lambda *a: (*unit_variance(*a)[:2], None), "weight is one number.*NoneType"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def order_without_truth(coarse, middle, fine):
    return math.log2((coarse - middle).norm() / (middle - fine).norm())


def order_by_mean_size(coarse, middle, fine):
    first, second = ((a - b).abs().mean() for a, b in ((coarse, middle), (middle, fine)))
    return (first.log() - second.log()) / math.log(2)


def order_with(first=lambda a, b, c: a - b, second=lambda a, b, c: b - c, size=torch.norm, log=math.log2):
    return lambda a, b, c: log(size(first(a, b, c)) / size(second(a, b, c)))


ORDER_MUTANTS = {
    "upside down": (order_with(lambda a, b, c: b - c, lambda a, b, c: a - b), "sign is turned round"),
    "natural logarithm": (order_with(log=math.log), "the order 1.00"),
    "the ratio itself": (order_with(log=float), "the order 1.00"),
    "the finest run for the truth": (order_with(lambda a, b, c: a - c), "the order 1.00"),
    "the finest run for the truth, a step of 4": (
        lambda a, b, c: math.log2((a - c).norm() / (b - c).norm()) / 2,
        "the order 1.00",
    ),
    "squares": (order_with(size=lambda v: v.square().mean()), "the order 1.00"),
    "rounded": (lambda a, b, c: float(round(order_without_truth(a, b, c))), "the order 1.50"),
    "signed sums": (order_with(size=lambda v: v.sum().abs() + 1e-12), "the order 1.00"),
    "sizes of the runs": (order_with(lambda a, b, c: a, lambda a, b, c: b), "the order 1.00"),
    "point by point": (lambda a, b, c: torch.log2((a - b).norm(dim=1) / (b - c).norm(dim=1)).mean(), "the order 1.00"),
    "one for each point": (
        lambda a, b, c: torch.log2((a - b + 1e-9).norm(dim=1) / (b - c + 1e-9).norm(dim=1)),
        "one number",
    ),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


@td.sampler
def adams(d, x, ts):
    before, h_before = None, None
    for t, s in td.pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        h = cs.sigma / cs.alpha - ct.sigma / ct.alpha
        slope = p.eps
        if before is not None and s > 0:
            slope = slope + h / h_before / 2 * (slope - before)
        x = cs.alpha * (x / ct.alpha + h * slope)
        before, h_before = p.eps, h
        yield td.State(s, x, p.x0)


def adams_by_integral(d, x, ts):
    """The line through two beliefs, integrated: no decorator, a list of the past."""
    past = []
    for t, s in td.pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        a, b = ct.sigma / ct.alpha, cs.sigma / cs.alpha
        past.append((a, p.eps))
        z = x / ct.alpha + (b - a) * p.eps
        if len(past) > 1 and s > 0:
            (a0, e0), (a1, e1) = past[-2:]
            z = z + (e1 - e0) / (a1 - a0) * (b - a) ** 2 / 2
        x = cs.alpha * z
        yield td.State(s, x, p.x0)


def adams_with(
    factor=lambda h, hb: h / hb / 2,
    last=False,
    scale=True,
    at_end=False,
    extra=lambda d, x, s, p: p,
    noise=0.0,
    remember=True,
    time=lambda t, s: s,
    x0=lambda p, past: p.x0,
    wrap=lambda s: s,
):
    def f(d, x, ts):
        before, h_before = None, None
        for t, s in td.pairs(ts):
            p = d(x, s) if at_end else d(x, t)
            ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
            at, a_s = (ct.alpha, cs.alpha) if scale else (1.0, 1.0)
            h = cs.sigma / cs.alpha - ct.sigma / ct.alpha
            slope = p.eps
            if before is not None and (s > 0 or last):
                slope = slope + factor(h, h_before) * (slope - before)
            x = a_s * (x / at + h * slope)
            if s > 0:
                x = x + noise * torch.randn_like(x)
                extra(d, x, s, p)
            state = td.State(time(t, s), x, x0(p, before))
            if before is None or remember:
                before, h_before = p.eps, h
            yield wrap(state)

    return f


def adams_in_place(d, x, ts):
    for state in adams(d, x.clone(), ts):
        x.copy_(state.x)
        yield td.State(state.t, x.clone(), state.x0)


def adams_last_only(d, x, ts):
    *_, state = adams(d, x, ts)
    yield state


def adams_in_float64(d, x, ts):
    return adams(d, x.double(), ts)


def adams_wrong_first(d, x, ts):
    ts = torch.as_tensor(ts)
    yield from td.heun(d, x, ts[:2])
    raise RuntimeError("the history starts here")


def returns_x(d, x, ts):
    return td.final(adams(d, x, ts))


ADAMS_MUTANTS = {
    "first order": (td.euler, "on a line"),
    "DDIM": (td.ddim, "on a line"),
    "two calls a step": (td.heun, r"asked 7 times|13 calls"),
    "2M": (td.dpmpp_2m, "on a line"),
    "steps taken for equal": (adams_with(lambda h, hb: 0.5), "on a line"),
    "the ratio upside down": (adams_with(lambda h, hb: hb / h / 2), "on a line"),
    "no half": (adams_with(lambda h, hb: h / hb), "on a line"),
    "towards the past": (adams_with(lambda h, hb: -h / hb / 2), "on a line"),
    "the first belief for ever": (adams_with(remember=False), "on a line"),
    "extrapolated into t = 0": (adams_with(last=True), "into t = 0 returns the belief"),
    "alpha forgotten": (adams_with(scale=False), "first step is Euler's"),
    "asked at the end of the step": (adams_with(at_end=True), "asked at the start"),
    "an extra call": (adams_with(extra=lambda d, x, s, p: d(x, s)), "asked 7 times"),
    "fresh noise": (adams_with(noise=0.1), "first step is Euler's"),
    "the start of the step in the State": (adams_with(time=lambda t, s: t), "time at which its step ends"),
    "eps in place of x0": (adams_with(x0=lambda p, past: p.eps), "returns the belief"),
    "the new x in place of x0": (adams_with(wrap=lambda s: s._replace(x0=s.x)), "belief of its step"),
    "a list": (lambda d, x, ts: list(adams(d, x, ts)), "come one by one"),
    "tuples": (adams_with(wrap=tuple), "of type tuple"),
    "the last State alone": (adams_last_only, "7 States come"),
    "x returned": (returns_x, "7 States come"),
    "in place": (adams_in_place, "changed in place"),
    "always float64": (adams_in_float64, "what td.sample returns has dtype"),
    "an error after the first step": (adams_wrong_first, "the function runs.*RuntimeError"),
}

EXERCISES = {
    "levels_for_calls": (td.check.levels_for_calls, [levels_for_calls, levels_one_by_one], LEVELS_MUTANTS),
    "unit_variance": (
        td.check.unit_variance,
        [unit_variance, unit_variance_by_covariance, unit_variance_in_float32],
        UNIT_MUTANTS,
    ),
    "order_without_truth": (td.check.order_without_truth, [order_without_truth, order_by_mean_size], ORDER_MUTANTS),
    "adams": (td.check.adams, [adams, adams_by_integral], ADAMS_MUTANTS),
}
