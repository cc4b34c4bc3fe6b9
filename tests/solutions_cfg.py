"""Solutions of exercises 13, right and wrong, and what a wrong one is told: see test_checks."""

import torch

import tinydiff as td

F64 = torch.float64

# ---- exercise 1 --------------------------------------------------------------------------------------


def label_drop(y, null, share):
    return torch.where(torch.rand(y.shape) < share, null, y)


def label_drop_by_mask(y, null, share):
    out = y.clone()
    out[torch.bernoulli(torch.full(y.shape, share)).bool()] = null
    return out


def drop_exactly(y, null, share):
    out = y.clone()
    out[torch.randperm(len(y))[: round(share * len(y))]] = null
    return out


def drop_at_the_front(y, null, share):
    out = y.clone()
    out[: int(torch.binomial(torch.tensor(float(len(y))), torch.tensor(share)))] = null
    return out


def drop_in_place(y, null, share):
    y[torch.rand(y.shape) < share] = null
    return y


def drop_with_a_seed(y, null, share):
    g = torch.Generator().manual_seed(0)
    return torch.where(torch.rand(y.shape, generator=g) < share, null, y)


LABEL_DROP_MUTANTS = {
    "one coin for the whole batch": (
        lambda y, null, share: torch.full_like(y, null) if torch.rand(()) < share else y,
        "varies as that of 250 single throws.*not one for the batch",
    ),
    "always the same number": (
        drop_exactly,
        "single throws does: variance 22.5\n.*must vary.*its own coin.*no fixed count",
    ),
    "always the same ones": (drop_with_a_seed, "varies as that of 250 single throws.*afresh in each call"),
    "at the front": (drop_at_the_front, "each place is dropped.*not the first ones"),
    "share kept in place of dropped": (
        lambda y, null, share: torch.where(torch.rand(y.shape) < share, y, null),
        "share = 0 nothing is dropped",
    ),
    "zero for null": (lambda y, null, share: y * (torch.rand(y.shape) >= share), "everything is dropped"),
    "a class of others for some": (
        lambda y, null, share: torch.where(
            torch.rand(y.shape) < share, torch.where(torch.rand(y.shape) < share, null, y.flip(0)), y
        ),
        "left as it was",
    ),
    "half the share": (
        lambda y, null, share: label_drop(y, null, share if share in (0, 1) else share / 2),
        "a share of 0.1 is dropped",
    ),
    "nothing dropped": (lambda y, null, share: y, "share = 1 everything is dropped"),
    "changed in place": (drop_in_place, "changed in place"),
    "floats": (lambda y, null, share: label_drop(y, null, share).float(), "dtype torch.int64"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def guided_eps(net, x, t, y, null, w):
    none = torch.full_like(y, null)
    c, u = net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, none])).chunk(2)
    return u + w * (c - u)


def guided_eps_interleaved(net, x, t, y, null, w):
    labels = torch.stack([torch.full_like(y, null), y], dim=1).flatten()
    out = net(x.repeat_interleave(2, 0), t.repeat_interleave(2), labels)
    return (1 - w) * out[::2] + w * out[1::2]


def guided_with(labels=lambda y, none: (y, none), mix=lambda c, u, w: u + w * (c - u)):
    def f(net, x, t, y, null, w):
        told = torch.cat(labels(y, torch.full_like(y, null)))
        return mix(*net(torch.cat([x, x]), torch.cat([t, t]), told).chunk(2), w)

    return f


def guided_in_two_calls(net, x, t, y, null, w):
    c, u = net(x, t, y), net(x, t, torch.full_like(y, null))
    return u + w * (c - u)


def guided_with_times_in_another_order(net, x, t, y, null, w):
    out = net(torch.cat([x, x]), t.repeat_interleave(2), torch.cat([y, torch.full_like(y, null)]))
    c, u = out.chunk(2)
    return u + w * (c - u)


GUIDED_EPS_MUTANTS = {
    "the paper's convention": (guided_with(mix=lambda c, u, w: (1 + w) * c - w * u), "w = 0 is.*ours less 1"),
    "branches exchanged": (guided_with(mix=lambda u, c, w: u + w * (c - u)), "w = 0 is.*which half of the output"),
    "null given to neither": (guided_with(labels=lambda y, none: (y, y)), "once with its class and once with null"),
    "null given to both": (guided_with(labels=lambda y, none: (none, none)), "once with its class and once with null"),
    "two calls": (guided_in_two_calls, "called once.*in one call"),
    "times in another order": (guided_with_times_in_another_order, "asked with its own t"),
    "asked in one order, read in the other": (
        guided_with(labels=lambda y, none: (none, y)),
        "w = 0 is.*order is that in which you asked",
    ),
    "from c on": (guided_with(mix=lambda c, u, w: c + w * (c - u)), "w = 0 is.*ours less 1"),
    "the mean of both": (guided_with(mix=lambda c, u, w: w * (c + u) / 2), "guided answer is right"),
    "both halves": (
        guided_with(mix=lambda c, u, w: torch.cat([u + w * (c - u), u])),
        "what comes back has shape.*one half",
    ),
    "t not doubled": (
        lambda net, x, t, y, null, w: guided_with()(lambda a, _, k: net(a, t, k), x, t, y, null, w),
        "equally long.*x has 6 rows, t 3, the labels 6.*repeated for both halves.*t as well",
    ),
    "x alone doubled": (
        lambda net, x, t, y, null, w: guided_with()(lambda a, *_: net(a, t, y), x, t, y, null, w),
        "equally long.*t 3, the labels 3",
    ),
    "one time for all": (
        lambda net, x, t, y, null, w: guided_with()(
            lambda a, b, k: net(a, t, k) if len(t) == len(a) else net(a, t.mean().expand(len(a)), k), x, t, y, null, w
        ),
        "asked with its own t",
    ),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def interval_scales(schedule, ts, w, low, high):
    level = torch.exp(-schedule.logsnr(ts[:-1]) / 2)
    return torch.where((low <= level) & (level <= high), w, 1.0).double()


def interval_scales_one_by_one(schedule, ts, w, low, high):
    like, out = torch.zeros(1, 1, dtype=F64), []
    for t in ts[:-1].tolist():
        c = schedule(t, like=like)
        inside = low * c.alpha.item() <= c.sigma.item() <= high * c.alpha.item()
        out.append(float(w) if inside else 1.0)
    return torch.tensor(out, dtype=F64)


def scales_with(level=lambda s, ts: torch.exp(-s.logsnr(ts) / 2), at=lambda ts: ts[:-1], outside=1.0, inside=None):
    def f(schedule, ts, w, low, high):
        x = level(schedule, at(ts))
        within = (low <= x) & (x <= high) if inside is None else inside(x, low, high)
        return torch.where(within, float(w), outside).double()

    return f


INTERVAL_SCALES_MUTANTS = {
    "the ends the wrong way round": (scales_with(inside=lambda x, a, b: (b <= x) & (x <= a)), "all steps are guided"),
    "outside in place of inside": (scales_with(inside=lambda x, a, b: (x < a) | (x > b)), "all steps are guided"),
    "zero outside": (scales_with(outside=0.0), "the scale is 1.*not 0"),
    "t for the level": (scales_with(level=lambda s, ts: ts), "steps are guided, numbers.*not t"),
    "sigma for the level": (
        scales_with(level=lambda s, ts: s(ts, like=torch.zeros(len(ts), 1, dtype=F64)).sigma[:, 0]),
        "steps are guided, numbers.*not sigma alone",
    ),
    "the square": (scales_with(level=lambda s, ts: torch.exp(-s.logsnr(ts))), "steps are guided, numbers.*no square"),
    "upside down": (scales_with(level=lambda s, ts: torch.exp(s.logsnr(ts) / 2)), "steps are guided, numbers"),
    "the end of the step": (
        scales_with(at=lambda ts: ts[1:].clamp(min=1e-3)),
        "steps are guided, numbers.*asks the network at ts",
    ),
    "only from above": (scales_with(inside=lambda x, a, b: x <= b), "no step is guided|steps are guided, numbers"),
    "both ends left out": (
        scales_with(inside=lambda x, a, b: (a < x) & (x < b)),
        "equal to an end is guided.*low = 1, .*both ends belong",
    ),
    "the lower end left out": (
        scales_with(inside=lambda x, a, b: (a < x) & (x <= b)),
        "equal to an end is guided.*low = 1, ",
    ),
    "the upper end left out": (
        scales_with(inside=lambda x, a, b: (a <= x) & (x < b)),
        "equal to an end is guided.*high = 1\n",
    ),
    "all times": (scales_with(at=lambda ts: ts.clamp(min=1e-3)), "has shape"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def rescale_guided(u, c, w, phi):
    guided, dims = u + w * (c - u), tuple(range(1, u.ndim))
    factor = c.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return phi * factor * guided + (1 - phi) * guided


def rescale_one_by_one(u, c, w, phi):
    out = []
    for a, b in zip(u, c, strict=True):
        g = (1 - w) * a + w * b
        size = [((v - v.mean()) ** 2).mean().sqrt() for v in (b, g)]
        out.append(g * (1 + phi * (size[0] / size[1] - 1)))
    return torch.stack(out)


def rescale_with(
    std=lambda v: v.std(tuple(range(1, v.ndim)), keepdim=True),
    target=lambda u, c: c,
    factor=lambda have, want: want / have,
    mix=lambda phi: phi,
    centre=False,
    count=lambda w: w,
):
    def f(u, c, w, phi):
        g = u + count(w) * (c - u)
        k = factor(std(g), std(target(u, c)))
        middle = g.mean(tuple(range(1, g.ndim)), keepdim=True) if centre else 0.0
        return mix(phi) * (middle + k * (g - middle)) + (1 - mix(phi)) * g

    return f


RESCALE_GUIDED_MUTANTS = {
    "the std of u": (rescale_with(target=lambda u, c: u), "has the std of its c.*answer with the class"),
    "one std for the batch": (rescale_with(std=lambda v: v.std()), "has the std of its c.*for each sample"),
    "the std over the batch": (rescale_with(std=lambda v: v.std(0, keepdim=True)), "has the std of its c.*each sample"),
    "the std of the last axis": (rescale_with(std=lambda v: v.std(-1, keepdim=True)), "has the std of its c.*all its"),
    "upside down": (rescale_with(factor=lambda have, want: have / want), "has the std of its c"),
    "the variance": (rescale_with(factor=lambda have, want: (want / have) ** 2), "has the std of its c"),
    "the root mean square": (
        rescale_with(std=lambda v: v.square().mean(tuple(range(1, v.ndim)), keepdim=True).sqrt()),
        "has the std of its c",
    ),
    "phi the other way": (rescale_with(mix=lambda phi: 1 - phi), "phi = 0 is plain guidance"),
    "the mean kept": (rescale_with(centre=True), "a multiple of plain guidance.*nothing is subtracted"),
    "the paper's scale": (rescale_with(count=lambda w: 1 + w), "phi = 0 is plain guidance"),
    "all or nothing": (rescale_with(mix=lambda phi: float(phi > 0)), "seven tenths"),
    "c for the plain guidance": (
        lambda u, c, w, phi: phi * rescale_guided(u, c, w, 1.0) + (1 - phi) * c,
        "phi = 0 is plain guidance",
    ),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def belief(alpha, sigma, m, a):
    # x0 = p x + q and eps = r x + s
    v = alpha**2 * a + sigma**2
    return alpha * a / v, m - alpha**2 * a * m / v, sigma / v, -sigma * alpha * m / v


def guided_moments(schedule, ts, m, a, b, w):
    like, mean, var = torch.zeros(1, 1, dtype=F64), 0.0, 1.0
    for t, s in zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True):
        ct, cs = (schedule(k, like=like) for k in (t, s))
        c, u = (belief(ct.alpha.item(), ct.sigma.item(), *law) for law in ((m, a), (0.0, b)))
        p, q, r, k = (w * i + (1 - w) * j for i, j in zip(c, u, strict=True))
        slope, shift = (cs.alpha.item() * i + cs.sigma.item() * j for i, j in ((p, r), (q, k)))
        mean, var = slope * mean + shift, slope**2 * var
    return mean, var


def moments_from_two_points(schedule, ts, m, a, b, w):
    x = torch.tensor([[0.0], [1.0]], dtype=F64)
    for t, s in td.pairs(ts):
        ct, cs = schedule(t, like=x), schedule(s, like=x)
        c, u = (
            (mean + ct.alpha * var * (x - ct.alpha * mean) / (ct.alpha**2 * var + ct.sigma**2)).clone()
            for mean, var in ((m, a), (0.0, b))
        )
        x0 = u + w * (c - u)
        x = cs.alpha * x0 + cs.sigma * (x - ct.alpha * x0) / ct.sigma
    return x[0, 0], (x[1, 0] - x[0, 0]) ** 2


def moments_with(
    square=lambda slope: slope**2,
    mean_=lambda slope, shift, mean: slope * mean + shift,
    count=lambda w: w,
    law=lambda m, a: (m, a),
    guide_eps=True,
    end=lambda mean, var: (mean, var),
    times=lambda ts: ts,
    noise=0.0,
):
    def f(schedule, ts, m, a, b, w):
        like, mean, var, ts = torch.zeros(1, 1, dtype=F64), 0.0, 1.0, times(ts)
        for t, s in zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True):
            ct, cs = (schedule(k, like=like) for k in (t, s))
            c, u = (belief(ct.alpha.item(), ct.sigma.item(), *law(*v)) for v in ((m, a), (0.0, b)))
            p, q, r, k = (count(w) * i + (1 - count(w)) * j for i, j in zip(c, u, strict=True))
            r, k = (r, k) if guide_eps else c[2:]
            slope, shift = (cs.alpha.item() * i + cs.sigma.item() * j for i, j in ((p, r), (q, k)))
            fresh = noise * td.posterior(ct, cs).var.item() if s > 0 else 0.0
            mean, var = mean_(slope, shift, mean), square(slope) * var + fresh
        return end(mean, var)

    return f


GUIDED_MOMENTS_MUTANTS = {
    "the slope not squared": (moments_with(square=abs), "one step, w = 1: the variance.*slope squared"),
    "shifts added up": (
        moments_with(mean_=lambda slope, shift, mean: mean + shift),
        "four steps: the mean.*mapped as a point",
    ),
    "the paper's convention": (moments_with(count=lambda w: 1 + w), "w = 0, means at 0|one step, w = 1"),
    "the std for the variance": (moments_with(law=lambda m, a: (m, a**2)), "one step, w = 1: the mean"),
    "x0 guided alone": (moments_with(guide_eps=False), "w = 0, means at 0|one step, w = 3"),
    "the tilted density": (
        lambda schedule, ts, m, a, b, w: tuple(td.exact.tilted_gaussian(m, a, b, w)),
        "came: +the variance of the tilted density",
    ),
    "endless steps": (
        lambda schedule, ts, m, a, b, w: tuple(td.exact.guided_gaussian(m, a, b, w)),
        "came: +the variance that endless steps sample",
    ),
    "the std returned": (moments_with(end=lambda mean, var: (mean, var**0.5)), "one step, w = 1: the variance"),
    "fresh noise, as ancestral": (moments_with(noise=1.0), "one step, w = 1: the variance"),
    "the last step left out": (
        moments_with(times=lambda ts: ts[:-1] if len(ts) > 2 else ts),
        "four steps: the mean.*to the last",
    ),
    "the mean alone": (moments_with(end=lambda mean, var: mean), "two numbers come back"),
}

EXERCISES = {
    "label_drop": (td.check.label_drop, [label_drop, label_drop_by_mask], LABEL_DROP_MUTANTS),
    "guided_eps": (td.check.guided_eps, [guided_eps, guided_eps_interleaved], GUIDED_EPS_MUTANTS),
    "interval_scales": (
        td.check.interval_scales,
        [interval_scales, interval_scales_one_by_one],
        INTERVAL_SCALES_MUTANTS,
    ),
    "rescale_guided": (td.check.rescale_guided, [rescale_guided, rescale_one_by_one], RESCALE_GUIDED_MUTANTS),
    "guided_moments": (td.check.guided_moments, [guided_moments, moments_from_two_points], GUIDED_MOMENTS_MUTANTS),
}
