"""The variational bound against densities in closed form, against quadrature, and against the papers' own formulas."""

import math
from functools import partial

import pytest
import torch
from scipy.integrate import quad
from test_schedules import PRESERVING, every

import tinydiff as td
from tinydiff import likelihood
from tinydiff.denoisers import interpolated_variance
from tinydiff.samplers import large, learned, small

F64 = torch.float64
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
LN2 = math.log(2)
DIGIT = partial(likelihood.discretised_log_likelihood, half_width=1 / 16)
LEVELS = torch.arange(17, dtype=F64) / 8 - 1
LINEAR = td.DiscreteVP(td.linear_betas(1000))
SHORT = td.DiscreteVP(td.linear_betas(100))


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), atol=tol, rtol=tol)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def column(*values):
    return torch.tensor(values, dtype=F64)[:, None]


def gaussian(S, std=0.3):
    return td.GaussianMixture(column(0.0), std, None, S)


def chain(S):
    return td.grid(S, S.steps)


def with_variance(d, out):
    """The denoiser with Improved DDPM's variance at the output `out` everywhere."""

    def believe(x, t, **cond):
        p = d(x, t, **cond)
        return td.Prediction(p.x0, p.eps, interpolated_variance(torch.full_like(x, out)))

    return td.denoiser(believe, d.schedule)


def averaged(d, x0, ts, **options):
    """The bound in nats, exact if the denoiser is linear: a quadratic has its Gaussian mean over eps = -1 and 1."""
    signs = torch.ones_like(x0)
    ends = likelihood.bound(d, x0.repeat(2, 1), ts, eps=torch.cat([signs, -signs]), **options)
    return ends.total.reshape(2, -1).mean(0) * LN2


def averaged_in_one_batch(d, x0, ts, *, prior_std=1.0, **options):
    """The same from one call of `vlb_term` for all steps, which is quick."""
    n, b = len(ts) - 1, len(x0)
    t, s = (v.repeat_interleave(2 * b) for v in (ts[:-1], ts[1:]))
    eps = torch.cat([torch.ones_like(x0), -torch.ones_like(x0)]).repeat(n, 1)
    terms = td.vlb_term(d, x0.repeat(2 * n, 1), t, s, eps=eps, **options).reshape(n, 2, b).mean(1).sum(0)
    c = d.schedule(ts[0], like=x0)
    prior = likelihood.gaussian_kl(c.alpha * x0, c.sigma**2, torch.zeros_like(x0), torch.as_tensor(prior_std**2))
    return prior[:, 0] + terms * LN2


# ---- Gaussians -----------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions():
    m1, m2 = torch.randn(2, 500, generator=generator(), dtype=F64)
    v1, v2 = torch.randn(2, 500, generator=generator(1), dtype=F64).exp()
    normal = lambda m, v: torch.distributions.Normal(m, v.sqrt())  # noqa: E731
    expected = torch.distributions.kl_divergence(normal(m1, v1), normal(m2, v2))
    close(likelihood.gaussian_kl(m1, v1, m2, v2), expected, 1e-12)
    close(likelihood.gaussian_kl(m1, v1, m1, v1), 0.0, 1e-15)
    close(likelihood.gaussian_log_likelihood(m1, m2, v2), normal(m2, v2).log_prob(m1), 1e-12)


def test_kl_is_the_integral():
    m1, v1, m2, v2 = (torch.tensor(v, dtype=F64) for v in (0.3, 0.5, -0.4, 1.2))
    log_p = lambda x, m, v: float(likelihood.gaussian_log_likelihood(torch.tensor(x, dtype=F64), m, v))  # noqa: E731
    integral, _ = quad(
        lambda x: math.exp(log_p(x, m1, v1)) * (log_p(x, m1, v1) - log_p(x, m2, v2)), -8, 8, epsabs=1e-12
    )
    assert float(likelihood.gaussian_kl(m1, v1, m2, v2)) == pytest.approx(integral, abs=1e-10)


@pytest.mark.parametrize("dtype, excess", [(torch.float32, 3e-4), (F64, 1e-9)])
def test_kl_of_nearly_equal_variances_keeps_its_digits(dtype, excess):
    """(v - 1 - log v) / 2 is (v - 1)^2 / 4 there, less than the rounding of v."""
    zero, var = torch.zeros(5, dtype=dtype), torch.tensor([0.03, 0.2, 0.3, 0.7, 5.0], dtype=dtype)
    kl = likelihood.gaussian_kl(zero, var * (1 + excess), zero, var)
    close(kl / (excess**2 / 4), 1.0, 0.02)


# ---- the decoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("mean", [-1.5, -1.0, -0.33, 0.0, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("std", [0.003, 0.05, 0.4, 5.0])
def test_the_levels_sum_to_one(levels, mean, std):
    x = torch.linspace(-1, 1, levels, dtype=F64)
    mean, var = torch.tensor(mean, dtype=F64), torch.tensor(std**2, dtype=F64)
    log_p = likelihood.discretised_log_likelihood(x, mean, var, 1 / (levels - 1))
    assert log_p.isfinite().all() and (log_p <= 0).all()
    assert abs(log_p.exp().sum() - 1) < 1e-12


@SEEDS
def test_bins_are_differences_of_the_distribution_function_and_the_edges_are_open(seed):
    mean = 2 * torch.rand(17, generator=generator(seed), dtype=F64) - 1
    var = 0.01 + torch.rand(17, generator=generator(seed + 9), dtype=F64)
    cdf = torch.distributions.Normal(mean, var.sqrt()).cdf
    expected = cdf(LEVELS + 1 / 16) - cdf(LEVELS - 1 / 16)
    expected[0], expected[-1] = cdf(LEVELS + 1 / 16)[0], 1 - cdf(LEVELS - 1 / 16)[-1]
    close(DIGIT(LEVELS, mean, var).exp(), expected, 1e-12)


def test_far_away_the_decoder_keeps_its_digits():
    """log(Phi(b) - Phi(a)) far from the mean is log N at the near edge / its distance: neither 0 nor -inf."""
    for sign in (-1, 1):
        x, mean, var = (torch.tensor([v], dtype=F64) for v in (0.5 * sign, -0.5 * sign, 1e-4))
        z = (1 - 1 / 16) / 1e-2
        tail = -(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)) - 1 / z**2
        assert float(DIGIT(x, mean, var)) == pytest.approx(tail, abs=1e-6)
        x, mean, var = x.float(), mean.float().requires_grad_(), var.float().requires_grad_()
        value = DIGIT(x, mean, var)
        value.backward()
        assert value.isfinite() and mean.grad.isfinite() and var.grad.isfinite()
        assert mean.grad * sign > 0


def test_narrow_bins_are_a_density():
    x, mean, var, h = column(-0.9, -0.2, 0.4), column(0.1), column(0.3), 1e-4
    density = likelihood.gaussian_log_likelihood(x, mean, var) + math.log(2 * h)
    close(likelihood.discretised_log_likelihood(x, mean, var, h), density, 1e-7)


def test_gradients_of_the_decoder():
    mean = torch.linspace(-1.2, 1.2, 17, dtype=F64).requires_grad_()
    var = torch.linspace(0.01, 0.5, 17, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: DIGIT(LEVELS, m, v), (mean, var))


# ---- tightness: the true reverse chain gives the density itself ----------------------------------


def true_variance(std):
    """The variance of q(x_s | x_t) for N(0, std^2) data: beta v_s / v_t, with v the variance of the marginal."""
    v = lambda c: c.alpha**2 * std**2 + c.sigma**2  # noqa: E731
    return lambda p, ct, cs: large(p, ct, cs) * v(cs) / v(ct)


@pytest.mark.parametrize("std", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("n", [1, 2, 40])
@every("linear", "VP", "EDM", "Flow")
def test_the_bound_with_the_true_reverse_kernels_is_the_density(S, n, std):
    d, x0, var = gaussian(S, std), column(-1.0, 0.0, 0.2, 3.0), true_variance(std)
    c = S(S.t_max, like=x0[:1])
    prior_std = float((c.alpha**2 * std**2 + c.sigma**2).sqrt())
    nll = averaged(d, x0, td.grid(S, n), var=var, decoder_var=var, prior_std=prior_std)
    close(nll, -d.log_prob(x0, 0.0), 1e-9)


@pytest.mark.parametrize("S", [LINEAR, SHORT], ids=["1000 steps", "100 steps"])
def test_the_bound_is_tight_on_a_whole_chain(S):
    d, x0, var = gaussian(S), column(-1.0, 0.0), true_variance(0.3)
    c = S(1.0, like=x0[:1])
    options = dict(var=var, decoder_var=var, prior_std=float((c.alpha**2 * 0.09 + c.sigma**2).sqrt()))
    nll = averaged_in_one_batch(d, x0, chain(S), **options)
    close(nll, -d.log_prob(x0, 0.0), 1e-9)
    if S is SHORT:
        close(averaged(d, x0, chain(S), **options), nll, 1e-9)


def test_fixed_variances_cost_what_is_known():
    """N(0, 0.3^2) data, 1,000 steps, in nats; the decoder's variance is the clipped beta-tilde, as DDPM's code has it.

    At one x0 the "bound" with beta in the decoder lies below -log p: it bounds the mean over the data.
    """
    d, x0, ts = gaussian(LINEAR), column(-1.0, 0.0), chain(LINEAR)
    exact = -d.log_prob(x0, 0.0)
    close(averaged_in_one_batch(d, x0, ts) - exact, torch.tensor([0.6993, 0.5449], dtype=F64), 1e-4)
    slack = averaged_in_one_batch(d, x0, ts, var=large, decoder_var=likelihood.clipped(small, LINEAR)) - exact
    close(slack, torch.tensor([0.0852, 0.1202], dtype=F64), 1e-4)
    slack = averaged_in_one_batch(d, x0, ts, var=large) - exact  # with beta in the decoder, as it comes
    close(slack, torch.tensor([-0.0327, 0.0073], dtype=F64), 1e-4)


def test_standard_normal_data_cost_nothing_with_large_variances():
    """f_mean = sqrt(1 - beta) x and f_var = beta reverse the chain of N(0, 1) data exactly, so K is the entropy's."""
    d = gaussian(SHORT, 1.0)
    x0 = column(-2.0, 0.0, 0.5)
    close(averaged(d, x0, chain(SHORT), var=large), -d.log_prob(x0, 0.0), 1e-9)


@SEEDS
@pytest.mark.parametrize("var", [small, large])
@every("linear", "VP", "Cosine", "EDM")
def test_the_bound_is_never_below_the_density(S, var, seed):
    """On average over data and noise: 4 standard errors of 300 draws. These 24 slacks are 4.5 of them or more."""
    d = td.GaussianMixture(torch.tensor([[-0.7, 0.2], [0.5, -0.4]], dtype=F64), 0.2, [0.3, 0.7], S)
    x0 = d.sample(300, generator(seed))
    got = likelihood.bound(d, x0, td.grid(S, 20), var=var, generator=generator(seed))
    slack = got.total * 2 * LN2 + d.log_prob(x0, 0.0)
    assert slack.mean() > 4 * slack.std() / 300**0.5


@SEEDS
def test_more_steps_make_the_bound_tighter(seed):
    S = td.VP()
    d = td.GaussianMixture(torch.tensor([[-0.7, 0.2], [0.5, -0.4]], dtype=F64), 0.2, [0.3, 0.7], S)
    x0 = d.sample(1000, generator(seed))
    exact = -d.log_prob(x0, 0.0).mean() / 2 / LN2
    ts = [td.grid(S, n, td.logsnr_uniform) for n in (4, 8, 16)]
    slack = [likelihood.bound(d, x0, t, var=large, generator=generator(seed)).total.mean() - exact for t in ts]
    assert all(b < 0.8 * a for a, b in zip(slack, slack[1:], strict=False)), slack


# ---- terms ---------------------------------------------------------------------------------------


@every(*PRESERVING, "EDM", "Flow")
def test_a_term_with_small_variances_is_a_difference_of_snr(S):
    """(SNR_s - SNR_t) (x0 - belief)^2 / 2 (Kingma et al. 2021, eq. 14)."""
    d = td.denoiser(lambda x, t: td.Prediction(0.9 * x + 0.1, x), S)
    x0, eps = torch.randn(2, 5, 3, generator=generator(), dtype=F64)
    t, s = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.95], dtype=F64), torch.tensor([0.05, 0.2, 0.49, 0.1, 0.8], dtype=F64)
    ct, cs = S(t, like=x0), S(s, like=x0)
    believed = 0.9 * (ct.alpha * x0 + ct.sigma * eps) + 0.1
    expected = (cs.logsnr.exp() - ct.logsnr.exp()) * (x0 - believed) ** 2 / 2
    ratio = td.vlb_term(d, x0, t, s, eps=eps) / (expected.mean(1) / LN2)
    close(ratio, 1.0, 1e-9)


def official(x0, x, believed, out, k, betas, decoder):
    """`_vb_terms_bpd` of Improved DDPM's code with LEARNED_RANGE, from its tables; k counts from 0."""
    abar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=F64), abar[:-1]])
    var = betas * (1 - before) / (1 - abar)
    clipped = torch.cat([var[1:2], var[1:]]).log()
    mean = lambda x0: (  # noqa: E731
        betas[k] * before[k].sqrt() / (1 - abar[k]) * x0 + (1 - before[k]) * (1 - betas[k]).sqrt() / (1 - abar[k]) * x
    )
    f = (out + 1) / 2
    log_var = f * betas.log()[k] + (1 - f) * clipped[k]
    kl = 0.5 * (
        -1.0 + log_var - clipped[k] + (clipped[k] - log_var).exp() + (mean(x0) - mean(believed)) ** 2 * (-log_var).exp()
    )
    nll = -decoder(x0, mean(believed), log_var.exp())
    return (nll if k == 0 else kl).mean() / LN2


@pytest.mark.parametrize("decoder", [likelihood.gaussian_log_likelihood, DIGIT], ids=["continuous", "digits"])
def test_terms_are_those_of_the_official_code(decoder):
    """All in one batch, the decoder's term among the others; belief and variance of each element are its own."""
    betas, k = td.linear_betas(100), torch.tensor([0, 1, 2, 50, 98, 99, 0])
    x0 = LEVELS[torch.randint(17, (7, 5), generator=generator())]
    eps, out = torch.randn(2, 7, 5, generator=generator(1), dtype=F64)

    def believe(x, t):
        x0 = 0.8 * x.clamp(-1, 1)
        return td.Prediction(x0, x, interpolated_variance(out))

    t = (k + 1) / torch.tensor(100, dtype=F64)
    terms = td.vlb_term(
        td.denoiser(believe, SHORT), x0, t, k / torch.tensor(100, dtype=F64), var=learned, decoder=decoder, eps=eps
    )
    c = SHORT(t, like=x0)
    x = c.alpha * x0 + c.sigma * eps
    expected = [official(x0[i], x[i], 0.8 * x[i].clamp(-1, 1), out[i], int(k[i]), betas, decoder) for i in range(7)]
    close(terms, torch.stack(expected), 1e-8)


def test_learned_variances_of_one_are_the_large_and_the_small():
    d, ts = gaussian(SHORT), td.grid(SHORT, 25)
    x0, eps = torch.randn(2, 6, 1, generator=generator(), dtype=F64)
    for out, var in ((1.0, large), (-1.0, small)):
        mine = likelihood.bound(with_variance(d, out), x0, ts, var=learned, eps=eps)
        theirs = likelihood.bound(d, x0, ts, var=var, eps=eps)
        close(mine.terms, theirs.terms, 1e-10)
    between = likelihood.bound(with_variance(d, 0.0), x0, ts, var=learned, eps=eps)
    assert not torch.allclose(between.terms, theirs.terms, rtol=1e-3)


def test_the_clip_is_the_step_before_on_any_grid():
    """At s = 0 the small variance is beta-tilde of the step before; a chain of one step has only beta."""
    d, x0 = gaussian(td.VP()), column(0.1)
    ts = torch.tensor([1.0, 0.5, 0.4, 0.0], dtype=F64)
    step = td.posterior(td.VP()(0.5, like=x0), td.VP()(0.4, like=x0)).var
    p = d(td.VP()(0.4, like=x0).alpha * x0, 0.4)
    expected = -likelihood.gaussian_log_likelihood(x0, p.x0, step)[:, 0] / LN2
    zero = torch.zeros_like(x0)
    close(likelihood.bound(d, x0, ts, eps=zero).terms[-1], expected, 1e-12)
    close(td.vlb_term(d, x0, 0.4, 0.0, before=0.5, eps=zero), expected, 1e-12)
    assert not torch.allclose(td.vlb_term(d, x0, 0.4, 0.0, eps=zero), expected)
    # by default 2 t, the step before of an even grid
    even = torch.tensor([0.8, 0.4, 0.0], dtype=F64)
    close(td.vlb_term(d, x0, 0.4, 0.0, eps=zero), likelihood.bound(d, x0, even, eps=zero).terms[-1], 1e-12)
    one = torch.tensor([1.0, 0.0], dtype=F64)
    by_small, by_large = (likelihood.bound(d, x0, one, var=var, eps=zero).total for var in (small, large))
    close(by_small, by_large, 1e-12)
    assert by_small.isfinite().all()


def test_the_bound_is_the_sum_of_its_parts():
    d, ts = gaussian(SHORT), td.grid(SHORT, 25)
    x0, eps = torch.randn(2, 4, 1, generator=generator(), dtype=F64)
    got = likelihood.bound(d, x0, ts, eps=eps, decoder=DIGIT, decoder_var=large)
    assert got.terms.shape == (25, 4) and got.prior.shape == (4,) and torch.equal(got.ts, ts)
    close(got.total, got.prior + sum(got.terms), 1e-12)
    for k in (0, 10, 24):
        term = td.vlb_term(d, x0, ts[k], ts[k + 1], eps=eps, decoder=DIGIT, decoder_var=large)
        close(got.terms[k], term, 1e-12)
    a, b = SHORT.alpha(1.0), SHORT.sigma(1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(a * x0, b), torch.distributions.Normal(0.0, 1.0))
    close(got.prior, kl[:, 0] / LN2, 1e-12)
    twice = [likelihood.bound(d, x0, ts, generator=generator(5)).total for _ in range(2)]
    assert torch.equal(*twice)


def test_the_prior_is_the_schedules_own():
    S = td.EDM()
    x0 = column(0.0, 8.0)
    got = likelihood.bound(gaussian(S), x0, td.grid(S, 4), generator=generator())
    close(got.prior, torch.tensor([0.0, 0.01 / 2 / LN2], dtype=F64), 1e-12)  # sigma_max = 80: (8 / 80)^2 / 2 nats


def test_bits_per_dimension():
    """Copies of a dimension leave the number as it is; a level in 17 that is told from 16 others costs log2(17)."""
    d = td.denoiser(lambda x, t: td.Prediction(0.5 * x, x), SHORT)
    x0, eps = torch.randn(2, 3, 1, 2, 2, generator=generator(), dtype=F64)
    ts = td.grid(SHORT, 5)
    once = likelihood.bound(d, x0, ts, eps=eps).total
    many = likelihood.bound(d, x0.repeat(1, 3, 1, 1), ts, eps=eps.repeat(1, 3, 1, 1)).total
    close(once, many, 1e-12)
    fair = td.vlb_term(d, x0, 0.01, 0.0, decoder=lambda x, mean, var: torch.full_like(x, -math.log(17)))
    close(fair, math.log2(17), 1e-12)


def test_a_discretised_bound_is_the_entropy_of_pixels_at_least():
    """Of pixels that are -1, 0 or 1 with equal chance: log2(3) bits, which 200 steps come near to."""
    S = td.Cosine()
    d = td.GaussianMixture(column(-1.0, 0.0, 1.0), 0.0, None, S)
    x0 = column(-1.0, 0.0, 1.0).repeat(400, 1)
    decoder = partial(likelihood.discretised_log_likelihood, half_width=0.5)
    got = likelihood.bound(d, x0, td.grid(S, 100), decoder=decoder, generator=generator())
    assert (got.terms >= 0).all() and (got.prior >= 0).all()
    error = got.total.std() / 1200**0.5
    assert math.log2(3) - 3 * error < got.total.mean() < math.log2(3) + 0.1


def test_conditions_reach_the_denoiser():
    S = td.VP()
    d = td.GaussianMixture(column(-1.0, 1.0), 0.1, None, S)
    x0, y = d.sample_labelled(500, generator())
    ts = td.grid(S, 20)
    knows, guesses = (likelihood.bound(d, x0, ts, generator=generator(1), **c).total.mean() for c in (dict(y=y), {}))
    assert 0.9 < guesses - knows < 2  # the class is worth 1 bit, and more while the bound is not tight
    a, b = (td.vlb_term(d, x0, 0.5, 0.4, eps=torch.zeros_like(x0), y=v).mean() for v in (y, 1 - y))
    assert a < b / 5


# ---- errors --------------------------------------------------------------------------------------


def test_errors():
    d, x0 = gaussian(SHORT), column(0.0, 0.1)
    refused = partial(pytest.raises, ValueError)
    for t, s in ((0.5, 0.5), (0.5, 0.6), (torch.tensor([0.5, 0.2], dtype=F64), 0.3), (0.006, 0.003)):
        with refused(match="s must be less than t, with noise added between"):
            td.vlb_term(d, x0, t, s)
    with refused(match="ts must end in 0, where the data are; got 0.1"):
        likelihood.bound(d, x0, torch.tensor([1.0, 0.5, 0.1]))
    with refused(match="decreasing times"):
        likelihood.bound(d, x0, torch.tensor([0.0, 0.5, 1.0]))
    with refused(match="var=learned needs a denoiser that predicts a variance"):
        td.vlb_term(d, x0, 0.5, 0.4, var=learned)
