"""Solutions of exercises 10, right and wrong, and what a wrong one is told: see test_checks."""

import torch

import tinydiff as td
from tinydiff import flow

# ---- exercise 1 --------------------------------------------------------------------------------------


def velocity_from_score(x, score, alpha, sigma, dalpha, dsigma):
    alpha, sigma, dalpha, dsigma = (v[:, None] for v in (alpha, sigma, dalpha, dsigma))
    return dalpha * (x + sigma**2 * score) / alpha - dsigma * sigma * score


def velocity_by_sde(x, score, alpha, sigma, dalpha, dsigma):
    f = dalpha / alpha
    g2 = 2 * sigma * dsigma - 2 * f * sigma**2
    return f[:, None] * x - g2[:, None] / 2 * score


def velocity_by_rows(x, score, alpha, sigma, dalpha, dsigma):
    rows = []
    for k in range(len(x)):
        eps = -sigma[k] * score[k]
        rows.append(dalpha[k] / alpha[k] * (x[k] - sigma[k] * eps) + dsigma[k] * eps)
    return torch.stack(rows)


def velocity_with(sign=1.0, power=2, of_x0=1.0, half=1.0, target=False):
    def f(x, score, alpha, sigma, dalpha, dsigma):
        alpha, sigma, dalpha, dsigma = (v[:, None] for v in (alpha, sigma, dalpha, dsigma))
        score = sign * score
        x0, eps = (x + sigma**power * score) / alpha, -sigma * score
        if target:
            return alpha * eps - sigma * x0
        return of_x0 * dalpha * x0 + half * dsigma * eps

    return f


def velocity_of_sde(x, score, alpha, sigma, dalpha, dsigma):
    f = dalpha / alpha
    return f[:, None] * x - (2 * sigma * dsigma - 2 * f * sigma**2)[:, None] * score


VELOCITY_MUTANTS = {
    "score is +eps / sigma": (velocity_with(sign=-1.0), "moves with this velocity.*a sign is turned round: the score"),
    "score is +eps / sigma in x0 alone": (
        lambda x, s, *c: velocity_from_score(x, s, *c) - 2 * (c[2] / c[0] * c[1] ** 2)[:, None] * s,
        "moves with this velocity.*a sign is turned round: the score",
    ),
    "from noise to data": (lambda *a: -velocity_from_score(*a), "moves with this velocity.*away from the data"),
    "sigma, not its square": (velocity_with(power=1), "moves with this velocity"),
    "the noise alone": (velocity_with(of_x0=0.0), "moves with this velocity"),
    "the straight path's": (
        lambda x, s, a, g, da, dg: -g[:, None] * s - (x + g[:, None] ** 2 * s) / a[:, None],
        "variance-preserving",
    ),
    "drift of the SDE": (velocity_of_sde, "moves with this velocity.*half of its score"),
    "the target v": (velocity_with(target=True), "moves with this velocity.*target v"),
    "noise half as fast": (velocity_with(half=0.5), "moves with this velocity"),
    "coefficients along the wrong axis": (lambda x, s, a, g, da, dg: da * x - dg * g * s, "runs.*should be .b, 1."),
    "one number for each point": (lambda *a: velocity_from_score(*a).sum(1), "shape"),
    "float32": (lambda *a: velocity_from_score(*a).float(), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def sorted_pairs(x0, eps):
    return eps.sort().values[x0.argsort().argsort()]


def pairs_by_placing(x0, eps):
    out = torch.empty_like(eps)
    out[x0.argsort()] = eps.sort().values
    return out


def pairs_by_solver(x0, eps):
    return flow.paired_by_transport(x0[:, None], eps[:, None])[:, 0]


def greedy(x0, eps):
    left, out = eps.tolist(), []
    for v in x0.tolist():
        out.append(left.pop(min(range(len(left)), key=lambda i: abs(left[i] - v))))
    return torch.tensor(out, dtype=eps.dtype)


def pairs_in_place(x0, eps):
    eps[:] = sorted_pairs(x0, eps)
    return eps


PAIRS_MUTANTS = {
    "unchanged": (lambda x0, eps: eps.clone(), "costs less"),
    "sorted noise": (lambda x0, eps: eps.sort().values, "costs less.*argsort twice"),
    "argsort once": (lambda x0, eps: eps.sort().values[x0.argsort()], "costs less.*argsort twice"),
    "order of x0 on unsorted noise": (lambda x0, eps: eps[x0.argsort().argsort()], "costs less"),
    "upside down": (lambda x0, eps: sorted_pairs(-x0, eps), "costs less.*small goes with small"),
    "nearest": (lambda x0, eps: eps[(x0[:, None] - eps).abs().argmin(1)], "each once"),
    "greedy": (greedy, "costs less"),
    "x0 comes back": (lambda x0, eps: x0.sort().values[eps.argsort().argsort()], "each once"),
    "changed in place": (pairs_in_place, "changed in place"),
    "indices": (lambda x0, eps: x0.argsort().argsort(), "dtype"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def points_velocity(x, t, points):
    t = t[:, None]
    away = x[:, None] - (1 - t)[:, None] * points
    r = (-away.square().sum(2) / (2 * t**2)).softmax(1)
    x0 = r @ points
    return (x - x0) / t


def points_velocity_by_library(x, t, points):
    S = td.Flow(max_logsnr=float("inf"))
    return td.IdealDenoiser(points, S)(x, t).velocity(S(t, like=x))


def points_velocity_by_mean(x, t, points):
    out = []
    for y, s in zip(x, t, strict=True):
        log_p = -((y - (1 - s) * points) ** 2).sum(1) / s**2 / 2
        r = (log_p - log_p.logsumexp(0)).exp()
        eps = (y - (1 - s) * points) / s
        out.append((r[:, None] * (eps - points)).sum(0))
    return torch.stack(out)


def points_with(shrink=True, power=2, softmax=True, half=0.5, sign=1.0, data=False):
    def f(x, t, points):
        t = t[:, None]
        away = x[:, None] - ((1 - t)[:, None] if shrink else 1.0) * points
        log_p = -half * away.square().sum(2) / t**power
        r = log_p.softmax(1) if softmax else log_p.exp() / log_p.exp().sum(1, keepdim=True)
        return r @ points if data else sign * (x - r @ points) / t

    return f


def nearest_only(x, t, points):
    away = torch.stack([(y - (1 - s) * points).square().sum(1) for y, s in zip(x, t, strict=True)])
    return (x - points[away.argmin(1)]) / t[:, None]


POINTS_MUTANTS = {
    "points not shrunk": (points_with(shrink=False), "mass is kept"),
    "t, not its square": (points_with(power=1), "mass is kept"),
    "factor 1/2 lost": (points_with(half=1.0), "mass is kept"),
    "towards the data": (points_with(sign=-1.0), "mass is kept.*away from the data"),
    "x0 itself": (points_with(data=True), "mass is kept"),
    "the nearest point": (nearest_only, "mass is kept"),
    "the mean of all points": (lambda x, t, p: (x - p.mean(0)) / t[:, None], "mass is kept"),
    "densities, not logarithms": (points_with(softmax=False), "only the nearest.*softmax of logarithms"),
    "one time for all": (lambda x, t, p: points_velocity(x, t[:1].expand(len(t)), p), "one point"),
    "t along the wrong axis": (lambda x, t, p: x - p.mean(0) / t, "runs|shape"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def like(v, x):
    return v.reshape(-1, *[1] * (x.ndim - 1))


def adopt_lipman(net, x, t, sigma_min):
    tau = (1 - t) / (1 - sigma_min * (1 - t))
    y = x / like(1 - sigma_min * (1 - t), x)
    out = net(y, tau)
    eps = y - like(tau, x) * out
    return td.Prediction(out + (1 - sigma_min) * eps, eps)


def adopt_by_solve(net, x, t, sigma_min):
    keep = 1 - sigma_min
    tau = (1 - t) / (t + keep * (1 - t))
    a, s = like(tau, x), like(1 - keep * tau, x)
    y = (a + s) * x  # on the straight path alpha + sigma = 1
    out = net(y, tau)
    det = -a * keep - s  # of (a, s; 1, -keep)
    return td.Prediction((-keep * y - s * out) / det, (a * out - y) / det)


def adopt_with(flip=True, rescale=True, in_time=True, in_solve=True, sign=1.0, swap=False, wide=False):
    def f(net, x, t, sigma_min):
        m = sigma_min if in_time else 0.0
        tau = (1 - t) / (1 - m * (1 - t)) if flip else t
        y = x / like(1 - m * (1 - t), x) if rescale else x
        out = sign * net(y, tau[:, None] if wide else tau)
        eps = y - like(tau, x) * out
        x0 = out + (1 - sigma_min if in_solve else 1.0) * eps
        return td.Prediction(eps, x0) if swap else td.Prediction(x0, eps)

    return f


def from_x0_alone(net, x, t, sigma_min):
    p = adopt_with(in_solve=False)(net, x, t, sigma_min)
    return td.Prediction(p.x0, (x - like(1 - t, x) * p.x0) / like(t, x))


ADOPT_MUTANTS = {
    "their time as ours": (adopt_with(flip=False), "signal / noise.*sigma_min = 0.0"),
    "sigma_min not in the time": (adopt_with(in_time=False), "signal / noise.*sigma_min = 0.1"),
    "x not rescaled": (adopt_with(rescale=False), "scale of its own path.*sigma_min = 0.1"),
    "solved as if sigma_min were 0": (adopt_with(in_solve=False), "x = .1 - t. x0.*sigma_min = 0.1"),
    "x0 as if sigma_min were 0, eps from it": (from_x0_alone, "x0 is the mean.*sigma_min = 0.1"),
    "their direction as ours": (adopt_with(sign=-1.0), "x0 is the mean.*sigma_min = 0.0"),
    "x0 and eps swapped": (adopt_with(swap=True), "x = .1 - t. x0"),
    "a column of times": (adopt_with(wide=True), "one time for each y"),
    "a pair of tensors": (lambda *a: (adopt_lipman(*a).x0, adopt_lipman(*a).eps), "td.Prediction"),
    "the network not asked": (lambda net, x, t, m: td.Prediction(x, x), "no call of net"),
}

EXERCISES = {
    "velocity_from_score": (
        td.check.velocity_from_score,
        [velocity_from_score, velocity_by_sde, velocity_by_rows],
        VELOCITY_MUTANTS,
    ),
    "sorted_pairs": (td.check.sorted_pairs, [sorted_pairs, pairs_by_placing, pairs_by_solver], PAIRS_MUTANTS),
    "points_velocity": (
        td.check.points_velocity,
        [points_velocity, points_velocity_by_library, points_velocity_by_mean],
        POINTS_MUTANTS,
    ),
    "adopt_lipman": (td.check.adopt_lipman, [adopt_lipman, adopt_by_solve], ADOPT_MUTANTS),
}
