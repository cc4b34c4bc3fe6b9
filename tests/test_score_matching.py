"""The losses of score matching against closed forms: exact means of quadratics, all signs enumerated, grids."""

import itertools
import math

import pytest
import torch

import tinydiff as td
from tinydiff import score_matching as sm
from tinydiff.recipes import study_score_matching as study

F64 = torch.float64
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
SLICED = pytest.mark.parametrize("loss", [sm.sliced_loss, sm.sliced_loss_vr])
PROJECTIONS = pytest.mark.parametrize("projection", [sm.rademacher, sm.gaussian, sm.sphere])
D, SIGMA = 3, 0.4


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), atol=tol, rtol=tol)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def quadratic_points(dim):
    """2 dim points whose average is E[f(z)], z ~ N(0, I), exactly, for every f up to the third degree."""
    eye = math.sqrt(dim) * torch.eye(dim, dtype=F64)
    return torch.cat([eye, -eye])


class Gaussian:
    """N(mean, F F^T) in D dimensions."""

    def __init__(self, seed, noise=0.0):
        self.mean, self.factor = draw(D, seed=seed), draw(D, D, seed=seed + 10)
        self.precision = torch.linalg.inv(self.factor @ self.factor.T + noise**2 * torch.eye(D, dtype=F64))

    def points(self):
        return self.mean + quadratic_points(D) @ self.factor.T

    def points_and_noise(self):
        both = quadratic_points(2 * D)
        return self.mean + both[:, :D] @ self.factor.T, both[:, D:]

    def score(self, x):
        return -(x - self.mean) @ self.precision


def linear(seed):
    """A score A x + c, and A; not symmetric, as a network's need not be."""
    A, c = draw(D, D, seed=seed).requires_grad_(), draw(D, seed=seed + 1)
    return (lambda x: x @ A.T + c), A


def signs(dim):
    """A projection that gives all 2^dim sign vectors, one a call."""
    rows = itertools.cycle(torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dim)), dtype=F64))
    return lambda x, generator: next(rows).reshape(x.shape[1:]).expand_as(x)


def net(seed=0, activation=torch.nn.SiLU, dim=D):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(dim, 16), activation(), torch.nn.Linear(16, dim)).double()


def gradient(value, A):
    return torch.autograd.grad(value, A, retain_graph=True)[0]


# ---- means: the same minimum -----------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("model", [3, 4, 5])
def test_implicit_is_explicit_less_a_constant_and_has_its_gradient(seed, model):
    data, (score, A) = Gaussian(seed), linear(model)
    x = data.points()
    explicit, implicit = sm.explicit_loss(score, x, data.score).mean(), sm.implicit_loss(score, x).mean()
    constant = data.precision.trace() / 2  # 1/2 E||s*||^2
    close(explicit - implicit, constant)
    close(gradient(implicit, A), gradient(explicit, A))


@SEEDS
def test_implicit_is_explicit_less_a_constant_for_a_network_and_a_mixture(seed):
    mixture = td.GaussianMixture(torch.tensor([[0.8, 0.0], [-0.6, 0.7]], dtype=F64), 0.5, [0.3, 0.7], td.VE())
    line = torch.linspace(-6, 6, 161, dtype=F64)  # smooth and 0 at the ends: the sum is exact to rounding
    x = torch.cartesian_prod(line, line)
    p = mixture.log_prob(x, 0.0).exp() * (line[1] - line[0]) ** 2
    true, score = (lambda x: mixture.score(x, 0.0)), net(seed, dim=2)
    with torch.no_grad():
        gap = (p * (sm.explicit_loss(score, x, true) - sm.implicit_loss(score, x))).sum()
    close(gap, (p * true(x).square().sum(1)).sum() / 2, 1e-8)


@SEEDS
def test_the_trace_is_that_of_the_jacobian(seed):
    score, x = net(seed), draw(7, D, seed=seed)
    jacobian = torch.func.vmap(torch.func.jacrev(score))(x)
    close(sm.implicit_loss(score, x), jacobian.diagonal(dim1=1, dim2=2).sum(1) + score(x).square().sum(1) / 2)


@SLICED
@SEEDS
def test_over_all_signs_sliced_is_implicit(loss, seed):
    """E[v v^T] = I is all that is needed, so the mean over the 2^d sign vectors is the implicit loss itself."""
    score, x = net(seed), draw(5, D, seed=seed)
    close(loss(score, x, signs(D), n=2**D), sm.implicit_loss(score, x))


@SLICED
def test_over_all_signs_sliced_has_the_gradient_of_explicit(loss):
    data, (score, A) = Gaussian(0), linear(3)
    value = loss(score, data.points(), signs(D), n=2**D).mean()
    close(gradient(value, A), gradient(sm.explicit_loss(score, data.points(), data.score).mean(), A))


@SLICED
@PROJECTIONS
def test_sliced_is_implicit_within_standard_errors(loss, projection):
    """5 standard errors of 40,000 draws: a fault that moves the mean by more than 2.5 % of a draw's spread."""
    score, x, n = net(1), draw(1, D, seed=1), 40_000
    with torch.no_grad():
        values = loss(score, x.expand(n, D), projection, generator=generator(2))
        want = sm.implicit_loss(score, x)
    assert abs(values.mean() - want) < 5 * values.std() / math.sqrt(n)


@SLICED
def test_several_projections_are_averaged(loss):
    score, x = net(), draw(4, D)
    g = generator(3)
    singles = [loss(score, x, generator=g) for _ in range(3)]
    close(loss(score, x, n=3, generator=generator(3)), sum(singles) / 3)
    assert (singles[0] - singles[1]).abs().max() > 1e-3  # each has its own v


def test_images_are_as_vectors():
    flat, x = net(dim=4), draw(6, 4)
    score, image = (lambda v: flat(v.flatten(1)).reshape(v.shape)), x.reshape(6, 1, 2, 2)
    g = lambda: generator(5)  # noqa: E731
    for loss in (
        sm.implicit_loss,
        lambda s, v: sm.sliced_loss(s, v, sm.sphere, generator=g()),
        lambda s, v: sm.sliced_loss_vr(s, v, generator=g()),
        lambda s, v: sm.denoising_score_loss(s, v, SIGMA, g()),
        lambda s, v: sm.denoising_score_loss_cv(s, v, SIGMA, g()),
    ):
        close(loss(score, image), loss(flat, x))


# ---- denoising -------------------------------------------------------------------------------------


def with_noise(monkeypatch, z):
    monkeypatch.setattr(sm, "gaussian", lambda x, generator=None: z)


@SEEDS
@pytest.mark.parametrize("model", [3, 4])
def test_denoising_is_explicit_for_the_noised_data_plus_its_floor(monkeypatch, seed, model):
    clean, noised, (score, A) = Gaussian(seed), Gaussian(seed, SIGMA), linear(model)
    x, z = clean.points_and_noise()
    with_noise(monkeypatch, z)
    explicit = sm.explicit_loss(score, x + SIGMA * z, noised.score).mean()
    floor = D / SIGMA**2 / 2 - noised.precision.trace() / 2
    loss, cv = (f(score, x, SIGMA).mean() for f in (sm.denoising_score_loss, sm.denoising_score_loss_cv))
    close(loss, explicit + floor)
    close(cv, loss - D / SIGMA**2 / 2)
    for value in (loss, cv):
        close(gradient(value, A), gradient(explicit, A))
    close(sm.denoising_score_loss(noised.score, x, SIGMA).mean(), floor)  # and the floor is reached


def test_the_minimiser_is_the_exact_noised_score_of_a_mixture():
    """From 20,000 draws the floor is met within 5 standard errors; with the same draws every other score is worse."""
    mixture = td.GaussianMixture(draw(4, D), 0.3, [0.1, 0.2, 0.3, 0.4], td.VE())
    t = mixture.schedule.time(torch.tensor(2 * math.log(1 / SIGMA), dtype=F64))
    x, exact = mixture.sample(20_000, generator(1)), lambda x: mixture.score(x, t)

    def loss(score):
        return sm.denoising_score_loss(score, x, SIGMA, generator(2))

    noised = x + SIGMA * sm.gaussian(x, generator(2))
    gap = loss(exact) - (D / SIGMA**2 - exact(noised).square().sum(1)) / 2
    assert abs(gap.mean()) < 5 * gap.std() / math.sqrt(len(x))
    for other in (lambda x: 0.9 * exact(x), lambda x: 1.1 * exact(x), lambda x: exact(x) + 0.3, mixture_clean(mixture)):
        assert loss(other).mean() > loss(exact).mean() + 0.01


def mixture_clean(mixture):
    return lambda x: mixture.score(x, 0.0)


def test_denoising_is_the_losses_module_s_with_target_score():
    score, x, t = net(), draw(6, D), torch.full((6,), 0.3, dtype=F64)
    wrapped = torch.nn.Module()
    wrapped.forward = lambda x, noise_level: score(x)
    S = td.VE(0.05, 5.0)
    theirs = td.denoising_loss(td.NetDenoiser(wrapped, S, td.targets.score), x, t, generator=generator(4))
    sigma = S(t, like=x).sigma[0].item()
    close(sm.denoising_score_loss(score, x, sigma, generator(4)), D / 2 * theirs)


@SEEDS
def test_without_noise_the_control_variate_leaves_sliced_vr(seed):
    """A difference quotient: its error falls with sigma, here below 100 sigma (seeds 0 to 9 gave at most 20 sigma)."""
    score, x = net(seed), draw(50, D, seed=seed)
    limit = sm.sliced_loss_vr(score, x, sm.gaussian, generator=generator(7))
    for sigma in (1e-4, 1e-6):
        gap = sm.denoising_score_loss_cv(score, x, sigma, generator(7)) - limit
        assert gap.abs().max() < 100 * sigma


# ---- variances in closed form ----------------------------------------------------------------------


def variance_error(values):
    """Standard error of the variance, from the fourth moment."""
    centred = values - values.mean()
    return ((centred**4).mean() - values.var() ** 2).sqrt() / math.sqrt(len(values))


@PROJECTIONS
def test_projections_have_unit_covariance(projection):
    v = projection(torch.zeros(40_000, 4, dtype=F64), generator(1))
    close(v.T @ v / len(v), torch.eye(4, dtype=F64), 5 * math.sqrt(2 / 40_000))
    assert v.mean(0).abs().max() < 5 / math.sqrt(40_000)


def test_projections_lie_where_they_should():
    x = torch.zeros(100, 2, 3)
    assert set(sm.rademacher(x, generator()).flatten().tolist()) == {-1.0, 1.0}
    close(sm.sphere(x, generator()).flatten(1).norm(dim=1), math.sqrt(6), 1e-5)
    for projection in (sm.rademacher, sm.gaussian, sm.sphere):
        one, again, other = (projection(x, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(one, again) and not torch.equal(one, other)
        assert one.dtype == x.dtype and one.shape == x.shape


TRACE_VARIANCE = {
    sm.rademacher: lambda A: 2 * (A.square().sum() - A.diagonal().square().sum()),
    sm.gaussian: lambda A: 2 * A.square().sum(),
    sm.sphere: lambda A: 2 * len(A) / (len(A) + 2) * (A.square().sum() - A.trace() ** 2 / len(A)),
}


@PROJECTIONS
@SEEDS
def test_variance_of_the_trace_estimate(projection, seed):
    A, n = draw(D, D, seed=seed), 40_000
    with torch.no_grad():
        values = sm.sliced_loss_vr(lambda x: x @ A.T, torch.zeros(n, D, dtype=F64), projection, 1, generator(seed))
    want = TRACE_VARIANCE[projection]((A + A.T) / 2)  # x = 0, so that s = 0 and the trace is all there is
    assert abs(values.var() - want) < 5 * variance_error(values)


GRADIENT_VARIANCE = {  # of the loss of s = -theta x in theta, at the optimum, for data N(0, I) in d dimensions
    "explicit": lambda d: 0.0,
    "implicit": lambda d: 2 * d,
    "sliced": lambda d: 2 * d**2,
    "sliced, Gaussian": lambda d: 2 * d * (d + 2),
    "sliced VR": lambda d: 2 * d,
    "sliced VR, Gaussian": lambda d: 4 * d,
    "denoising": lambda d: d / SIGMA**2,
    "denoising, control variate": lambda d: 4 * d / (1 + SIGMA**2),
}


@pytest.mark.parametrize("name", GRADIENT_VARIANCE)
@pytest.mark.parametrize("d", [1, 5])
def test_variance_of_the_gradient_for_a_gaussian(name, d):
    n, g = 40_000, generator(d)
    x = torch.randn(n, d, generator=g, dtype=F64)
    theta = torch.full((n, 1), 1 / (1 + SIGMA**2) if "denoising" in name else 1.0, dtype=F64, requires_grad=True)
    score = lambda x: -theta * x  # noqa: E731, a parameter for each datum, so that each has its own gradient
    losses = {
        "explicit": lambda: sm.explicit_loss(score, x, lambda x: -x),
        "implicit": lambda: sm.implicit_loss(score, x),
        "sliced": lambda: sm.sliced_loss(score, x, generator=g),
        "sliced, Gaussian": lambda: sm.sliced_loss(score, x, sm.gaussian, generator=g),
        "sliced VR": lambda: sm.sliced_loss_vr(score, x, generator=g),
        "sliced VR, Gaussian": lambda: sm.sliced_loss_vr(score, x, sm.gaussian, generator=g),
        "denoising": lambda: sm.denoising_score_loss(score, x, SIGMA, g),
        "denoising, control variate": lambda: sm.denoising_score_loss_cv(score, x, SIGMA, g),
    }
    (gradients,) = torch.autograd.grad(losses[name]().sum(), theta)
    assert abs(gradients.mean()) <= 5 * gradients.std() / math.sqrt(n)
    assert abs(gradients.var() - GRADIENT_VARIANCE[name](d)) <= 5 * variance_error(gradients)


# ---- gradients, graphs, errors ---------------------------------------------------------------------

EVERY = {
    "explicit": lambda s, x: sm.explicit_loss(s, x, lambda x: -x),
    "implicit": sm.implicit_loss,
    "sliced": lambda s, x: sm.sliced_loss(s, x, sm.gaussian, 2, generator(1)),
    "sliced VR": lambda s, x: sm.sliced_loss_vr(s, x, sm.sphere, 2, generator(1)),
    "denoising": lambda s, x: sm.denoising_score_loss(s, x, SIGMA, generator(1)),
    "denoising, control variate": lambda s, x: sm.denoising_score_loss_cv(s, x, SIGMA, generator(1)),
}
EACH = pytest.mark.parametrize("name", EVERY)


@EACH
def test_gradients_in_the_parameters_are_finite_differences(name):
    loss, score, x, h = EVERY[name], net(), draw(8, D), 1e-5
    parameters = list(score.parameters())
    gradients = torch.autograd.grad(loss(score, x).mean(), parameters, materialize_grads=True)
    directions = [draw(*p.shape, seed=i) for i, p in enumerate(parameters)]
    ends = []
    for step in (h, -2 * h):
        with torch.no_grad():
            for p, v in zip(parameters, directions, strict=True):
                p += step * v
        ends.append(loss(score, x).mean().item())
    slope = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
    close(slope, (ends[0] - ends[1]) / (2 * h), 1e-6)


@EACH
def test_a_loss_is_per_datum_and_needs_no_graph_to_be_looked_at(name):
    loss, score, x = EVERY[name], net(), draw(8, D)
    value = loss(score, x)
    assert value.shape == (8,) and value.requires_grad and not x.requires_grad
    with torch.no_grad():
        quiet = loss(score, x)
    assert not quiet.requires_grad
    close(quiet, value.detach(), 1e-14)


@EACH
def test_no_gradient_reaches_the_data_of_losses_with_derivatives(name):
    x = draw(8, D).requires_grad_()
    EVERY[name](net(), x).sum().backward()
    assert (x.grad is None) == (name in ("implicit", "sliced", "sliced VR"))


def test_a_score_that_does_not_depend_on_x_has_trace_zero():
    c = draw(D).requires_grad_()
    x = draw(4, D)
    close(sm.implicit_loss(lambda x: c.expand_as(x), x), c.square().sum() / 2)


def test_backward_passes_before_the_loss_is_known():
    """dim for the implicit loss, n for the sliced ones, none for the rest: counted by a hook on the score."""
    counts = {}
    for name, loss in EVERY.items():
        passes, network = [], net()

        def score(x, passes=passes, network=network):
            s = network(x)
            s.register_hook(lambda gradient: passes.append(1))
            return s

        loss(score, draw(4, D))
        counts[name] = len(passes)
    assert counts == dict.fromkeys(EVERY, 0) | {"implicit": D, "sliced": 2, "sliced VR": 2}


def test_a_kink_that_moves_is_not_seen_by_the_gradient_of_the_implicit_loss():
    """s = relu(x - c) on N(0, 1): E s' = P(x > c) has the slope -p(c) in c; autograd gives 0 for that part."""
    c = torch.tensor(0.5, dtype=F64, requires_grad=True)
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    x = (math.sqrt(2) * torch.erfinv(2 * u - 1))[:, None]  # quantiles: sums are integrals to 1e-4
    score = lambda x: torch.relu(x - c)  # noqa: E731
    implicit = gradient(sm.implicit_loss(score, x).mean(), c)
    explicit = gradient(sm.explicit_loss(score, x, lambda x: -x).mean(), c)
    density = math.exp(-(0.5**2) / 2) / math.sqrt(2 * math.pi)
    close(explicit - implicit, -density, 1e-3)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("loss", [sm.denoising_score_loss, sm.denoising_score_loss_cv])
def test_a_noise_level_that_is_not_positive_is_refused(loss, sigma):
    with pytest.raises(ValueError, match="sigma must be positive"):
        loss(net(), draw(4, D), sigma)


@SLICED
def test_no_projections_are_refused(loss):
    with pytest.raises(ValueError, match="at least 1; got 0"):
        loss(net(), draw(4, D), n=0)


@EACH
def test_a_score_of_another_shape_is_refused(name):
    with pytest.raises(ValueError, match=r"shape of x, \(4, 3\); got \(4, 1\)"):
        EVERY[name](lambda x: x.sum(1, keepdim=True), draw(4, D))


# ---- the study -------------------------------------------------------------------------------------


def test_the_study_s_measures():
    data = study.mixture()
    true = lambda x: data.score(x, 0.0)  # noqa: E731
    x = data.sample(500, generator())
    assert study.error(true, true, x) == 0
    assert study.error(lambda x: 0 * x, true, x) == 1
    assert study.error(lambda x: 1.5 * true(x), true, x) == pytest.approx(0.25, rel=1e-4)
    draw, score = study.correlated(8, 0)
    x = draw(20_000, generator())
    stein = x.T @ score(x) / len(x)  # E[x s*^T] = -I; an entry's standard error is at most 2.3 / sqrt(20,000)
    close(stein, -torch.eye(8), 0.09)
    assert study.off(data.sample(2000, generator(8))) < 0.01 < study.off(torch.randn(2000, 2, generator=generator()))


def test_the_noise_of_a_gradient_is_its_covariance():
    """A network without a hidden layer: s = b, loss (b - x)^2 / 2, so a datum's gradient has variance var x = 1."""

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.b = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, noise_level):
            return self.b.expand_as(x)

    loss = lambda s, x, g: sm.explicit_loss(s, x, lambda x: x)  # noqa: E731
    draw = lambda n, g: torch.randn(n, 1, generator=g)  # noqa: E731
    found = study.gradient_noise(Constant(), loss, draw, batches=500, batch_size=8)
    assert found == pytest.approx(1, abs=5 * math.sqrt(2 / 500))
