"""The SDE view: one family with the marginals of the data at every t, predictors and correctors, conditions."""

import math
from functools import partial

import pytest
import torch
from scipy import stats
from test_schedules import every

import tinydiff as td
from tinydiff.exact import conditional
from tinydiff.samplers import ancestral_step, flow_step, langevin_corrector, reverse_diffusion_step

F64 = torch.float64
MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)
STDS = torch.tensor([0.2, 0.3, 0.15], dtype=F64)
WEIGHTS = [0.5, 0.3, 0.2]
three = pytest.mark.parametrize("seed", range(3))


def mixture(S):
    return td.GaussianMixture(MEANS, STDS, WEIGHTS, S)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), atol=tol, rtol=tol)


# ---- the family ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0, 2.0])
@every("VP", "SubVP", "VE", "linear")
def test_a_step_is_the_equation(S, lam):
    """x - dt [f x - (1 + lam^2)/2 g^2 score] + lam g sqrt(dt) z, with the exact score."""
    x, t, s = normal(5, 2), 0.6, 0.55
    c = S(t, like=x)
    z = torch.randn(x.shape, generator=seeded(4), dtype=F64)
    g = mixture(S)
    drift = c.drift * x - (1 + lam**2) / 2 * c.diffusion2 * g.score(x, t)
    want = x - (t - s) * drift + lam * c.diffusion2.sqrt() * math.sqrt(t - s) * z
    close(td.final(td.reverse_sde(g, x, torch.tensor([t, s], dtype=F64), lam=lam, generator=seeded(4))), want, 1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0, 2.0])
@every("VP", "SubVP", "VE")
def test_the_family_keeps_the_variance_of_gaussian_data(S, lam):
    """#11, #12: with data N(0, s^2) and the exact score, dV/dt of the process is that of alpha^2 s^2 + sigma^2.

    Backwards in time, drift a x and noise lam g change a variance at the rate 2 a V - lam^2 g^2.
    """
    like, std = torch.empty(9, 1, dtype=F64), 0.7
    t = torch.linspace(0.05, 0.95, 9, dtype=F64)
    c = S(t, like=like)
    V = c.alpha**2 * std**2 + c.sigma**2
    a = c.drift + (1 + lam**2) / 2 * c.diffusion2 / V  # the score is -x / V
    rate = 2 * (c.alpha * c.dalpha * std**2 + c.sigma * c.dsigma)
    close(2 * a * V - lam**2 * c.diffusion2, rate, 1e-9)


@three
@pytest.mark.parametrize("lam", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("S", [td.VP(), td.SubVP(), td.VE(0.01, 20.0)], ids=["VP", "SubVP", "VE"])
def test_the_family_has_the_marginals_of_the_data_at_every_t(S, lam, seed):
    """A Kolmogorov-Smirnov test of one coordinate at ten times of 250 steps, against the exact distribution.

    Started from the exact p_1. Over 27 runs of ten tests the least p was 5e-3; a process with twice the noise
    or half the score is below 1e-30 (next test).
    """
    assert min(_p_values(S, lam, seed)) > 1e-5


def _p_values(S, lam, seed, spoilt=None, n=2000):
    g = mixture(S)
    c = S(S.t_max, like=torch.empty(n, 2, dtype=F64))
    x = c.alpha * g.sample(n, seeded(seed)) + c.sigma * normal(n, 2, seed=50 + seed)
    ts = torch.linspace(S.t_max, 0.02, 251, dtype=F64)
    for i, state in enumerate(td.reverse_sde(spoilt or g, x, ts, lam=lam, generator=seeded(100 + seed)), start=1):
        if i % 25 == 0:
            yield stats.kstest(state.x[:, 0].numpy(), partial(_distribution, S=S, t=state.t)).pvalue


def _distribution(v, S, t):
    """The exact distribution function of the first coordinate at t."""
    alpha, sigma = (float(f(torch.tensor(t, dtype=F64))) for f in (S.alpha, S.sigma))
    parts = zip(WEIGHTS, MEANS[:, 0].tolist(), STDS.tolist(), strict=True)
    return sum(w * stats.norm.cdf(v, alpha * m, math.hypot(alpha * s, sigma)) for w, m, s in parts)


def test_half_the_score_does_not_have_them():
    S = td.VP()
    half = td.denoiser(lambda x, t: mixture(S)(x, t).with_eps(mixture(S)(x, t).eps / 2, S(t, like=x)), S)
    assert min(_p_values(S, 1.0, 0, half)) < 1e-30


def test_noise_of_the_wrong_sign_is_told():
    with pytest.raises(ValueError, match="lam must be at least 0; got -1"):
        next(td.reverse_sde(mixture(td.VP()), normal(2, 2), td.grid(td.VP(), 3), lam=-1.0))


# ---- predictors and correctors -------------------------------------------------------------------


def test_predictors_of_the_ve_chain():
    """Song et al. 2021, appendix F and eq. 46-47, from the levels alone."""
    S, x, t, s = td.VE(0.01, 20.0), normal(4, 2), 0.6, 0.5
    ct, cs = S(t, like=x), S(s, like=x)
    p, score = mixture(S)(x, t), mixture(S).score(x, t)
    new = ct.sigma**2 - cs.sigma**2
    mean, std = ancestral_step(p, x, ct, cs)
    close(mean, x + new * score, 1e-9), close(std, (cs.sigma**2 * new).sqrt() / ct.sigma, 1e-10)
    mean, std = reverse_diffusion_step(p, x, ct, cs)
    close(mean, x + new * score, 1e-9), close(std, new.sqrt(), 1e-10)
    mean, std = flow_step(p, x, ct, cs)
    close(mean, x + new / 2 * score, 1e-9)
    assert std == 0.0


def test_predictors_of_the_vp_chain():
    betas = td.linear_betas(1000)
    S, x, k = td.DiscreteVP(betas), normal(4, 2), 400
    ct, cs = S(k / 1000, like=x), S((k - 1) / 1000, like=x)
    p, score, beta = mixture(S)(x, k / 1000), mixture(S).score(x, k / 1000), betas[k - 1]
    mean, std = reverse_diffusion_step(p, x, ct, cs)
    close(mean, (2 - (1 - beta).sqrt()) * x + beta * score, 1e-10), close(std, beta.sqrt().expand(4, 1), 1e-12)
    mean, _ = flow_step(p, x, ct, cs)
    close(mean, (2 - (1 - beta).sqrt()) * x + beta / 2 * score, 1e-10)
    mean, std = ancestral_step(p, x, ct, cs)
    close(mean, (x + beta * score) / (1 - beta).sqrt(), 1e-10)


def test_the_corrector_by_hand():
    x, z, score = normal(6, 3), normal(6, 3, seed=1), normal(6, 3, seed=2)
    norm = lambda v: v.square().sum(1).sqrt().mean()  # noqa: E731
    eps = 2 * 0.9 * (0.16 * norm(z) / norm(score)) ** 2
    close(langevin_corrector(score, x, z, 0.9, 0.16), x + eps * score + (2 * eps).sqrt() * z, 1e-12)


def test_a_corrector_is_a_langevin_step_at_the_same_level():
    """Order and noise: correct at t with the alpha of the step, then predict; one draw each."""
    S, x = td.DiscreteVP(td.linear_betas(100)), normal(5, 2)
    g, t, s = mixture(S), 0.5, 0.49
    ct, cs = S(t, like=x), S(s, like=x)
    noise = seeded(3)
    z1, z2 = (torch.randn(x.shape, generator=noise, dtype=F64) for _ in range(2))
    y = langevin_corrector(g.score(x, t), x, z1, (ct.alpha / cs.alpha) ** 2, 0.16)
    mean, std = reverse_diffusion_step(g(y, t), y, ct, cs)
    got = td.final(td.predictor_corrector(g, x, torch.tensor([t, s], dtype=F64), generator=seeded(3)))
    close(got, mean + std * z2, 1e-9)


@three
@pytest.mark.parametrize("predictor", [ancestral_step, reverse_diffusion_step, flow_step], ids=lambda f: f.__name__)
@pytest.mark.parametrize("S", [td.VP(), td.VE(0.01, 20.0)], ids=["VP", "VE"])
def test_predictor_and_corrector_end_in_the_data(S, predictor, seed):
    """Energy distance to the data, 2,000 samples of 100 steps. Seen: below 0.004; a corrector alone is above 0.5."""
    g = mixture(S)
    x = S.prior_std * normal(2000, 2, seed=seed)
    x = td.final(td.predictor_corrector(g, x, td.grid(S, 100), predictor, generator=seeded(seed)))
    assert td.metrics.energy_distance(x, g.sample(2000, seeded(90 + seed))) < 0.012


def test_a_corrector_alone_does_not():
    S = td.VE(0.01, 20.0)
    stay = lambda p, x, ct, cs: (x, 0.0)  # noqa: E731
    x = td.final(td.predictor_corrector(mixture(S), 20.0 * normal(1000, 2), td.grid(S, 50), stay, generator=seeded()))
    assert td.metrics.energy_distance(x, mixture(S).sample(1000, seeded(1))) > 0.1


def test_bad_settings_are_told():
    S, x = td.VP(), normal(2, 2)
    for wrong in ({"corrections": -1}, {"snr": -0.1}):
        with pytest.raises(ValueError, match="corrections and snr must be at least 0"):
            next(td.predictor_corrector(mixture(S), x, td.grid(S, 3), **wrong))
    with pytest.raises(ValueError, match="known and mask go together"):
        next(td.predictor_corrector(mixture(S), x, td.grid(S, 3), known=x))
    with pytest.raises(ValueError, match="known must have shape"):
        next(td.predictor_corrector(mixture(S), x, td.grid(S, 3), known=x[:1], mask=x > 0))


# ---- conditions ----------------------------------------------------------------------------------


@every("VP", "VE", "linear", "Cosine")
def test_the_gradient_of_a_perfect_classifier_gives_the_exact_conditional(S):
    """#20: score(x) + grad log p_t(y | x) is the score of p_t(x | y), at every t."""
    g, x = mixture(S), normal(30, 2)
    for y in range(3):
        label = torch.full((30,), y)
        guided = td.classifier(g, lambda x, t, label=label: g.log_class(x, t, label))
        for t in (0.05, 0.3, 0.7, 1.0):
            a, b = guided(x, t), g(x, t, y=label)
            close(a.eps, b.eps, 1e-8), close(a.x0 * S.alpha(t), b.x0 * S.alpha(t), 1e-8)


def test_a_scale_multiplies_the_gradient():
    S, x = td.VP(), normal(10, 2)
    g, label = mixture(S), torch.zeros(10, dtype=torch.long)
    log_prob = lambda x, t: g.log_class(x, t, label)  # noqa: E731
    plain, one, three = (
        g(x, 0.3).eps,
        td.classifier(g, log_prob)(x, 0.3).eps,
        td.classifier(g, log_prob, 3.0)(x, 0.3).eps,
    )
    close(three - plain, 3 * (one - plain), 1e-10)
    with pytest.raises(ValueError, match=r"log_prob must return \(10,\)"):
        td.classifier(g, lambda x, t: x)(x, 0.3)


def test_log_class_is_the_posterior_of_the_labels():
    S = td.VP()
    g = td.GaussianMixture(MEANS, STDS, WEIGHTS, S, labels=torch.tensor([0, 1, 0]))
    x = normal(7, 2)
    r = g.posterior(x, 0.2)
    close(g.log_class(x, 0.2, torch.zeros(7, dtype=torch.long)).exp(), r[:, 0] + r[:, 2], 1e-12)
    close(g.log_class(x, 0.2, torch.ones(7, dtype=torch.long)).exp(), r[:, 1], 1e-12)
    bayes = g.log_prob(x, 0.2, torch.ones(7, dtype=torch.long)) + math.log(0.3) - g.log_prob(x, 0.2)
    close(g.log_class(x, 0.2, torch.ones(7, dtype=torch.long)), bayes, 1e-10)


def test_the_conditional_of_a_mixture_is_bayes_rule_on_a_grid():
    g = mixture(td.VP())
    line = torch.linspace(-3, 3, 4001, dtype=F64)
    known, mask = torch.tensor([0.25, 9.0], dtype=F64), torch.tensor([True, False])
    points = torch.stack([torch.full_like(line, 0.25), line], 1)
    joint = g.log_prob(points, 0.0).exp()
    want = joint / (joint.sum() * (line[1] - line[0]))
    close(conditional(g, known, mask).log_prob(line[:, None], 0.0).exp(), want, 1e-8)


def test_a_conditional_of_nothing_or_of_points_is_told():
    g = mixture(td.VP())
    for mask in ([True, True], [False, False]):
        with pytest.raises(ValueError, match="known and mask must be"):
            conditional(g, MEANS[0], torch.tensor(mask))
    with pytest.raises(ValueError, match="std must be positive"):
        conditional(td.GaussianMixture(MEANS, 0.0, None, td.VP()), MEANS[0], torch.tensor([True, False]))


def test_what_is_known_is_noised_and_pasted_after_each_update():
    """By hand, with the same draws: corrector, paste at t, predictor, paste at s."""
    S, t, s = td.VP(), 0.5, 0.4
    g, x, known, mask = mixture(S), normal(5, 2), normal(5, 2, seed=1), torch.tensor([True, False])
    ct, cs = S(t, like=x), S(s, like=x)
    noise = seeded(3)
    z = [torch.randn(x.shape, generator=noise, dtype=F64) for _ in range(4)]
    y = langevin_corrector(g.score(x, t), x, z[0], (ct.alpha / cs.alpha) ** 2, 0.16)
    y = torch.where(mask, ct.alpha * known + ct.sigma * z[1], y)
    mean, std = reverse_diffusion_step(g(y, t), y, ct, cs)
    want = torch.where(mask, cs.alpha * known + cs.sigma * z[3], mean + std * z[2])
    ts = torch.tensor([t, s], dtype=F64)
    close(td.final(td.predictor_corrector(g, x, ts, known=known, mask=mask, generator=seeded(3))), want, 1e-9)


@three
def test_pasting_what_is_known_is_biased_and_corrections_mend_it(seed):
    """Energy distance of the free coordinate to the exact conditional, 1,000 samples, 50 steps.

    Where the known value lies between modes, pasting alone gives their weights wrong: 0.22 seen, unconditional samples
    0.31, with 20 corrections 0.08. Where one mode alone fits, pasting is right: 0.00, unconditional samples 0.08.
    """
    one_mode, between = _pasted(-0.9, 0, seed), _pasted(0.25, 0, seed)
    assert one_mode < 0.02 and 0.15 < between
    assert _pasted(0.25, 20, seed) < 0.6 * between


def _pasted(value, corrections, seed, n=1000):
    S, mask = td.VP(), torch.tensor([True, False])
    g, known = mixture(S), torch.tensor([value, 0.0], dtype=F64).expand(n, 2)
    options = dict(corrections=corrections, known=known, mask=mask, generator=seeded(seed))
    x = td.final(td.predictor_corrector(g, normal(n, 2, seed=seed), td.grid(S, 50), **options))
    assert (x[:, 0] == value).all()
    return td.metrics.energy_distance(x[:, 1:], conditional(g, known[0], mask).sample(n, seeded(40 + seed)))


def test_a_posterior_score_gives_the_posterior():
    """#27: data seen through noise; the exact posterior is a mixture, and its own score samples it."""
    S, std = td.VP(), 0.3
    g, y = mixture(S), torch.tensor([0.3, 0.4], dtype=F64)
    posterior = td.exact.times_gaussian(g, y, std)
    truth, again = (posterior.sample(3000, seeded(s)) for s in (1, 2))
    x = td.final(td.ddim(posterior, normal(3000, 2, seed=3), td.grid(S, 200)))
    assert td.metrics.energy_distance(x, truth) < 5 * abs(td.metrics.energy_distance(again, truth)) + 0.002
    # an importance-weighted draw of the prior has the same mean: Bayes' rule, without the formula
    draws = g.sample(200_000, seeded(5))
    w = (-((draws - y) ** 2).sum(1) / 2 / std**2).softmax(0)
    assert ((w[:, None] * draws).sum(0) - x.mean(0)).abs().max() < 0.03
