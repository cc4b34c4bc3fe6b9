"""Solutions of exercises 23, right and wrong, and what a wrong one is told: see test_checks."""

import copy
import math

import torch

import tinydiff as td
from tinydiff import distill

# ---- exercise 1 --------------------------------------------------------------------------------------


def coefs(t):
    return torch.cos(math.pi / 2 * t)[:, None], torch.sin(math.pi / 2 * t)[:, None]


def step(x0, x, t, s):
    (at, st), (az, sz) = coefs(t), coefs(s)
    return az * x0 + sz * (x - at * x0) / st


@torch.no_grad()
def student_target(belief, x, t, s):
    m = (t + s) / 2
    half = step(belief(x, t), x, t, m)
    end = step(belief(half, m), half, m, s)
    (at, st), (az, sz) = coefs(t), coefs(s)
    return (end - sz / st * x) / (az - sz / st * at)


def target_by_library(belief, x, t, s):
    S = td.Cosine(math.inf)

    def believe(x, t):
        c, x0 = S(t, like=x), belief(x, t)
        return td.Prediction(x0, (x - c.alpha * x0) / c.sigma)

    return distill.progressive_target(td.denoiser(believe, S), x, t, s)


def target_by_angles(belief, x, t, s):
    m, quarter = (t + s) / 2, math.pi / 2
    col = lambda v: v[:, None]  # noqa: E731
    x0 = belief(x, t)
    half = col(torch.sin(quarter * (t - m))) * x0 + col(torch.sin(quarter * m)) * x
    half = half / col(torch.sin(quarter * t))
    end = col(torch.sin(quarter * (m - s))) * belief(half, m) + col(torch.sin(quarter * s)) * half
    end = end / col(torch.sin(quarter * m))
    out = col(torch.sin(quarter * t)) * end - col(torch.sin(quarter * s)) * x
    return (out / col(torch.sin(quarter * (t - s)))).detach()


def target_with(share=0.5, second="m", upside=False, answer="x0", x_of="start", keep=False):
    def f(belief, x, t, s):
        m = t + (s - t) * share
        half = step(belief(x, t), x, t, m)
        end = step(belief(half, t if second == "t" else m), half, m, s)
        (at, st), (az, sz) = coefs(t), coefs(s)
        r = st / sz if upside else sz / st
        x0 = (end - r * (half if x_of == "half" else x)) / (az - r * at)
        out = {"x0": x0, "end": end, "eps": (x - at * x0) / st}[answer]
        return out if keep else out.detach()

    return f


@torch.no_grad()
def target_of_one_step(belief, x, t, s):
    return belief(x, t)


TARGET_MUTANTS = {
    "step half as long": (target_with(share=0.25), "second at the time half way"),
    "second step at the first time": (target_with(second="t"), "second at the time half way"),
    "ratio upside down": (target_with(upside=True), "lands where two.*upside down"),
    "gradient through the teacher": (target_with(keep=True), "no gradient.*no_grad"),
    "in eps space": (target_with(answer="eps"), "lands where two.*that is the noise"),
    "where the teacher landed": (target_with(answer="end"), "lands where two.*only at s = 0"),
    "x of the middle": (target_with(x_of="half"), "lands where two.*no place in it"),
    "one step": (target_of_one_step, "asked twice"),
    "first step to s": (target_with(share=1.0), "second at the time half way"),
    "coefficients along the wrong axis": (lambda b, x, t, s: x / torch.sin(t), "runs.*should be .b, 1."),
    "float32": (lambda *a: student_target(*a).float(), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def halvings(first):
    rounds, n = [], first // 2
    while n >= 1:
        t = torch.arange(n, 0, -1, dtype=torch.float64) / n
        s = torch.arange(n - 1, -1, -1, dtype=torch.float64) / n
        rounds.append(torch.stack([t, (t + s) / 2, s], 1))
        n //= 2
    return rounds


def halvings_by_grid(first):
    rounds, grid = [], torch.linspace(1, 0, first + 1, dtype=torch.float64)
    while len(grid) > 2:
        rounds.append(torch.stack([grid[:-2:2], grid[1:-1:2], grid[2::2]], 1))
        grid = grid[::2]
    return rounds


def halvings_with(begin=2, last=1, shift=0, middle=0.5, flip=False):
    def f(first):
        rounds, n = [], first // begin
        while n >= last:
            i = torch.arange(n, 0, -1, dtype=torch.float64) - shift
            t, s = i / n, (i - 1) / n
            rows = torch.stack([t, t + (s - t) * middle, s], 1)
            rounds.append(rows.flip(0) if flip else rows)
            n //= 2
        return rounds

    return f


def each_of_the_teachers(first):
    return [torch.stack([r[:, 0], r[:, 2], 2 * r[:, 2] - r[:, 0]], 1) for r in halvings(first)]


HALVINGS_MUTANTS = {
    "the first student is the teacher": (halvings_with(begin=1), "rounds have 1 steps"),
    "stops at 2": (halvings_with(last=2), "rounds have 1 steps"),
    "goes on to 0": (lambda first: [*halvings(first), torch.zeros(0, 3, dtype=torch.float64)], "rounds have 1 steps"),
    "begins one late": (halvings_with(shift=1), "begins at 1 and the last ends at 0"),
    "upwards": (halvings_with(flip=True), "begins at 1 and the last ends at 0.*first = 16"),
    "steps half as long": (halvings_with(middle=0.25), "half way"),
    "teacher's steps as long as the student's": (each_of_the_teachers, "begins at 1 and the last ends at 0"),
    "float32": (lambda first: [r.float() for r in halvings(first)], "dtype"),
    "one tensor": (lambda first: torch.cat(halvings(first)), "list of tensors"),
    "numbers of steps": (lambda first: [len(r) for r in halvings(first)], "list of tensors"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def truncated_v_weight(alpha, sigma):
    return torch.maximum(alpha**2, sigma**2)


def v_weight_by_where(alpha, sigma):
    return torch.where(alpha > sigma, alpha, sigma).square() / (alpha**2 + sigma**2)


V_WEIGHT_MUTANTS = {
    "that of x0": (lambda a, s: (a / s).square().clamp(min=1), "larger of the errors.*weight in x0 space"),
    "the smaller one": (lambda a, s: torch.minimum(a, s) ** 2, "larger of the errors.*smaller of both"),
    "by division": (lambda a, s: (a / s).square().clamp(min=1) / ((a / s).square() + 1), "1 at both ends.*without div"),
    "the wrong way round": (lambda a, s: (a / s).square().clamp(min=1) * ((a / s) ** 2 + 1), "larger of the errors"),
    "even": (lambda a, s: torch.ones_like(a), "larger of the errors"),
    "no square": (lambda a, s: torch.maximum(a, s), "larger of the errors"),
    "weight of eps": (lambda a, s: (s / a).square().clamp(min=1) * s**2, "larger of the errors|both ends"),
    "one number": (lambda a, s: torch.maximum(a, s).square().mean(), "shape"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def wide(v, x):
    return v.reshape(-1, *[1] * (x.ndim - 1))


def guided_match(teacher, student, x, t, y, w, snr, null):
    with torch.no_grad():
        u, c = teacher(x, t, torch.full_like(y, null)), teacher(x, t, y)
    off = u + wide(w, x) * (c - u) - student(x, t, y, w)
    return snr.clamp(min=1) * off.square().flatten(1).mean(1)


def match_in_one_batch(teacher, student, x, t, y, w, snr, null):
    both = teacher(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, null)])).detach()
    c, u = both.chunk(2)
    target = (1 - wide(w, x)) * u + wide(w, x) * c
    weight = torch.maximum(snr, torch.ones_like(snr))
    return (wide(weight, x) * (target - student(x, t, y, w)) ** 2).flatten(1).mean(1)


def match_with(
    scale=lambda w: w, swap=False, keep=False, weight=lambda v: v.clamp(min=1), total=False, told="y", at="t"
):
    def f(teacher, student, x, t, y, w, snr, null):
        u, c = teacher(x, t, torch.full_like(y, null)), teacher(x, 1 - t if at == "other" else t, y)
        u, c = (c, u) if swap else (u, c)
        target = u + wide(scale(w), x) * (c - u)
        off = (target if keep else target.detach()) - student(x, t, y if told == "y" else torch.full_like(y, null), w)
        off = off.square().flatten(1)
        return weight(snr) * (off.sum(1) if total else off.mean(1))

    return f


def first_scale_for_all(teacher, student, x, t, y, w, snr, null):
    with torch.no_grad():
        u, c = teacher(x, t, torch.full_like(y, null)), teacher(x, t, y)
    off = u + w[0] * (c - u) - student(x, t, y, w)
    return snr.clamp(min=1) * off.square().flatten(1).mean(1)


def along_the_wrong_axis(teacher, student, x, t, y, w, snr, null):
    with torch.no_grad():
        u, c = teacher(x, t, torch.full_like(y, null)), teacher(x, t, y)
    off = u + w * (c - u) - student(x, t, y, w)
    return snr.clamp(min=1) * off.square().flatten(1).mean(1)


MATCH_MUTANTS = {
    "1 + w, as Ho & Salimans": (match_with(scale=lambda w: 1 + w), "w = 0 asks for.*u . w .c - u."),
    "u and c swapped": (match_with(swap=True), "w = 0 asks for"),
    "gradient through the teacher": (match_with(keep=True), "teacher gets no gradient"),
    "weight missing": (match_with(weight=torch.ones_like), "max.SNR, 1. times the mean"),
    "SNR, not truncated": (match_with(weight=lambda v: v), "max.SNR, 1. times the mean"),
    "the sum": (match_with(total=True), "the mean over all others"),
    "the student told no class": (match_with(told="null"), "told y and w"),
    "another time": (match_with(at="other"), "asked at t"),
    "one scale for all": (first_scale_for_all, "w = 1 for that.*one number for each element"),
    "w along the wrong axis": (along_the_wrong_axis, "w = 0 asks for.*one number for each element"),
    "no gradient at all": (lambda *a: guided_match(*a).detach(), "has a gradient for the student"),
    "one number": (lambda *a: guided_match(*a).mean(), "shape"),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def one_round(teacher, n, minimise):
    student = copy.deepcopy(teacher).requires_grad_(True)

    def x0_of(net, x, t):
        a, s = coefs(t)
        return a * x - s * net(x, t)

    def loss(x0):
        t = torch.randint(1, n + 1, (len(x0),)).to(x0) / n
        a, s = coefs(t)
        x = a * x0 + s * torch.randn_like(x0)
        target = student_target(lambda x, t: x0_of(teacher, x, t), x, t, t - 1 / n)
        return ((a / s).square().clamp(min=1) * (target - x0_of(student, x, t)) ** 2).mean()

    minimise(student, loss)
    return student


def round_by_library(teacher, n, minimise):
    student, S = copy.deepcopy(teacher), td.Cosine(math.inf)

    def wrapped(net):
        def believe(x, t):
            c, v = S(t, like=x), net(x, t)
            return td.Prediction(c.alpha * x - c.sigma * v, c.sigma * x + c.alpha * v)

        return td.denoiser(believe, S)

    loss = distill.progressive_loss(wrapped(teacher), n)
    minimise(student, lambda x0: loss(wrapped(student), x0, td.losses.step_times(n)(len(x0))).mean())
    return student


def round_with(own=True, low=1, high=1, continuous=False, share=0.5, keep=False, weight="truncated", give="student",
               run=True, length=1.0, noise=1.0, total=False):  # fmt: skip
    def f(teacher, n, minimise):
        student = copy.deepcopy(teacher) if own else teacher

        def x0_of(net, x, t):
            a, s = coefs(t)
            return a * x - s * net(x, t)

        def loss(x0):
            i = torch.rand(len(x0)) * n if continuous else torch.randint(low, n + high, (len(x0),))
            t = i.to(x0).clamp(min=0.01) / n
            a, s = coefs(t)
            x = a * x0 + s * noise * torch.randn_like(x0)
            z = (t - length / n).clamp(min=0)
            find = target_with(share=share, keep=keep)
            target = find(lambda x, t: x0_of(teacher, x, t), x, t, z)
            w = {"truncated": (a / s).square().clamp(min=1), "none": 1.0, "snr": (a / s) ** 2}[weight]
            off = w * (target - x0_of(student, x, t)) ** 2
            return off.sum() if total else off.mean()

        if run:
            minimise(student, loss)
        return student if give == "student" else teacher

    return f


def round_that_teaches_itself(teacher, n, minimise):
    student = one_round(teacher, n, minimise)
    with torch.no_grad():
        for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
            p.copy_(q)
    return student


ROUND_MUTANTS = {
    "no copy": (round_with(own=False), "another network than the teacher.*copy"),
    "times from 0": (round_with(low=0, high=0), "asked at i / "),
    "times between": (round_with(continuous=True), "asked at i / "),
    "times of the teacher": (lambda t, n, m: one_round(t, 2 * n, m), "asked at i / "),
    "only pure noise": (lambda t, n, m: round_with(low=n)(t, n, m), "equally often.*n = 4"),
    "step half as long": (round_with(share=0.25), "asked at t and at"),
    "only half the way": (round_with(length=0.5), "asked at t and at"),
    "gradient through the teacher": (round_with(keep=True), "teacher gets no gradient"),
    "weight missing": (round_with(weight="none"), "truncated SNR.*weight max.SNR, 1. is missing"),
    "SNR": (round_with(weight="snr"), "truncated SNR"),
    "the sum": (round_with(total=True), "truncated SNR"),
    "half the noise": (round_with(noise=0.5), "noise in x has standard deviation"),
    "the teacher comes back": (round_with(give="teacher"), "the network that was trained"),
    "never trained": (round_with(run=False), "minimise is called"),
    "the teacher changed": (round_that_teaches_itself, "teacher's weights are left"),
}

EXERCISES = {
    "student_target": (
        td.check.student_target,
        [student_target, target_by_library, target_by_angles],
        TARGET_MUTANTS,
    ),
    "halvings": (td.check.halvings, [halvings, halvings_by_grid], HALVINGS_MUTANTS),
    "truncated_v_weight": (td.check.truncated_v_weight, [truncated_v_weight, v_weight_by_where], V_WEIGHT_MUTANTS),
    "guided_match": (td.check.guided_match, [guided_match, match_in_one_batch], MATCH_MUTANTS),
    "one_round": (td.check.one_round, [one_round, round_by_library], ROUND_MUTANTS),
}
