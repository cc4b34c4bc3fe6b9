"""The exact denoisers against quadrature, automatic differentiation, scipy, and each other."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from test_schedules import coefs, every

import tinydiff as td

F64 = torch.float64
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def close(a, b, tol=1e-9):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def line(S, **kwargs):
    """Three components on a line."""
    means = torch.tensor([[-1.0], [0.2], [1.1]], dtype=F64)
    std, weights = torch.tensor([0.1, 0.3, 0.2], dtype=F64), torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    return td.GaussianMixture(means, std, weights, S, **kwargs)


def plane(S, seed=0, k=5):
    std = 0.05 + 0.3 * torch.rand(k, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return td.GaussianMixture(normal(k, 2, seed=seed), std, std.flip(0), S, labels=torch.tensor([0, 1, 0, 2, 1]))


# ---- the density ---------------------------------------------------------------------------------


@every()
def test_density_against_scipy(S):
    g, t = plane(S), 0.4
    alpha, sigma = (float(v) for v in (S.alpha(t), S.sigma(t)))
    x = alpha * g.sample(20) + sigma * normal(20, 2)
    wanted = sum(
        float(w) * multivariate_normal(alpha * m.numpy(), float(alpha**2 * s**2 + sigma**2)).pdf(x.numpy())
        for w, m, s in zip(g.weights, g.means, g.std, strict=True)
    )
    close(g.log_prob(x, t).exp(), torch.from_numpy(wanted), 1e-11)


@pytest.mark.parametrize("t", [0.0, 0.05, 0.5, 1.0])
def test_density_integrates_to_one(t):
    g = line(td.Cosine())
    x = torch.linspace(-9, 9, 20001, dtype=F64)
    for y in (None, 0, 1, 2, 3):
        labels = None if y is None else torch.full((len(x),), y)
        total = torch.trapezoid(g.log_prob(x[:, None], t, labels).exp(), x)
        assert float(total) == pytest.approx(1, abs=1e-10)


@every()
def test_score_is_the_gradient_of_the_log_density(S):
    g, t = plane(S), torch.tensor([0.03, 0.3, 0.9], dtype=F64)
    c = S(t, like=torch.empty(3, 2, dtype=F64))
    x = (c.alpha * g.sample(3) + c.sigma * normal(3, 2)).requires_grad_()
    for y in (None, torch.tensor([0, 2, 1])):
        (slope,) = torch.autograd.grad(g.log_prob(x, t, y).sum(), x)
        close(g.score(x, t, y), slope, 1e-10)
        close(g(x, t, y).score(c), slope, 1e-10)


def test_score_at_the_data_end():
    x = normal(4, 2).requires_grad_()
    g = plane(td.VE())
    (slope,) = torch.autograd.grad(g.log_prob(x, 0.0).sum(), x)
    close(g.score(x, 0.0), slope, 1e-10)


# ---- the posterior mean --------------------------------------------------------------------------


@every()
def test_denoiser_is_the_posterior_mean_by_quadrature(S):
    g, t = line(S), 0.35
    alpha, sigma = float(S.alpha(t)), float(S.sigma(t))
    x0 = torch.linspace(-3, 3, 60001, dtype=F64)
    prior = sum(  # the density of the data, spelt out
        w * (-((x0 - m) ** 2) / (2 * s**2)).exp() / s / math.sqrt(2 * math.pi)
        for w, m, s in zip([2 / 7, 4 / 7, 1 / 7], [-1.0, 0.2, 1.1], [0.1, 0.3, 0.2], strict=True)
    )
    x = alpha * torch.tensor([-1.3, 0.0, 0.7], dtype=F64) + sigma * 0.5
    weight = prior * (-((x[:, None] - alpha * x0) ** 2) / (2 * sigma**2)).exp()
    mean = (weight * x0).sum(1) / weight.sum(1)
    p = g(x[:, None], t)
    close(p.x0[:, 0], mean)
    close(p.eps[:, 0], (x - alpha * mean) / sigma)


@every()
def test_belief_agrees_with_x(S):
    g, t = plane(S), torch.tensor([0.0, 0.01, 0.5, 1.0], dtype=F64)
    c = S(t, like=torch.empty(4, 2, dtype=F64))
    x = c.alpha * g.sample(4) + c.sigma * normal(4, 2)
    p = g(x, t)
    close(c.alpha * p.x0 + c.sigma * p.eps, x, 1e-12)
    close(p.x0[0], x[0], 1e-12)  # at t = 0 the data are seen


@every()
def test_every_schedule_sees_the_same_denoiser_in_the_coordinates_of_edm(S):
    """D_{alpha, sigma}(x) = D_{1, sigma / alpha}(x / alpha)."""
    t = torch.tensor([0.02, 0.3, 0.8], dtype=F64)
    c = S(t, like=torch.empty(3, 2, dtype=F64))
    x = c.alpha * plane(S).sample(3) + c.sigma * normal(3, 2)
    ve = td.VE(1e-4, 1e6)
    level = ve.time(2 * (c.alpha / c.sigma)[:, 0].log())
    close(plane(S)(x, t).x0, plane(ve)(x / c.alpha, level).x0, 1e-10)


def test_pure_noise_tells_nothing():
    g = plane(td.Cosine(math.inf))
    x = normal(3, 2)
    p = g(x, 1.0)
    close(p.x0, (g.weights @ g.means).expand(3, 2), 1e-12), close(p.eps, x, 1e-12)


def test_posterior_is_bayes_rule():
    g, t = line(td.VP()), 0.3
    x = torch.tensor([[-0.5], [0.3]], dtype=F64)
    alone = torch.stack([g.log_prob(x, t, torch.full((2,), k)).exp() for k in range(3)], 1)
    joint = alone * torch.tensor([2 / 7, 4 / 7, 1 / 7], dtype=F64)
    close(g.posterior(x, t), joint / joint.sum(1, keepdim=True), 1e-12)


# ---- classes -------------------------------------------------------------------------------------


def test_a_class_is_the_mixture_of_its_components():
    g, x = plane(td.VP()), normal(6, 2)
    for y in range(3):
        mine = g.labels == y
        alone = td.GaussianMixture(g.means[mine], g.std[mine], g.weights[mine], g.schedule)
        labels = torch.full((6,), y)
        close(g(x, 0.3, labels).x0, alone(x, 0.3).x0, 1e-12)
        close(g.log_prob(x, 0.3, labels), alone.log_prob(x, 0.3), 1e-12)
        close(g.score(x, 0.3, labels), alone.score(x, 0.3), 1e-12)


def test_no_class_is_all_of_them():
    g, x = plane(td.VP()), normal(6, 2)
    assert g.classes == 3
    none = torch.full((6,), 3)
    close(g(x, 0.3, y=none).x0, g(x, 0.3).x0, 1e-13)
    close(g.log_prob(x, 0.3, none), g.log_prob(x, 0.3), 1e-13)
    mixed = g(x, 0.3, y=torch.tensor([0, 1, 2, 3, 3, 0]))
    close(mixed.x0[3], g(x, 0.3).x0[3], 1e-13)
    close(mixed.x0[5], g(x, 0.3, y=torch.zeros(6, dtype=torch.long)).x0[5], 1e-13)


@every()
def test_classes_weighted_by_their_probability_make_the_whole(S):
    g, t = line(S), 0.45
    x = float(S.alpha(t)) * g.sample(5) + float(S.sigma(t)) * normal(5, 1)
    r = g.posterior(x, t)
    close(r.sum(1), torch.ones(5, dtype=F64), 1e-13)
    each = [g(x, t, torch.full((5,), k)) for k in range(3)]
    close(sum(r[:, k, None] * each[k].eps for k in range(3)), g(x, t).eps, 1e-11)
    close(sum(r[:, k, None] * each[k].x0 for k in range(3)), g(x, t).x0, 1e-11)


# ---- draws ---------------------------------------------------------------------------------------


@SEEDS
def test_draws_have_the_moments_of_the_mixture(seed):
    # 4 standard errors: one of the seven numbers leaves them about once in 2,300 seeds; here they stay below 2.5
    n, g = 20000, plane(td.VP(), seed=3)
    x, y = g.sample_labelled(n, torch.Generator().manual_seed(seed))
    mean = g.weights @ g.means
    variance = g.weights @ (g.std[:, None] ** 2 + (g.means - mean) ** 2)
    assert ((x.mean(0) - mean).abs() < 4 * (variance / n) ** 0.5).all()
    spread = ((x - mean) ** 2).std(0) / n**0.5
    assert (((x - mean) ** 2).mean(0) - variance).abs().lt(4 * spread).all()
    share = torch.stack([g.weights[g.labels == k].sum() for k in range(3)])
    seen = torch.bincount(y, minlength=3) / n
    assert ((seen - share).abs() < 4 * (share * (1 - share) / n) ** 0.5).all()
    assert torch.equal(x, g.sample(n, torch.Generator().manual_seed(seed)))


def test_draws_of_points_are_the_points():
    g = td.GaussianMixture(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.0, None, td.VP())
    x, y = g.sample_labelled(50, torch.Generator().manual_seed(0))
    assert torch.equal(x, g.means[y]) and set(y.tolist()) == {0, 1}


def test_weights_given_as_a_list_keep_their_precision():
    means = torch.zeros(2, 1, dtype=F64)
    close(td.GaussianMixture(means, 0.1, [0.3, 0.7], td.VP()).weights, torch.tensor([0.3, 0.7], dtype=F64), 1e-15)
    close(td.GaussianMixture(means, 0.1, [1.0, 3.0], td.VP()).weights, torch.tensor([0.25, 0.75], dtype=F64), 1e-15)
    close(td.GaussianMixture(means, 0.1, None, td.VP()).weights, torch.tensor([0.5, 0.5], dtype=F64), 1e-15)


def test_float32_in_float32_out():
    g = plane(td.VP())
    for dtype in (torch.float32, F64):
        x = normal(3, 2).to(dtype)
        for value in (g(x, 0.3).x0, g(x, 0.3).eps, g.score(x, 0.3), g.log_prob(x, 0.3), g.posterior(x, 0.3)):
            assert value.dtype == dtype
    close(g(normal(3, 2).float(), 0.3).x0.double(), g(normal(3, 2), 0.3).x0, 1e-5)


# ---- the denoiser of a finite data set -----------------------------------------------------------


@every()
@pytest.mark.parametrize("chunk", [1, 3, 7, 4096])
def test_ideal_denoiser_is_a_mixture_of_points(S, chunk):
    data, t = normal(7, 2), torch.tensor([0.05, 0.4, 1.0], dtype=F64)
    c = S(t, like=data[:3])
    x = c.alpha * data[:3] + c.sigma * normal(3, 2, seed=1)
    mine, wanted = td.IdealDenoiser(data, S, chunk=chunk)(x, t), td.GaussianMixture(data, 0.0, None, S)(x, t)
    close(mine.x0, wanted.x0, 1e-9), close(mine.eps, wanted.eps, 1e-9)


def test_ideal_denoiser_of_images():
    data, S = normal(11, 1, 4, 4), td.Cosine()
    x, t = normal(3, 1, 4, 4, seed=1), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    p = td.IdealDenoiser(data, S, chunk=4)(x, t)
    flat = td.GaussianMixture(data.flatten(1), 0.0, None, S)(x.flatten(1), t)
    assert p.x0.shape == p.eps.shape == x.shape
    close(p.x0.flatten(1), flat.x0, 1e-10), close(p.eps.flatten(1), flat.eps, 1e-10)


@pytest.mark.parametrize("chunk", [2, 5, 100])
def test_ideal_denoiser_of_one_label_sees_only_its_points(chunk):
    data, labels, S = normal(12, 2), torch.tensor([0] * 5 + [1, 2] * 3 + [1]), td.VP()
    d = td.IdealDenoiser(data, S, y=labels, chunk=chunk)
    x, y = normal(3, 2, seed=1), torch.tensor([2, 0, 1])
    p = d(x, 0.4, y=y)
    for i in range(3):
        alone = td.IdealDenoiser(data[labels == y[i]], S)(x[i : i + 1], 0.4)
        close(p.x0[i : i + 1], alone.x0, 1e-11)
    close(d(x, 0.4).x0, td.IdealDenoiser(data, S)(x, 0.4).x0, 1e-12)


@every()
def test_ideal_denoiser_is_stable_at_the_smallest_noise(S):
    data = 100 + normal(50, 3).float()  # far from the origin, where float32 would lose the distances
    d = td.IdealDenoiser(data, S, chunk=8)
    x = S(S.t_min, like=data).alpha * data
    p = d(x, S.t_min)
    close(p.x0, data, 1e-6)
    assert p.x0.dtype == torch.float32 and p.eps.isfinite().all()


def test_data_of_one_point_is_always_known():
    point = normal(1, 4)
    for t in (0.01, 0.5, 1.0):
        close(td.IdealDenoiser(point, td.VP())(normal(3, 4, seed=1), t).x0, point.expand(3, 4), 1e-14)
        close(td.GaussianMixture(point, 0.0, None, td.VP())(normal(3, 4, seed=1), t).x0, point.expand(3, 4), 1e-13)


def test_the_exact_denoisers_are_denoisers():
    for d in (plane(td.VP()), td.IdealDenoiser(normal(3, 2), td.VP()), td.denoiser(plane(td.VP()), td.VP())):
        assert isinstance(d, td.Denoiser)
    assert coefs(td.VP(), 0.5).alpha.shape == (1,)
    own = td.denoiser(plane(td.VP()), td.VP())
    close(own(normal(2, 2), 0.3).x0, plane(td.VP())(normal(2, 2), 0.3).x0, 0)
