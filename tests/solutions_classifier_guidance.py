"""Solutions of exercises 12, right and wrong, and what a wrong one is told: see test_checks."""

import torch
import torch.nn.functional as F

import tinydiff as td

# ---- exercise 1 --------------------------------------------------------------------------------------


def class_gradient(logits, x, y):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        log_p = logits(x).log_softmax(1).gather(1, y[:, None])
        return torch.autograd.grad(log_p.sum(), x)[0]


def class_gradient_by_loss(logits, x, y):
    with torch.enable_grad():
        copy = x.detach().clone().requires_grad_()
        F.cross_entropy(logits(copy), y, reduction="sum").backward()
    return -copy.grad


def class_gradient_one_by_one(logits, x, y):
    rows = []
    for i in range(len(x)):
        with torch.enable_grad():
            one = x[i : i + 1].detach().requires_grad_()
            out = logits(one)[0]
            rows.append(torch.autograd.grad(out[y[i]] - out.logsumexp(0), one)[0])
    return torch.cat(rows)


def gradient_of(value):
    """The gradient of a number made of the logits and y."""

    def f(logits, x, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(value(logits(x), y), x)[0]

    return f


def pick(rows, y):
    return rows.gather(1, y[:, None])


def without_enable(logits, x, y):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(pick(logits(x).log_softmax(1), y).sum(), x)[0]


def on_the_callers_x(logits, x, y):
    with torch.enable_grad():
        return torch.autograd.grad(pick(logits(x.requires_grad_()).log_softmax(1), y).sum(), x)[0]


def with_graph(logits, x, y):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(pick(logits(x).log_softmax(1), y).sum(), x, create_graph=True)[0]


CLASS_GRADIENT_MUTANTS = {
    "log-softmax left out": (gradient_of(lambda out, y: pick(out, y).sum()), "w_y less.*a single logit leaves out"),
    "softmax without log": (gradient_of(lambda out, y: pick(out.softmax(1), y).sum()), "w_y less.*without the log"),
    "the sign of a loss": (gradient_of(lambda out, y: F.cross_entropy(out, y, reduction="sum")), "w_y less.*uphill"),
    "a mean over the batch": (
        gradient_of(lambda out, y: pick(out.log_softmax(1), y).mean()),
        "w_y less.*sum the batch",
    ),
    "softmax over the batch": (
        gradient_of(lambda out, y: pick(out.log_softmax(0), y).sum()),
        "w_y less.*hint: +the softmax runs over the classes",
    ),
    "softmax, and then log": (
        gradient_of(lambda out, y: pick(out.softmax(1), y).log().sum()),
        "any real numbers.*float32.*±200 and 0.*nan where 40.*never leaves the logs",
    ),
    "softmax and log in float64": (
        gradient_of(lambda out, y: pick(out.double().softmax(1), y).log().sum()),
        "any real numbers.*float64.*±2000 and 0.*nan where 400.*never leaves the logs",
    ),
    "exponentials that overflow": (
        gradient_of(lambda out, y: (pick(out, y)[:, 0] - out.exp().sum(1).log()).sum()),
        "any real numbers.*nan.*never leaves the logs",
    ),
    "the batch not summed": (
        gradient_of(lambda out, y: pick(out.log_softmax(1), y)),
        "the function runs.*scalar outputs.*hint: +each sample.*sum the batch",
    ),
    "an index of one axis": (
        gradient_of(lambda out, y: out.log_softmax(1).gather(1, y).sum()),
        "the function runs.*hint: +y is \\(b,\\).*an index of as many axes",
    ),
    "class 0 for all": (gradient_of(lambda out, y: out.log_softmax(1)[:, 0].sum()), "w_y less.*its own class"),
    "the classes summed": (gradient_of(lambda out, y: out.log_softmax(1).sum()), "w_y less.*its own class"),
    "columns y of every row": (
        gradient_of(lambda out, y: out.log_softmax(1)[:, y].sum()),
        "w_y less.*hint: +\\[:, y\\] takes the columns",
    ),
    "the surest class": (gradient_of(lambda out, y: out.log_softmax(1).amax(1).sum()), "w_y less.*its own class"),
    "half the gradient": (
        gradient_of(lambda out, y: pick(out.log_softmax(1), y).sum() / 2),
        "w_y less.*hint: +look in turn",
    ),
    "no enable_grad": (without_enable, "within a sampler.*enable_grad"),
    "the caller's x": (on_the_callers_x, "x is left as it was.*copy"),
    "a graph behind it": (with_graph, "a plain tensor.*carries no graph"),
    "float32": (lambda logits, x, y: class_gradient(logits, x, y).float(), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def guided_belief(x, eps, gradient, alpha, sigma, scale):
    eps = eps - scale * sigma * gradient
    return (x - sigma * eps) / alpha, eps


def guided_belief_from_x0(x, eps, gradient, alpha, sigma, scale):
    x0 = (x - sigma * eps) / alpha + scale * sigma**2 / alpha * gradient
    return x0, (x - alpha * x0) / sigma


def guided_belief_by_score(x, eps, gradient, alpha, sigma, scale):
    score = -eps / sigma + scale * gradient
    return (x + sigma**2 * score) / alpha, -sigma * score


def belief_with(step, x0=lambda x, old, new, a, s: (x - s * new) / a):
    def f(x, eps, gradient, alpha, sigma, scale):
        new = eps + step(gradient, alpha, sigma, scale)
        return x0(x, eps, new, alpha, sigma), new

    return f


GUIDED_BELIEF_MUTANTS = {
    "the other sign": (belief_with(lambda g, a, s, w: w * s * g), "exact one of the class.*mind sign"),
    "sigma forgotten": (belief_with(lambda g, a, s, w: -w * g), "exact one of the class.*sigma times"),
    "sigma squared": (belief_with(lambda g, a, s, w: -w * s**2 * g), "exact one of the class.*sigma times"),
    "divided by sigma": (belief_with(lambda g, a, s, w: -w * g / s), "exact one of the class.*sigma times"),
    "alpha too": (belief_with(lambda g, a, s, w: -w * s * g / a), "exact one of the class.*sigma times"),
    "the scale counted from the class": (belief_with(lambda g, a, s, w: -(1 + w) * s * g), "of no guidance.*scale 0"),
    "the scale less one": (belief_with(lambda g, a, s, w: -(w - 1) * s * g), "of no guidance.*scale 0"),
    "the scale forgotten": (belief_with(lambda g, a, s, w: -s * g), "of no guidance.*scale 0"),
    "x0 left behind": (
        belief_with(lambda g, a, s, w: -w * s * g, lambda x, old, new, a, s: (x - s * old) / a),
        "x0 is the exact one.*x0 follows",
    ),
    "x0 without alpha": (
        belief_with(lambda g, a, s, w: -w * s * g, lambda x, old, new, a, s: x - s * new),
        "x0 is that of no guidance.*x0 follows",
    ),
    "the scale squared": (belief_with(lambda g, a, s, w: -(w**2) * s * g), "in proportion"),
    "the other order": (lambda *v: guided_belief(*v)[::-1], "x0 comes back, then eps.*the two are exchanged"),
    "alpha from sigma": (
        lambda x, e, g, a, s, w: guided_belief(x, e, g, (1 - s**2).sqrt(), s, w),
        "x0 is that of the class on every path.*alpha \\+ sigma = 1.*not on this one",
    ),
    "sigma from alpha": (
        lambda x, e, g, a, s, w: guided_belief(x, e, g, a, (1 - a**2).sqrt(), w),
        "eps is that of the class on every path.*alpha \\+ sigma = 1.*not on this one",
    ),
    "alpha of one axis": (
        lambda x, e, g, a, s, w: guided_belief(x, e, g, a[:, 0], s[:, 0], w),
        "the function runs.*hint: +x, eps and gradient.*already",
    ),
    "eps alone": (lambda *v: guided_belief(*v)[1], "two tensors"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def noisy_posterior(x, means, std, weights, alpha, sigma):
    var = alpha**2 * std**2 + sigma**2
    away = ((x[:, None] - alpha * means) ** 2).sum(2)
    return (weights.log() - away / (2 * var) - x.shape[1] / 2 * var.log()).softmax(1)


def noisy_posterior_by_distributions(x, means, std, weights, alpha, sigma):
    width = (alpha**2 * std**2 + sigma**2).sqrt()[:, None].expand_as(means)
    normal = torch.distributions.Independent(torch.distributions.Normal(alpha * means, width), 1)
    joint = normal.log_prob(x[:, None]) + weights.log()
    return (joint - joint.logsumexp(1, keepdim=True)).exp()


def posterior_with(
    var=lambda s, a, n: a**2 * s**2 + n**2,
    mean=lambda m, a: a * m,
    width=lambda d, var: d / 2 * var.log(),
    prior=lambda w: w.log(),
    dim=1,
):
    def f(x, means, std, weights, alpha, sigma):
        v = var(std, alpha, sigma)
        away = ((x[:, None] - mean(means, alpha)) ** 2).sum(2)
        return (prior(weights) - away / (2 * v) - width(x.shape[1], v)).softmax(dim)

    return f


def posterior_without_logs(x, means, std, weights, alpha, sigma):
    var = alpha**2 * std**2 + sigma**2
    density = weights * (-((x[:, None] - alpha * means) ** 2).sum(2) / (2 * var)).exp() / var ** (x.shape[1] / 2)
    return density / density.sum(1, keepdim=True)


NOISY_POSTERIOR_MUTANTS = {
    "the posterior of clean data": (
        posterior_with(lambda s, a, n: s**2, lambda m, a: m),
        "noise makes it less sure.*hint: +this is the posterior of clean data: the noise",
    ),
    "the noise forgotten": (
        posterior_with(lambda s, a, n: a**2 * s**2),
        "noise makes it less sure.*hint: +this is the posterior of clean data: the noise",
    ),
    "divided by alpha": (
        lambda x, m, s, w, a, n: noisy_posterior(x / a, m, (s**2 + (n / a) ** 2).sqrt(), w, 1.0, 0.0),
        "the function runs.*ZeroDivisionError.*hint: +a number given may be 0",
    ),
    "tensors divided by alpha": (
        lambda x, m, s, w, a, n: noisy_posterior(x / a, m, (s**2 + n**2 / x.new_tensor(a) ** 2).sqrt(), w, 1.0, 0.0),
        "of noise alone.*nan.*hint: +a number given may be 0",
    ),
    "widths along the coordinates": (
        lambda x, m, s, w, a, n: noisy_posterior(x, m / s, s, w, a, n),
        "the function runs.*hint: +std and weights are \\(k,\\)",
    ),
    "alpha forgotten": (posterior_with(mean=lambda m, a: m), "alpha scales the means.*alpha m_k"),
    "alpha forgotten in the spread": (posterior_with(lambda s, a, n: s**2 + n**2), "alpha scales.*variances add"),
    "standard deviations added": (posterior_with(lambda s, a, n: (a * s + n) ** 2), "less sure.*variances add"),
    "sigma not squared": (posterior_with(lambda s, a, n: a**2 * s**2 + n), "less sure.*variances add"),
    "the noise alone": (
        posterior_with(lambda s, a, n: torch.full_like(s, n**2 + 1e-12)),
        "clean data|less sure|so do the widths",
    ),
    "weights forgotten": (posterior_with(prior=lambda w: 0 * w), "the weights count.*weight times density"),
    "weights without log": (posterior_with(prior=lambda w: w), "the weights count.*weight times density"),
    "the width forgotten": (posterior_with(width=lambda d, v: 0 * v), "so do the widths.*power d"),
    "the width of one dimension": (posterior_with(width=lambda d, v: v.log() / 2), "so do the widths.*power d"),
    "over the batch": (posterior_with(dim=0), "each row sums to 1.*axis 1"),
    "no logs": (posterior_without_logs, "far from all means.*work with logs"),
    "log probabilities": (lambda *v: noisy_posterior(*v).log(), "each row sums to 1"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def guided_step(x, x0, a_x0, a_x, var, gradient, scale, noise):
    return a_x0 * x0 + a_x * x + scale * var * gradient(x) + var**0.5 * noise


def guided_step_in_parts(x, x0, a_x0, a_x, var, gradient, scale, noise):
    std = var**0.5
    mean = a_x * x + a_x0 * x0
    return mean + std * (noise + std * scale * gradient(x))


def step_with(
    at=lambda x, mean: x, by=lambda v: v, spread=lambda v, s: v**0.5, sign=1, mean=lambda a, b, x0, x: a * x0 + b * x
):
    def f(x, x0, a_x0, a_x, var, gradient, scale, noise):
        m = mean(a_x0, a_x, x0, x)
        return m + sign * scale * by(var) * gradient(at(x, m)) + spread(var, scale) * noise

    return f


def guided_step_twice(x, x0, a_x0, a_x, var, gradient, scale, noise):
    mean = a_x0 * x0 + a_x * x
    return mean + var * scale * (gradient(x) + gradient(x)) / 2 + var**0.5 * noise


def guided_step_noise_guided(x, x0, a_x0, a_x, var, gradient, scale, noise):
    return a_x0 * x0 + a_x * x + var**0.5 * (noise + scale * gradient(x))


GUIDED_STEP_MUTANTS = {
    "the gradient at the mean": (step_with(at=lambda x, m: m), "gradient is taken at x_t.*not at the mean"),
    "by the standard deviation": (step_with(by=lambda v: v**0.5), "moves by scale.*not by the standard"),
    "by the standard deviation, as noise is": (guided_step_noise_guided, "moves by scale.*not by the standard"),
    "the variance forgotten": (step_with(by=lambda v: 1), "moves by scale.*not by the standard"),
    "downhill": (step_with(sign=-1), "moves by scale.*uphill"),
    "noise times the variance": (step_with(spread=lambda v, s: v), "root var"),
    "no noise": (step_with(spread=lambda v, s: 0), "root var"),
    "noise scaled too": (step_with(spread=lambda v, s: v**0.5 * max(s, 1)), "leaves the noise as it is"),
    "the two parts of the mean exchanged": (
        step_with(mean=lambda a, b, x0, x: a * x + b * x0),
        "mean of the posterior",
    ),
    "x forgotten": (step_with(mean=lambda a, b, x0, x: a * x0), "mean of the posterior"),
    "the root of a number by torch": (
        step_with(spread=lambda v, s: torch.sqrt(v)),
        "the function runs.*TypeError.*hint: +a plain number is no tensor",
    ),
    "a number with an axis": (
        step_with(spread=lambda v, s: v[:, None]),
        "the function runs.*TypeError.*hint: +the line and what it says",
    ),
    "asked twice": (guided_step_twice, "asked for once"),
    "the scale counted from the class": (
        lambda x, x0, a, b, v, g, s, n: guided_step(x, x0, a, b, v, g, s + 1, n),
        "mean of the posterior",
    ),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def tempting_law(x, log_p, scale):
    weight = ((scale - 1) * log_p).softmax(0)[:, None]
    mean = (weight * x).sum(0)
    return mean, (weight * (x - mean) ** 2).sum(0)


def tempting_law_by_hand(x, log_p, scale):
    power = (scale - 1) * log_p
    weight = (power - power.max()).exp()
    mean = weight @ x / weight.sum()
    return mean, weight @ x**2 / weight.sum() - mean**2


def tempting_with(power=lambda s: s - 1, weigh=lambda a: a.softmax(0), centre=lambda w, x: (w * x).sum(0), spread=None):
    def f(x, log_p, scale):
        weight = weigh(power(scale) * log_p)[:, None]
        mean = centre(weight, x)
        return mean, spread(weight, x, mean) if spread else (weight * (x - mean) ** 2).sum(0)

    return f


TEMPTING_LAW_MUTANTS = {
    "the exponent counted from p(x)": (tempting_with(lambda s: s), "at scale 1.*what is left to do"),
    "the other sign": (tempting_with(lambda s: 1 - s), "the mean is that of"),
    "not normalised": (tempting_with(weigh=lambda a: a.exp() / len(a)), "common to all.*divide by their sum"),
    "exponentials that underflow": (
        tempting_with(weigh=lambda a: a.exp() / a.exp().sum()),
        "common to all.*2000.*subtract the largest",
    ),
    "weights in place of their logs": (
        lambda x, log_p, scale: tempting_law(x, log_p.exp(), scale),
        "common to all|the mean is that of",
    ),
    "the variance about the plain mean": (
        tempting_with(spread=lambda w, x, m: (w * (x - x.mean(0)) ** 2).sum(0)),
        "the variance is that of.*from \\*that\\* mean",
    ),
    "the variance of all draws": (
        tempting_with(spread=lambda w, x, m: x.var(0)),
        "the variance is that of.*both moments are weighted",
    ),
    "the variance without weights": (
        tempting_with(spread=lambda w, x, m: ((x - m) ** 2).mean(0)),
        "the variance is that of.*both moments are weighted",
    ),
    "the standard deviation": (
        tempting_with(spread=lambda w, x, m: (w * (x - m) ** 2).sum(0).sqrt()),
        "the variance is that of.*hint: +this is the standard deviation",
    ),
    "weights of one axis": (
        lambda x, log_p, scale: (((scale - 1) * log_p).softmax(0) * x).sum(0),
        "the function runs.*hint: +each row of x has one weight",
    ),
    "one number for all coordinates": (
        lambda x, log_p, scale: tuple(v.mean() for v in tempting_law(x, log_p, scale)),
        "the mean has shape",
    ),
    "the mean alone": (lambda x, log_p, scale: tempting_law(x, log_p, scale)[0].sum(), "two tensors"),
}

EXERCISES = {
    "class_gradient": (
        td.check.class_gradient,
        [class_gradient, class_gradient_by_loss, class_gradient_one_by_one],
        CLASS_GRADIENT_MUTANTS,
    ),
    "guided_belief": (
        td.check.guided_belief,
        [guided_belief, guided_belief_from_x0, guided_belief_by_score],
        GUIDED_BELIEF_MUTANTS,
    ),
    "noisy_posterior": (
        td.check.noisy_posterior,
        [noisy_posterior, noisy_posterior_by_distributions],
        NOISY_POSTERIOR_MUTANTS,
    ),
    "guided_step": (td.check.guided_step, [guided_step, guided_step_in_parts], GUIDED_STEP_MUTANTS),
    "tempting_law": (td.check.tempting_law, [tempting_law, tempting_law_by_hand], TEMPTING_LAW_MUTANTS),
}
