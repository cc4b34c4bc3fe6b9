"""Samplers against Bayes' rule on a grid, closed forms for Gaussian data, and each other, with the same noise."""

import math

import pytest
import torch
from test_schedules import EVERY, MOST, PLAIN, every

import tinydiff as td
from tinydiff.samplers import large, learned, small

F64 = torch.float64
PAIRS = [(0.0705, 0.0305), (0.5005, 0.4005), (0.9505, 0.2505)]  # (t, s)
each_pair = pytest.mark.parametrize("t, s", PAIRS)


def close(a, b, tol=1e-12):
    """b may be one number for all of a."""
    a = torch.as_tensor(a, dtype=F64)
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=F64).expand_as(a), atol=tol, rtol=tol)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


def both(S, t, s, like=None):
    like = torch.empty(1, 1, dtype=F64) if like is None else like
    return S(t, like=like), S(s, like=like)


MEAN, STD = torch.tensor([[0.7, -0.3]], dtype=F64), 0.4


def gaussian(S, std=STD):
    """Data N(MEAN, STD^2): the denoiser is affine, so each step is too."""
    return td.GaussianMixture(MEAN, std, None, S)


def shrinkage(c, std=STD):
    """K with E[x0 | x] = m + K (x - alpha m), and the variance that is left: linear regression by hand."""
    k = c.alpha * std**2 / (c.alpha**2 * std**2 + c.sigma**2)
    return float(k), float(std**2 * (1 - k * c.alpha))


# ---- the posterior of the chain ------------------------------------------------------------------


@every(*MOST)
@each_pair
def test_posterior_is_bayes_rule_on_a_grid(S, t, s):
    """q(x_s | x0) q(x_t | x_s), multiplied out and integrated over x_s."""
    ct, cs = both(S, t, s)
    alpha_t, sigma_t, alpha_s, sigma_s = (float(v) for v in (ct.alpha, ct.sigma, cs.alpha, cs.sigma))
    x0, xt = 0.6, alpha_t * 0.6 + 0.8 * sigma_t
    scale = alpha_t / alpha_s  # x_t = scale x_s + the noise that is new
    new = sigma_t**2 - scale**2 * sigma_s**2
    xs = alpha_s * x0 + sigma_s * torch.linspace(-12, 12, 40001, dtype=F64)
    log = -((xs - alpha_s * x0) ** 2) / (2 * sigma_s**2) - (xt - scale * xs) ** 2 / (2 * new)
    p = (log - log.max()).exp()
    mean = (p * xs).sum() / p.sum()
    q = td.posterior(ct, cs)
    close((float(q.a_x0) * x0 + float(q.a_x) * xt) / sigma_s, mean / sigma_s, 1e-9)
    close(float(q.var) / sigma_s**2, (p * (xs - mean) ** 2).sum() / p.sum() / sigma_s**2, 1e-9)


@every(*MOST)
@each_pair
def test_posterior_keeps_the_marginals(S, t, s):
    """x_s = A x0 + B x_t + noise has the alpha and sigma of s; and the precision form of the variance."""
    ct, cs = both(S, t, s)
    q = td.posterior(ct, cs)
    close((q.a_x0 + q.a_x * ct.alpha) / cs.alpha, 1, 1e-11)
    close((q.var + q.a_x**2 * ct.sigma**2) / cs.sigma**2, 1, 1e-11)
    new = ct.sigma**2 - (ct.alpha / cs.alpha * cs.sigma) ** 2
    close(q.var * (1 / cs.sigma**2 + (ct.alpha / cs.alpha) ** 2 / new), 1, 1e-9)


@pytest.mark.parametrize("k", [2, 3, 500, 1000])
def test_posterior_of_ddpm(k):
    """Ho et al. 2020, eq. 6-7, from the betas alone."""
    betas = td.linear_betas(1000)
    abar = (1 - betas).cumprod(0)
    beta, now, before = betas[k - 1], abar[k - 1], abar[k - 2]
    ct, cs = both(td.DiscreteVP(betas), k / 1000, (k - 1) / 1000)
    q = td.posterior(ct, cs)
    close(q.a_x0, (before.sqrt() * beta / (1 - now)), 1e-11)
    close(q.a_x, ((1 - beta).sqrt() * (1 - before) / (1 - now)), 1e-11)
    close(q.var, (beta * (1 - before) / (1 - now)), 1e-11)
    close(large(nothing(), ct, cs), beta, 1e-13)
    # the mean in terms of the noise: (x - beta / sqrt(1 - abar) eps) / sqrt(1 - beta)
    x, eps = normal(1, 1), normal(1, 1, seed=1)
    x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
    close(q.a_x0 * x0 + q.a_x * x, (x - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt(), 1e-9)


def nothing():
    return td.Prediction(torch.zeros(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64))


def test_variances_of_ddpm():
    S = EVERY["linear"]
    ratio = {}
    for k in (2, 1000):
        ct, cs = both(S, k / 1000, (k - 1) / 1000)
        p = nothing()
        ratio[k] = float(small(p, ct, cs) / large(p, ct, cs))
        if k == 2:
            assert float(small(p, ct, cs)) == pytest.approx(5.4532e-5, rel=1e-4)
    assert ratio[2] == pytest.approx(0.4547, abs=1e-4) and ratio[1000] == pytest.approx(0.999999, abs=1e-6)


@every(*MOST)
@each_pair
def test_large_is_the_variance_of_the_noising_step(S, t, s):
    ct, cs = both(S, t, s)
    close(large(nothing(), ct, cs) / ct.sigma**2, 1 - (ct.alpha * cs.sigma / cs.alpha / ct.sigma) ** 2, 1e-11)
    assert 0 < small(nothing(), ct, cs) < large(nothing(), ct, cs) or S.alpha(t) == 1


@every(*MOST)
def test_the_step_into_the_data_is_the_data(S):
    ct, cs = both(S, 0.3, 0.0)
    q = td.posterior(ct, cs)
    assert q.a_x0 == 1 and q.a_x == 0 and q.var == 0


def test_the_step_out_of_pure_noise_is_finite():
    for S in (td.Cosine(math.inf), td.Flow(math.inf)):
        ct, cs = both(S, 1.0, 0.5)
        q = td.posterior(ct, cs)
        assert q.a_x0 == cs.alpha and q.a_x == 0 and q.var == cs.sigma**2
        x = td.final(td.ancestral(gaussian(S), normal(3, 2), td.grid(S, 4)))
        assert x.isfinite().all()
        x = td.final(td.ddim(gaussian(S), normal(3, 2), td.grid(S, 4), eta=1.0))
        assert x.isfinite().all()


# ---- ancestral sampling of Gaussian data, exactly ------------------------------------------------


def affine(sampler, d, t, s, **options):
    """(slope, intercept, std) of one step, read off the sampler itself: x_s = slope x_t + intercept + std z."""

    def step(x, seed=0):
        return td.final(sampler(d, x, torch.tensor([t, s], dtype=F64), generator=generator(seed), **options))

    zero = torch.zeros(1, 2, dtype=F64)
    basis = [step(torch.eye(2, dtype=F64)[i : i + 1]) - step(zero) for i in range(2)]
    slope = torch.cat(basis)
    close(slope, slope[0, 0] * torch.eye(2, dtype=F64), 1e-11)  # isotropic
    z = [torch.randn(1, 2, generator=generator(seed), dtype=F64) for seed in (0, 1)]
    std = (step(zero, 0) - step(zero, 1)) / (z[0] - z[1])
    close(std, std[0, 0].expand(1, 2), 1e-8)
    std = float(std[0, 0])
    return float(slope[0, 0]), step(zero) - std * z[0], std


@every(*PLAIN)
@pytest.mark.parametrize("var", [small, large], ids=["small", "large"])
def test_ancestral_on_gaussian_data_step_by_step(S, var):
    """The mean and variance that the sampler's own affine maps produce, against recursion by hand."""
    ts = [0.9505, 0.6655, 0.3005, 0.1105, 0.0305]
    d, m = gaussian(S), MEAN
    c = S(ts[0], like=MEAN)
    mean = by_hand = torch.zeros(1, 2, dtype=F64) + 0.1
    variance = spread = float(c.alpha**2 * STD**2 + c.sigma**2)
    for t, s in zip(ts, ts[1:], strict=False):
        slope, intercept, std = affine(td.ancestral, d, t, s, var=var)
        mean, variance = slope * mean + intercept, slope**2 * variance + std**2
        ct, cs = both(S, t, s)
        at, st, as_, ss = (float(v) for v in (ct.alpha, ct.sigma, cs.alpha, cs.sigma))
        beta = 1 - (at * ss / (as_ * st)) ** 2  # the share of the noise at t that is new
        k = shrinkage(ct)[0]
        a = as_ * beta * k + at * ss**2 / (as_ * st**2)
        noise = {small: ss**2 * beta, large: st**2 * beta}[var]
        by_hand = a * by_hand + as_ * beta * (1 - k * at) * m
        spread = a**2 * spread + noise
        close(mean, by_hand, 1e-9)
        close(variance / spread, 1, 1e-9)


@every(*PLAIN)
def test_ancestral_with_the_true_variance_has_the_true_marginals(S):
    """The true reverse kernel is Gaussian: the posterior's variance, and what is left of that of x0."""

    def true_variance(p, ct, cs):
        q = td.posterior(ct, cs)
        return q.var + q.a_x0**2 * shrinkage(ct)[1]

    ts = [0.9505, 0.6655, 0.3005, 0.1105, 0.0305]
    c = S(ts[0], like=MEAN)
    mean, variance = c.alpha * MEAN, float(c.alpha**2 * STD**2 + c.sigma**2)
    for t, s in zip(ts, ts[1:], strict=False):
        slope, intercept, std = affine(td.ancestral, gaussian(S), t, s, var=true_variance)
        mean, variance = slope * mean + intercept, slope**2 * variance + std**2
        cs = S(s, like=MEAN)
        close(mean, cs.alpha * MEAN, 1e-9)
        close(variance / float(cs.alpha**2 * STD**2 + cs.sigma**2), 1, 1e-9)


@pytest.mark.parametrize("name", ["linear", "VP", "EDM", "Flow"])
@pytest.mark.parametrize("x0", [-1.0, 0.3])
def test_the_variational_bound_of_gaussian_data_is_tight(name, x0):
    """With the true reverse kernels, L_T + sum of the KLs + L_0 = -log N(x0; 0, std^2) for every single x0."""
    S, std = EVERY[name], 0.3
    ts = td.grid(S, 50).tolist()[:-1]
    g = td.GaussianMixture(torch.zeros(1, 1, dtype=F64), std, None, S)

    def kl(mean2, var, other):  # of N(a, var) from N(b, other), with mean2 = E (a - b)^2
        return (math.log(other / var) + (var + mean2) / other - 1) / 2

    first = S(ts[0], like=torch.empty(1, 1, dtype=F64))
    prior = float(first.alpha**2 * std**2 + first.sigma**2)
    total = kl(float(first.alpha * x0) ** 2, float(first.sigma) ** 2, prior)
    for t, s in zip(ts, ts[1:], strict=False):
        ct, cs = both(S, t, s)
        q, (_, left) = td.posterior(ct, cs), shrinkage(ct, std)
        k = float(g(torch.ones(1, 1, dtype=F64), t).x0)  # the model believes x0 = k x_t
        off = float(q.a_x0) * x0 * (1 - k * float(ct.alpha))
        noise = float(q.a_x0) * k * float(ct.sigma)
        total += kl(off**2 + noise**2, float(q.var), float(q.var + q.a_x0**2 * left))
    last = S(ts[-1], like=torch.empty(1, 1, dtype=F64))
    k, left = shrinkage(last, std)
    miss = (x0 * (1 - k * float(last.alpha))) ** 2 + (k * float(last.sigma)) ** 2
    total += math.log(2 * math.pi * left) / 2 + miss / (2 * left)
    close(total, x0**2 / (2 * std**2) + math.log(2 * math.pi * std**2) / 2, 1e-9)


@every(*MOST)
def test_ancestral_trajectory_with_known_noise(S):
    """The whole run, with the noise drawn in the same order, against the step written out."""
    ts = td.grid(S, 5)
    d, x = gaussian(S), 2 * normal(3, 2)
    states = list(td.ancestral(d, x, ts, generator=generator(4)))
    g = generator(4)
    for state, t, s in zip(states, ts.tolist(), ts.tolist()[1:], strict=False):
        p, (ct, cs) = d(x, t), both(S, t, s, like=x)
        close(state.x0, p.x0, 1e-11)
        new = ct.sigma**2 - (ct.alpha / cs.alpha * cs.sigma) ** 2
        if s == 0:
            x = p.x0
        else:
            precision = 1 / cs.sigma**2 + (ct.alpha / cs.alpha) ** 2 / new
            mean = (cs.alpha * p.x0 / cs.sigma**2 + ct.alpha / cs.alpha * x / new) / precision
            x = mean + precision**-0.5 * torch.randn(x.shape, generator=g, dtype=F64)
        close(state.x, x, 1e-8)
        assert state.t == s


# ---- DDIM ----------------------------------------------------------------------------------------


@every(*MOST)
def test_ddim_is_euler_in_sigma_over_alpha(S):
    """d(x / alpha) = eps d(sigma / alpha) (Song et al. 2020, eq. 14)."""
    d, x = gaussian(S), normal(3, 2)
    for t, s in PAIRS:
        ct, cs = both(S, t, s, like=x)
        x_s = td.final(td.ddim(d, x, torch.tensor([t, s], dtype=F64)))
        step = x / ct.alpha + (cs.sigma / cs.alpha - ct.sigma / ct.alpha) * d(x, t).eps
        close(x_s, cs.alpha * step, 1e-10)


@every(*MOST)
def test_ddim_of_gaussian_data_in_closed_form(S):
    """In z = (x - alpha m) / alpha and r = sigma / alpha: z <- z (1 + (r_s - r_t) r_t / (std^2 + r_t^2))."""
    ts = [0.9505, 0.6655, 0.3005, 0.0305]
    x = normal(3, 2)
    states = list(td.ddim(gaussian(S), x, torch.tensor(ts, dtype=F64)))
    z = x / float(S.alpha(ts[0])) - MEAN
    for state, t, s in zip(states, ts, ts[1:], strict=False):
        rt, rs = (float(S.sigma(v) / S.alpha(v)) for v in (t, s))
        z = z * (1 + (rs - rt) * rt / (STD**2 + rt**2))
        close(state.x / float(S.alpha(s)) - MEAN, z, 1e-9)


def test_ddim_converges_to_the_flow_at_first_order():
    S, x = td.Cosine(), normal(3, 2)
    d, end = gaussian(S), 0.1
    ct, cs = both(S, 0.9, end)
    v = [float(c.alpha**2 * STD**2 + c.sigma**2) for c in (ct, cs)]
    exact = cs.alpha * MEAN + (v[1] / v[0]) ** 0.5 * (x - ct.alpha * MEAN)
    error = []
    for n in (64, 128):
        ts = torch.linspace(0.9, end, n + 1, dtype=F64)
        error.append(float((td.final(td.ddim(d, x, ts)) - exact).abs().max()))
    assert error[1] < 0.01 and 1.9 < error[0] / error[1] < 2.1


@every(*MOST)
def test_ddim_with_eta_one_is_ancestral_with_the_same_noise(S):
    d, x = gaussian(S), S.prior_std * normal(3, 2)
    ts = torch.tensor([0.9505, 0.6655, 0.3005, 0.1105, 0.0305, 0.0], dtype=F64)
    one = list(td.ancestral(d, x, ts, generator=generator(1)))
    two = list(td.ddim(d, x, ts, eta=1.0, generator=generator(1)))
    for a, b in zip(one, two, strict=True):
        close(a.x, b.x, 1e-11), close(a.x0, b.x0, 1e-11)


@every(*MOST)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step_keeps_the_marginal_of_a_pair(S, eta):
    """For the true x0 and eps, the mean stays alpha_s x0 and the variance sigma_s^2 (Song et al. 2020, lemma 1)."""
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    for t, s in PAIRS:
        ct, cs = both(S, t, s)
        close(td.ddim_step(td.Prediction(one, zero), ct, cs, eta), cs.alpha, 1e-12)
        along = td.ddim_step(td.Prediction(zero, one), ct, cs, eta)
        fresh = td.ddim_step(td.Prediction(zero, zero), ct, cs, eta, one)
        close((along**2 + fresh**2) / cs.sigma**2, one, 1e-12)
        close(fresh, eta * td.posterior(ct, cs).var.sqrt(), 1e-12)


@every(*MOST)
def test_one_step_of_point_data_returns_the_point(S):
    d = td.GaussianMixture(MEAN, 0.0, None, S)
    for t in (0.05, 0.5, 1.0):
        ts = torch.tensor([t, 0.0], dtype=F64)
        for run in (td.ddim(d, normal(3, 2), ts), td.ancestral(d, normal(3, 2), ts)):
            assert torch.equal(td.final(run), MEAN.expand(3, 2))
        path = td.final(td.ddim(d, normal(3, 2), torch.tensor([t, t / 2, 0.0], dtype=F64)))
        assert torch.equal(path, MEAN.expand(3, 2))


# ---- noise, gradients, states --------------------------------------------------------------------


@pytest.mark.parametrize("var", [small, large, lambda p, ct, cs: ct.sigma**2], ids=["small", "large", "own"])
def test_no_noise_at_the_last_step(var):
    S, d = td.DiscreteVP(td.linear_betas(10)), gaussian(td.DiscreteVP(td.linear_betas(10)))
    x = normal(3, 2)
    for sampler, options in ((td.ancestral, {"var": var}), (td.ddim, {"eta": 1.0})):
        *_, before, last = sampler(d, x, td.grid(S, 10), generator=generator(), **options)
        assert torch.equal(last.x, last.x0) and last.t == 0 and before.t == pytest.approx(0.1)
        close(last.x, d(before.x, 0.1).x0)


def test_each_step_but_the_last_draws_once():
    S, x = td.VP(), normal(3, 2)
    for sampler, options, draws in ((td.ancestral, {}, 4), (td.ddim, {"eta": 0.5}, 4), (td.ddim, {}, 0)):
        g, h = generator(3), generator(3)
        td.final(sampler(gaussian(S), x, td.grid(S, 5), generator=g, **options))
        for _ in range(draws):
            torch.randn(3, 2, generator=h, dtype=F64)
        assert torch.equal(g.get_state(), h.get_state())


def test_a_grid_may_stop_before_the_data():
    S = td.VP()
    *_, last = td.ancestral(gaussian(S), normal(3, 2), torch.tensor([1.0, 0.5], dtype=F64), generator=generator())
    assert last.t == 0.5 and not torch.equal(last.x, last.x0)


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t):
        return self.weight * x


@pytest.mark.parametrize("sampler", [td.ancestral, td.ddim], ids=["ancestral", "ddim"])
def test_gradients_only_if_asked_for(sampler):
    d, x = td.NetDenoiser(Scaled(), td.Cosine(), td.targets.v), torch.randn(2, 3, generator=generator())
    ts = td.grid(d.schedule, 3)
    for state in sampler(d, x, ts):
        assert not state.x.requires_grad and not state.x0.requires_grad
        assert torch.is_grad_enabled()  # between the steps the caller's own setting holds
    with torch.no_grad():
        for state in sampler(d, x, ts, grad=True):
            assert state.x.requires_grad and not torch.is_grad_enabled()
    x.requires_grad_()
    td.final(sampler(d, x, ts, grad=True)).sum().backward()
    assert d.net.weight.grad.abs() > 0 and x.grad.abs().sum() > 0


@pytest.mark.parametrize("sampler", [td.ancestral, td.ddim], ids=["ancestral", "ddim"])
def test_states_are_those_of_the_grid(sampler):
    S, x = td.Flow(), normal(4, 2)
    ts = td.grid(S, 6)
    states = list(sampler(gaussian(S), x, ts))
    assert [state.t for state in states] == ts.tolist()[1:]
    assert all(state.x.shape == state.x0.shape == x.shape and state.x.dtype == F64 for state in states)
    close(states[0].x0, gaussian(S)(x, S.t_max).x0)
    images = td.IdealDenoiser(normal(3, 1, 4, 4), S)
    assert td.final(sampler(images, normal(2, 1, 4, 4), ts)).shape == (2, 1, 4, 4)


def test_pairs():
    assert list(td.pairs(torch.tensor([1.0, 0.5, 0.0]))) == [(1.0, 0.5), (0.5, 0.0)]


# ---- a variance of one's own, or learned ---------------------------------------------------------


def twice(S, out):
    """A network with half its channels for the variance: always `out`."""

    class Twice(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([0.3 * x, torch.full_like(x, out)], 1)

    return td.NetDenoiser(Twice(), S, td.targets.eps, var=td.denoisers.interpolated_variance)


@every(*MOST)
@each_pair
def test_interpolated_variance(S, t, s):
    x = normal(2, 3)
    ct, cs = both(S, t, s, like=x)
    for out, wanted in (
        (1.0, lambda p: large(p, ct, cs)),
        (-1.0, lambda p: small(p, ct, cs)),
        (0.0, lambda p: (large(p, ct, cs) * small(p, ct, cs)).sqrt()),
        (2.0, lambda p: large(p, ct, cs) ** 1.5 / small(p, ct, cs) ** 0.5),
    ):
        p = twice(S, out)(x, t)
        close(learned(p, ct, cs) / wanted(p), torch.ones(2, 3), 1e-9)


def test_ancestral_with_a_learned_variance():
    S, x = td.DiscreteVP(td.cosine_betas(20)), normal(2, 3)
    for out, var in ((1.0, large), (-1.0, small)):
        d = twice(S, out)
        mine = td.final(td.ancestral(d, x, td.grid(S, 20), var=learned, generator=generator()))
        close(mine, td.final(td.ancestral(d, x, td.grid(S, 20), var=var, generator=generator())), 1e-9)


def test_a_variance_of_ones_own():
    S, x = td.VP(), normal(2, 2)
    seen = []

    def none(p, ct, cs):
        seen.append((float(ct.t[0]), float(cs.t[0])))
        return torch.zeros_like(ct.sigma)

    td.final(td.ancestral(gaussian(S), x, td.grid(S, 3), var=none))
    close(torch.tensor(seen), torch.tensor([[1, 2 / 3], [2 / 3, 1 / 3]]), 1e-6)


# ---- sample --------------------------------------------------------------------------------------


def test_sample_draws_the_noise_and_runs_the_sampler():
    S = td.VE()
    d = gaussian(S)
    x = td.sample(d, (5, 2), n=4, seed=7)
    noise = 50 * torch.randn(5, 2, generator=generator(7))
    torch.testing.assert_close(x, td.final(td.ddim(d, noise, td.grid(S, 4))))
    assert x.shape == (5, 2) and x.dtype == torch.float32
    assert torch.equal(x, td.sample(d, (5, 2), n=4, seed=7)) and not torch.equal(x, td.sample(d, (5, 2), n=4, seed=8))


def test_sample_passes_on_what_it_is_given():
    d = gaussian(td.VP())
    ts = td.grid(d.schedule, 3)
    g = generator(1)
    noise = torch.randn(5, 2, generator=g)
    wanted = td.final(td.ancestral(d, noise, ts, var=large, generator=g))
    mine = td.sample(d, (5, 2), sampler=td.ancestral, seed=1, ts=ts, var=large, decode=lambda x: x * 2)
    assert torch.equal(mine, 2 * wanted)
    torch.manual_seed(3)
    first = td.sample(d, (5, 2), n=2)
    torch.manual_seed(3)
    assert torch.equal(first, td.sample(d, (5, 2), n=2))


@td.sampler
def mine(d, x, ts):
    """The example of the module's documentation."""
    for t, s in td.pairs(ts):
        p = d(x, t)
        cs = d.schedule(s, like=x)
        x = cs.alpha * p.x0 + cs.sigma * p.eps
        yield td.State(s, x, p.x0)


@td.sampler
def mine_with_noise(d, x, ts, generator=None):
    for t, s in td.pairs(ts):
        p, q = d(x, t), td.posterior(d.schedule(t, like=x), d.schedule(s, like=x))
        x = q.a_x0 * p.x0 + q.a_x * x + q.var.sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        yield td.State(s, x, p.x0)


def test_a_sampler_of_ones_own():
    d, x = gaussian(td.VP()), normal(3, 2)
    ts = td.grid(d.schedule, 4)
    close(td.final(mine(d, x, ts)), td.final(td.ddim(d, x, ts)))
    mine_x = td.sample(d, (3, 2), n=4, seed=2, sampler=mine_with_noise)
    torch.testing.assert_close(mine_x, td.sample(d, (3, 2), n=4, seed=2, sampler=td.ancestral))


def test_a_sampler_without_noise_of_ones_own():
    d = gaussian(td.VP())
    torch.testing.assert_close(td.sample(d, (3, 2), n=4, seed=2, sampler=mine), td.sample(d, (3, 2), n=4, seed=2))


def test_short_steps_keep_their_precision_in_float32():
    S = td.DiscreteVP(td.linear_betas(4000))
    t, s = torch.arange(2, 4001) / 4000, torch.arange(1, 4000) / 4000  # pairs of neighbours
    wide, narrow = (
        td.posterior(
            S(t.double(), like=torch.zeros(len(t), 1, dtype=d)), S(s.double(), like=torch.zeros(len(t), 1, dtype=d))
        )
        for d in (torch.float64, torch.float32)
    )
    for exact, rounded in zip(wide, narrow, strict=True):  # a difference of rounded log-SNRs is off by 5e-5
        torch.testing.assert_close(rounded.double(), exact, rtol=5e-7, atol=0)


def test_sample_keeps_no_gradients_of_a_sampler_without_the_decorator():
    scale = torch.tensor(1.0, requires_grad=True)
    d = td.denoiser(lambda x, t: td.Prediction(scale * x, 0 * x), td.VP())

    def bare(d, x, ts):
        for t, s in td.pairs(ts):
            yield td.State(s, d(x, t).x0, x)

    assert not td.sample(d, (3, 2), n=2, seed=0, sampler=bare).requires_grad
    assert td.sample(d, (3, 2), n=2, seed=0, sampler=td.ddim, grad=True).requires_grad
