"""Losses against closed forms and against each other; times that are distributed as they say."""

import math

import pytest
import torch
from test_schedules import EVERY, PRESERVING, every

import tinydiff as td
from tinydiff import losses, targets

F64 = torch.float64
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])
MEAN, STD = torch.tensor([[0.7, -0.3]], dtype=F64), 0.4


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(S):
    return td.GaussianMixture(MEAN, STD, None, S)


class Exact(torch.nn.Module):
    """A network that answers in a target's space what an exact denoiser believes."""

    def __init__(self, exact, target):
        super().__init__()
        self.exact, self.target = exact, target

    def forward(self, x, noise_level, **cond):
        t = noise_level / 1000
        p = self.exact(x, t, **cond)
        return td.encode(self.target, self.exact.schedule(t, like=x), p.x0, p.eps)


# ---- the denoising loss --------------------------------------------------------------------------


def test_the_loss_is_the_squared_error_of_the_target():
    net = torch.nn.Sequential()  # the identity, but it takes the time as well
    net.forward = lambda x, t: x
    S, x0, t = td.Flow(), torch.randn(5, 3, generator=generator(), dtype=F64), torch.linspace(0.1, 0.9, 5)
    eps = torch.randn(5, 3, generator=generator(9), dtype=F64)
    x = (1 - t.double())[:, None] * x0 + t.double()[:, None] * eps
    d = td.NetDenoiser(net, S, targets.eps)
    mine = td.denoising_loss(d, x0, t, generator=generator(9))
    close(mine, ((x - eps) ** 2).mean(1))
    assert mine.shape == (5,)
    d = td.NetDenoiser(net, S, targets.velocity)
    close(td.denoising_loss(d, x0, t, generator=generator(9)), ((x - (eps - x0)) ** 2).mean(1))
    weighted = td.denoising_loss(d, x0, t, generator=generator(9), weight=lambda c: c.sigma)
    close(weighted, t.double() * ((x - (eps - x0)) ** 2).mean(1))


@SEEDS
@every("linear", "VP", "EDM", "Flow")
def test_the_loss_of_the_exact_denoiser_is_the_variance_it_cannot_know(S, seed):
    """For Gaussian data E (x0 - E[x0 | x])^2 = std^2 sigma^2 / (alpha^2 std^2 + sigma^2), whatever x.

    4 standard errors of the mean of 4,000 draws: chance passes it once in 16,000 comparisons. These
    120 stay below 2.4.
    """
    d, n, g = gaussian(S), 4000, generator(seed)
    for t in (0.05, 0.2, 0.5, 0.8, 0.98):
        x0 = d.sample(n, g)
        c = S(t, like=x0[:1])
        left = STD**2 * c.sigma**2 / (c.alpha**2 * STD**2 + c.sigma**2)
        loss = td.denoising_loss(d, x0, t, target=targets.x0, generator=g)
        assert abs(loss.mean() - left) < 4 * loss.std() / n**0.5
        loss = td.denoising_loss(d, x0, t, target=targets.eps, generator=g)
        assert abs(loss.mean() - left * c.alpha**2 / c.sigma**2) < 4 * loss.std() / n**0.5


@SEEDS
def test_no_denoiser_goes_below_the_exact_one(seed):
    """Another belief costs its mean squared distance from the exact one (Pythagoras), so never less than nothing.

    4 standard errors, as above; the 36 comparisons stay below 3, and the smallest excess is over 5.7 of them.
    """
    S = td.Cosine()
    d = td.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), 0.2, None, S)
    x0 = d.sample(4000, generator(seed))
    for t in (0.2, 0.5, 0.8):
        floor = td.denoising_loss(d, x0, t, target=targets.x0, generator=generator(seed))
        for rule in (lambda v: 0.5 * v, lambda v: 1.5 * v, lambda v: v + 0.4, lambda v: 2 * v.sign()):
            change = []

            def other(x, t, rule=rule, change=change):
                p = d(x, t)
                change.append(((rule(p.x0) - p.x0) ** 2).mean(1))
                return p.with_x0(rule(p.x0), S(t, like=x))

            loss = td.denoising_loss(td.denoiser(other, S), x0, t, target=targets.x0, generator=generator(seed))
            excess = loss - floor
            error = 4 / len(x0) ** 0.5
            assert excess.mean() > error * excess.std()
            assert (excess - change[0]).mean().abs() < error * (excess - change[0]).std()


@every(*PRESERVING)
@pytest.mark.parametrize("name", ["x0", "eps", "v", "score", "velocity"])
def test_the_loss_of_a_network_is_that_of_its_belief(S, name):
    """In the target's own space, and in x0 space with the weight carried over."""
    target = getattr(targets, name)
    d = td.NetDenoiser(Exact(gaussian(S), target), S, target)
    x0, t = gaussian(S).sample(6, generator()), torch.tensor([0.0305, 0.1105, 0.3, 0.5, 0.6655, 0.95], dtype=F64)

    def loss(**options):
        return td.denoising_loss(d, x0, t, generator=generator(3), **options)

    close(loss() / loss(target=target), torch.ones(6, dtype=F64), 1e-7)
    weight = losses.min_snr(5.0)
    by_x0 = loss(target=targets.x0, weight=weight)
    close(loss(weight=losses.in_x0_space(target, weight)) / by_x0, torch.ones(6, dtype=F64), 1e-7)
    snr = S(t, like=x0).logsnr[:, 0].exp()
    # SNR in x0 space is 1 on eps, SNR + 1 is 1 on v (Salimans & Ho 2022, section 4)
    known = {"x0": snr / snr, "eps": snr, "v": snr + 1}
    if name in known:
        close(loss() / (known[name] * loss(target=targets.x0)), torch.ones(6, dtype=F64), 1e-7)


def test_weights():
    c = td.VP()(torch.tensor([0.05, 0.5, 0.9]), like=torch.empty(3, 1, dtype=F64))
    ratio = c.alpha**2 / c.sigma**2
    close(losses.snr(c), ratio)
    close(losses.min_snr(2.0)(c), ratio.clamp(max=2.0))
    assert ratio[0] > 5 > ratio[1] and losses.min_snr()(c)[0] == 5
    close(losses.in_x0_space(targets.eps, losses.snr)(c), torch.ones_like(ratio))


def test_conditions_reach_the_denoiser():
    S = td.VP()
    g = td.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=F64), 0.1, None, S)
    x0, y = g.sample_labelled(2000, generator())
    knows = td.denoising_loss(g, x0, 0.6, target=targets.x0, generator=generator(1), y=y).mean()
    guesses = td.denoising_loss(g, x0, 0.6, target=targets.x0, generator=generator(1)).mean()
    wrong = td.denoising_loss(g, x0, 0.6, target=targets.x0, generator=generator(1), y=1 - y).mean()
    assert knows < 0.011 < guesses / 5 < wrong  # knowing leaves at most the variance of a class, 0.01
    net = td.NetDenoiser(Exact(g, targets.eps), S, targets.eps)
    close(
        td.denoising_loss(net, x0, 0.6, target=targets.x0, generator=generator(1), y=y).mean().reshape(1),
        knows.reshape(1),
        1e-8,
    )
    a, b = (td.denoising_loss(net, x0, 0.6, generator=generator(1), y=v).mean() for v in (y, 1 - y))
    assert a < b / 5


def test_the_loss_has_a_gradient_and_repeats_with_its_generator():
    net = torch.nn.Linear(2, 2)
    net.forward = lambda x, t: torch.nn.functional.linear(x, net.weight, net.bias)
    d, x0 = td.NetDenoiser(net, td.Cosine(), targets.v), torch.randn(8, 2, generator=generator())
    t = torch.linspace(0.1, 1, 8)
    loss = td.denoising_loss(d, x0, t, generator=generator(1))
    loss.mean().backward()
    assert net.weight.grad.isfinite().all() and net.weight.grad.abs().sum() > 0
    assert torch.equal(loss, td.denoising_loss(d, x0, t, generator=generator(1)))
    assert not torch.equal(loss, td.denoising_loss(d, x0, t, generator=generator(2)))


def test_the_mean_is_taken_over_all_dimensions():
    S = td.VP()
    d = td.denoiser(lambda x, t: td.Prediction(torch.zeros_like(x), x), S)  # says x0 = 0
    images = torch.randn(3, 1, 4, 4, generator=generator(), dtype=F64)
    close(td.denoising_loss(d, images, 0.5, target=targets.x0), (images**2).mean((1, 2, 3)))


@SEEDS
def test_a_validation_loss_of_fixed_noise(seed):
    """The same noise for every denoiser, whatever the batches; its mean is the loss that training sees."""
    g = td.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.3, None, td.Cosine())
    x0 = g.sample(700, generator(seed))
    rows = losses.fixed_noise_loss(g, x0, draws=8, seed=seed, target=targets.x0)
    assert rows.shape == (8, 700)
    close(rows, losses.fixed_noise_loss(g, x0, draws=8, seed=seed, batch_size=33, target=targets.x0), 1e-5)
    assert (rows.mean(1)[1:] > rows.mean(1)[:-1]).all()  # more noise, less is known of x0
    t = (torch.randint(8, (40_000,), generator=generator(seed)) + 0.5) / 8
    free = td.denoising_loss(g, g.sample(40_000, generator(seed + 9)), t, target=targets.x0, generator=generator(5))
    spread = (free.var() / len(free) + rows.mean(0).var() / 700).sqrt()
    assert abs(free.mean() - rows.mean()) < 4 * spread
    with pytest.raises(ValueError, match="draws must be at least 1; got 0"):
        losses.fixed_noise_loss(g, x0, draws=0)


def test_fixed_noise_passes_each_its_conditions():
    S, y = td.VP(), torch.arange(5)
    d = td.denoiser(lambda x, t, y: td.Prediction(y[:, None] + 0 * x, x), S)
    rows = losses.fixed_noise_loss(d, torch.zeros(5, 1), draws=2, batch_size=2, target=targets.x0, y=y)
    close(rows, (y**2.0).expand(2, 5))


# ---- how a network is called ---------------------------------------------------------------------


def test_what_a_network_sees():
    seen = {}

    def forward(x, noise_level, **cond):
        seen.update(x=x, level=noise_level, **cond)
        return x

    net = torch.nn.Module()
    net.forward = forward
    S, x, t = td.EDM(), torch.randn(3, 1, 2, 2, generator=generator()), torch.tensor([0.1, 0.5, 0.9])
    y = torch.tensor([1, 2, 3])
    td.NetDenoiser(net, S, targets.eps)(x, t, y=y)
    close(seen["level"], 1000 * t), close(seen["x"], x)
    assert seen["level"].shape == (3,) and seen["y"] is y
    D = td.denoisers
    td.NetDenoiser(net, S, targets.edm(0.5), c_in=D.c_in_edm(0.5), c_noise=D.c_noise_edm)(x, t)
    sigma = S.sigma(t)  # Karras et al. 2022, table 1
    close(seen["x"], x / (sigma**2 + 0.25).sqrt().reshape(3, 1, 1, 1), 1e-5)
    close(seen["level"], sigma.log() / 4, 1e-5)
    assert seen["level"].shape == (3,) and seen["level"].dtype == torch.float32


def test_edm_preconditioning_gives_unit_variance():
    """In: c_in x has variance 1 for data of standard deviation sigma_data, on any schedule."""
    for S in EVERY.values():
        c = S(torch.tensor([0.1, 0.9], dtype=F64), like=torch.empty(2, 1, dtype=F64))
        c_in = td.denoisers.c_in_edm(0.3)(c)
        close(c_in**2 * (c.alpha**2 * 0.3**2 + c.sigma**2), torch.ones_like(c_in), 1e-13)


# ---- times ---------------------------------------------------------------------------------------

DRAWS = [losses.uniform_times, losses.stratified_times, losses.step_times(7)]


@SEEDS
@pytest.mark.parametrize("times", DRAWS, ids=["uniform", "stratified", "steps"])
def test_times_lie_in_the_range_and_repeat(times, seed):
    t = times(10000, generator=generator(seed))
    assert t.shape == (10000,) and (t > 0).all() and (t <= 1).all()
    assert torch.equal(t, times(10000, generator=generator(seed)))
    assert not torch.equal(t, times(10000, generator=generator(seed + 1)))


@SEEDS
def test_uniform_times_are_uniform(seed):
    # a Kolmogorov-Smirnov distance of 2 / sqrt(n) is passed once in 1,500 draws; these three stay below 1 / sqrt(n)
    t = losses.uniform_times(10000, generator=generator(seed)).sort().values
    assert (t - (torch.arange(10000) + 0.5) / 10000).abs().max() < 2 / 10000**0.5


@SEEDS
@pytest.mark.parametrize("n", [1, 2, 64, 1000])
def test_stratified_times_fall_one_into_each_part(n, seed):
    t = losses.stratified_times(n, generator=generator(seed))
    cells = t.sort().values.double() * n
    low = torch.arange(n)
    assert (cells >= low - 1e-4).all() and (cells <= low + 1 + 1e-4).all()  # the edges are rounded in float32
    if n == 1000:
        assert (t.diff() < 0).any()  # shuffled
        inside = cells - low
        assert inside.min() < 0.05 and inside.max() > 0.95 and abs(inside.mean() - 0.5) < 4 / math.sqrt(12 * n)


@SEEDS
def test_step_times_are_the_steps_of_a_chain(seed):
    t = losses.step_times(50)(20000, generator=generator(seed))
    k = t * 50
    assert t.dtype == F64 and (k - k.round()).abs().max() < 1e-9
    count = torch.bincount(k.round().long(), minlength=51)
    assert len(count) == 51 and count[0] == 0
    # each of the 50 counts is 400 +- 20 (a standard error): 100 is passed once in 35,000 seeds; here they reach 62
    assert (count[1:] - 400).abs().max() < 100


@pytest.mark.parametrize("times", DRAWS, ids=["uniform", "stratified", "steps"])
def test_no_time_is_zero_even_where_rand_is(times, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.zeros(*shape))
    t = times(5, generator=generator())
    assert (t > 0).all() and (t <= 1).all()
