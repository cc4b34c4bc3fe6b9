"""Solutions of exercises 24, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td
from tinydiff import consistency

# ---- exercise 1 --------------------------------------------------------------------------------------


def boundary(level, least, sd):
    gap = level - least
    return sd**2 / (gap**2 + sd**2), sd * gap / (level**2 + sd**2).sqrt()


def boundary_by_ratio(level, least, sd):
    u = (level - least) / sd
    return 1 / (1 + u * u), sd * u * (1 + (level / sd) ** 2) ** -0.5


def boundary_by_rows(level, least, sd):
    skip = [1 - (v - least) ** 2 / ((v - least) ** 2 + sd**2) for v in level.tolist()]
    out = [sd * (v - least) / math.hypot(v, sd) for v in level.tolist()]
    return tuple(torch.tensor(v, dtype=level.dtype) for v in (skip, out))


BOUNDARY_MUTANTS = {
    "EDM's, unshifted": (lambda v, least, sd: boundary(v, 0.0, sd), r"f.x, least. = x.*level 0; here"),
    "c_out unshifted": (
        lambda v, least, sd: (boundary(v, least, sd)[0], boundary(v, 0.0, sd)[1]),
        "f.x, least. = x: c_out is 0",
    ),
    "root shifted too": (
        lambda v, least, sd: (
            boundary(v, least, sd)[0],
            sd * (v - least) / ((v - least) ** 2 + sd**2).sqrt(),
        ),
        "c_out is that of equation.*not every level",
    ),
    "squares subtracted": (
        lambda v, least, sd: (sd**2 / (v**2 - least**2 + sd**2), boundary(v, least, sd)[1]),
        "c_skip is that of equation",
    ),
    "sd lost in c_out": (
        lambda v, least, sd: (boundary(v, least, sd)[0], boundary(v, least, sd)[1] / sd),
        "c_out is nearly sd",
    ),
    "sd, not its square": (
        lambda v, least, sd: (sd / ((v - least) ** 2 + sd), boundary(v, least, sd)[1]),
        "c_skip is that of equation",
    ),
    "swapped": (lambda *a: boundary(*a)[::-1], "c_skip is 1"),
    "c_skip alone": (lambda *a: boundary(*a)[0], "two answers"),
    "a column": (lambda v, *a: boundary(v[:, None], *a), "shape"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def ct_schedule(k, K, s0, s1, mu0):
    n = math.ceil(math.sqrt(k / K * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
    return n, math.exp(s0 * math.log(mu0) / n)


def schedule_without_the_tangle(k, K, s0, s1, mu0):
    n = math.ceil((s0**2 * (1 - k / K) + (s1 + 1) ** 2 * (k / K)) ** 0.5)
    return n, mu0 ** (s0 / n)


def schedule_by_library(k, K, s0, s1, mu0):
    return consistency.ct_levels(k / K, s0, s1), consistency.ct_decay(k / K, s0, s1, mu0)


def schedule_with(n=None, mu=None):
    def f(k, K, s0, s1, mu0):
        found = ct_schedule(k, K, s0, s1, mu0)[0] if n is None else n(k, K, s0, s1)
        return found, mu0 ** (s0 / found) if mu is None else mu(found, s0, mu0)

    return f


SCHEDULE_MUTANTS = {
    "-1 under the root": (
        schedule_with(lambda k, K, a, b: math.ceil(math.sqrt(k / K * ((b + 1) ** 2 - a**2) + a**2 - 1)) + 1),
        "one too many at each end",
    ),
    "+1 without -1": (schedule_with(lambda k, K, a, b: ct_schedule(k, K, a, b, 0.9)[0] + 1), "one too many"),
    "s1, not s1 + 1": (
        schedule_with(lambda k, K, a, b: math.ceil(math.sqrt(k / K * (b**2 - a**2) + a**2))),
        "to 151",
    ),
    "s0 not added": (
        schedule_with(lambda k, K, a, b: max(1, math.ceil(math.sqrt(k / K * ((b + 1) ** 2 - a**2))))),
        "from 2 levels",
    ),
    "grows evenly": (
        schedule_with(lambda k, K, a, b: math.ceil(a + k / K * (b + 1 - a))),
        "whose square reaches.*square of N grows",
    ),
    "whole division": (
        schedule_with(lambda k, K, a, b: math.ceil(math.sqrt(k // K * ((b + 1) ** 2 - a**2) + a**2))),
        "whose square reaches",
    ),
    "rounded down": (
        schedule_with(lambda k, K, a, b: math.floor(math.sqrt(k / K * ((b + 1) ** 2 - a**2) + a**2))),
        "whose square reaches",
    ),
    "official mu": (schedule_with(mu=lambda n, s0, mu0: mu0 ** (s0 / max(n - 1, 1))), "that power.*the paper has it"),
    "mu0 all along": (schedule_with(mu=lambda n, s0, mu0: mu0), "that power"),
    "a float": (lambda *a: (float(ct_schedule(*a)[0]), 0.9), "whole number"),
    "N alone": (lambda *a: ct_schedule(*a)[0], "two answers"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def whole_huber(x, y, c=None):
    gap = (x - y).flatten(1)
    c = 0.00054 * gap.shape[1] ** 0.5 if c is None else c
    return (gap.square().sum(1) + c**2).sqrt() - c


def huber_by_library(x, y, c=None):
    return consistency.pseudo_huber(c)(x, y)


def huber_by_rows(x, y, c=None):
    c = 0.00054 * math.sqrt(x[0].numel()) if c is None else c
    rows = [
        torch.linalg.vector_norm(torch.cat([(a - b).reshape(-1), a.new_tensor([c])])) - c
        for a, b in zip(x, y, strict=True)
    ]
    return torch.stack(rows)


def huber_with(each=False, power=2, less=True, size=None, mean=False):
    def f(x, y, c=None):
        gap = (x - y).flatten(1)
        c = 0.00054 * (gap.shape[1] if size is None else size(x)) ** 0.5 if c is None else c
        if each:
            return ((gap.square() + c**2).sqrt() - c).sum(1)
        whole = gap.square().mean(1) if mean else gap.square().sum(1)
        return (whole + c**power).sqrt() - (c if less else 0.0)

    return f


HUBER_MUTANTS = {
    "of each number alone": (huber_with(each=True), "whatever direction.*not rooted one by one"),
    "c not taken off": (huber_with(less=False), "d.x, x. is 0"),
    "c, not its square": (huber_with(power=1), "d.x, x. is 0.*c.2 stands under"),
    "mean of squares": (huber_with(mean=True), "small error costs"),
    "a square": (lambda x, y, c=None: (x - y).flatten(1).square().sum(1), "small error costs"),
    "a length": (lambda x, y, c=None: (x - y).flatten(1).norm(dim=1), "small error costs"),
    "c of the batch": (huber_with(size=lambda x: x.numel()), "without c"),
    "c of the last axis": (huber_with(size=lambda x: x.shape[-1]), "without c"),
    "one number for the batch": (lambda *a: whole_huber(*a).mean(), "shape"),
    "of the last axis": (
        lambda x, y, c=None: ((x - y).square().sum(-1) + (c or 0.001) ** 2).sqrt() - (c or 0.001),
        "shape|without c",
    ),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def jump(net, x, level, sd, least, scaled=True, quarter=4, shift=True):
    skip, out = boundary(level, least if shift else 0.0, sd)
    c_in = (level**2 + sd**2).rsqrt() if scaled else torch.ones_like(level)
    return skip[:, None] * x + out[:, None] * net(c_in[:, None] * x, level.log() / quarter)


def ct_loss(net, x0, eps, high, low, sd, least):
    answer = jump(net, x0 + high[:, None] * eps, high, sd, least)
    with torch.no_grad():
        target = jump(net, x0 + low[:, None] * eps, low, sd, least)
    return (answer - target).square().mean(1)


def loss_target_first(net, x0, eps, high, low, sd, least):
    target, answer = (jump(net, x0 + v[:, None] * eps, v, sd, least) for v in (low, high))
    return ((target.detach() - answer) ** 2).sum(1) / x0.shape[1]


def loss_by_library(net, x0, eps, high, low, sd, least):
    S = td.EDM(sigma_min=least, sigma_max=100.0)
    clock = lambda v: S.time(-2 * v.log())  # noqa: E731
    pairs = lambda schedule, t, done: (t, clock(low))  # noqa: E731
    f = td.ConsistencyDenoiser(net, S, sd)
    return consistency.consistency_loss(pairs)(f, x0, clock(high), eps=eps)


def loss_with(stop=True, second=None, low_is=lambda high, low: low, total=False, **form):
    def f(net, x0, eps, high, low, sd, least):
        other = eps if second is None else second(eps)
        answer = jump(net, x0 + high[:, None] * eps, high, sd, least, **form)
        target = jump(net, x0 + low_is(high, low)[:, None] * other, low, sd, least, **form)
        gap = (answer - (target.detach() if stop else target)).square()
        return gap.sum(1) if total else gap.mean(1)

    return f


def loss_swapped(net, x0, eps, high, low, sd, least):
    answer, target = (jump(net, x0 + v[:, None] * eps, v, sd, least) for v in (high, low))
    return (answer.detach() - target).square().mean(1)


def loss_of_denoisers(net, x0, eps, high, low, sd, least):
    answer = net((x0 + high[:, None] * eps) / (high**2 + sd**2).sqrt()[:, None], high.log() / 4)
    target = net((x0 + low[:, None] * eps) / (low**2 + sd**2).sqrt()[:, None], low.log() / 4)
    return (answer - target.detach()).square().mean(1)


LOSS_MUTANTS = {
    "gradient in the target": (loss_with(stop=False), "target has no gradient.*counts as a number"),
    "gradient in the target alone": (loss_swapped, "target has no gradient.*which of the two"),
    "no gradient": (lambda *a: ct_loss(*a).detach(), "nothing learns"),
    "noise drawn again": (loss_with(second=torch.randn_like), "lower level it is shown.*lie on one line"),
    "c_in never used": (loss_with(scaled=False), "higher level it is shown.*multiplies x before"),
    "data as the neighbour": (loss_with(low_is=lambda high, low: 0 * low), "lower level it is shown"),
    "the noise that was taken off": (loss_with(low_is=lambda high, low: high - low), "lower level it is shown"),
    "log level, not a quarter": (loss_with(quarter=1), "told log"),
    "EDM's coefficients": (loss_with(shift=False), "squared distance of two jumps"),
    "networks compared, not jumps": (loss_of_denoisers, "squared distance of two jumps.*make a jump"),
    "summed": (loss_with(total=True), "squared distance of two jumps.*averaged"),
    "mean over the batch": (lambda *a: ct_loss(*a).mean(), "shape"),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def several_calls(f, x, levels, least, generator):
    x = f(x, levels[0])
    for level in levels[1:]:
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = f(x + (level**2 - least**2) ** 0.5 * z, level)
    return x


def calls_with_a_look_ahead(f, x, levels, least, generator):
    for k, level in enumerate(levels):
        out = f(x, level)
        if k + 1 == len(levels):
            return out
        std = math.sqrt((levels[k + 1] - least) * (levels[k + 1] + least))
        x = out + std * torch.randn(out.shape, generator=generator, dtype=out.dtype)


def calls_with(std=lambda level, least: (level**2 - least**2) ** 0.5, fresh=True, onto=False, after=False, first=True):
    def run(f, x, levels, least, generator):
        start, z = x, torch.randn(x.shape, generator=generator, dtype=x.dtype)
        out = f(x, levels[0]) if first else x
        for level in levels[1:]:
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if fresh else z
            out = f((start if onto else out) + std(level, least) * z, level)
        return out + std(levels[-1], least) * z if after else out

    return run


def calls_at_the_end(f, x, levels, least, generator):
    return f(several_calls(f, x, levels, least, generator), least)


def calls_without_the_generator(f, x, levels, least, generator):
    return several_calls(f, x, levels, least, None)


def calls_by_the_ode(f, x, levels, least, generator):
    out = f(x, levels[0])
    for before, level in zip(levels, levels[1:], strict=False):
        out, x = None, f(x, before) + level / before * (x - f(x, before))
        out = f(x, level)
    return out


CALLS_MUTANTS = {
    "noise of the whole level": (calls_with(lambda v, least: v), "standard deviation 1.9365.*holds that much noise"),
    "levels subtracted": (calls_with(lambda v, least: v - least), "standard deviation 1.9365"),
    "variance, not its root": (calls_with(lambda v, least: v**2 - least**2), "standard deviation 1.9365"),
    "noise after the last answer": (calls_with(after=True), "last answer comes back"),
    "noise added to the first noise": (calls_with(onto=True), "what is added"),
    "the same noise again": (calls_with(fresh=False), "does not depend on.*independent noise for each call"),
    "the first level skipped": (calls_with(first=False), "asked once at each level"),
    "a last call at least": (calls_at_the_end, "asked once at each level"),
    "the generator unused": (calls_without_the_generator, "same generator"),
    "the ODE, two calls a step": (calls_by_the_ode, "asked once at each level"),
}

EXERCISES = {
    "boundary": (td.check.boundary, [boundary, boundary_by_ratio, boundary_by_rows], BOUNDARY_MUTANTS),
    "ct_schedule": (
        td.check.ct_schedule,
        [ct_schedule, schedule_without_the_tangle, schedule_by_library],
        SCHEDULE_MUTANTS,
    ),
    "whole_huber": (td.check.whole_huber, [whole_huber, huber_by_library, huber_by_rows], HUBER_MUTANTS),
    "ct_loss": (td.check.ct_loss, [ct_loss, loss_target_first, loss_by_library], LOSS_MUTANTS),
    "several_calls": (td.check.several_calls, [several_calls, calls_with_a_look_ahead], CALLS_MUTANTS),
}
