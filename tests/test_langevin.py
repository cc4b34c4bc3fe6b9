"""Langevin dynamics against closed forms: read off the samplers themselves where possible, else with three seeds."""

import itertools
import math
import sys

import pytest
import torch

import tinydiff as td
from tinydiff import ncsn
from tinydiff.samplers import Chain, sgld_constants, sgld_steps, stochastic_score

F64 = torch.float64


def close(a, b, tol=1e-12):
    """b may be one number for all of a."""
    a = torch.as_tensor(a, dtype=F64)
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=F64).expand_as(a), atol=tol, rtol=tol)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


def affine(run, steps):
    """(slope, noise) of each step of a chain on centred Gaussian data, read off run(x, generator), with the same noise.

    Where the step does more than scale x and add noise, this fails.
    """
    one, zero = (list(run(torch.full((1, 1), v, dtype=F64), generator(3))) for v in (1.0, 0.0))
    g, before, maps = generator(3), (1.0, 0.0), []
    for a, b in itertools.islice(zip(one, zero, strict=True), steps):
        slope = (a.x - b.x) / (before[0] - before[1])
        z = torch.randn(1, 1, generator=g, dtype=F64)
        noise = (b.x - slope * before[1]) / z
        close(a.x, slope * before[0] + noise * z, 1e-12)
        maps.append((float(slope), float(noise)))
        before = a.x, b.x
    return maps


# ---- plain Langevin dynamics ---------------------------------------------------------------------


@pytest.mark.parametrize("v", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5])
def test_stationary_variance_of_a_gaussian(v, eps):
    """v / (1 - eps / (4 v)); in the other convention, x + a score + sqrt(2 a) z, it is v / (1 - a / (2 v))."""
    maps = affine(lambda x, g: td.langevin(lambda x: -x / v, x, [eps] * 3, generator=g), 3)
    slope, noise = maps[0]
    close(maps, [[slope, noise]] * 3, 1e-9)
    close(noise**2 / (1 - slope**2), v / (1 - eps / (4 * v)), 1e-9)
    shrink, variance = slope**2, noise**2
    for _ in range(20):  # the recursion variance <- shrink variance + noise^2 from 0, twice as many steps each time
        shrink, variance = shrink**2, variance + shrink * variance
    close(variance, v / (1 - eps / (4 * v)), 1e-9)
    a = noise**2 / 2
    close(slope, 1 - a / v, 1e-12)
    close(variance, v / (1 - a / (2 * v)), 1e-9)


def test_a_run_with_known_noise():
    x, steps = normal(3, 2), torch.tensor([0.1, 0.02])
    states = list(td.langevin(torch.sin, x, steps, generator=generator(1)))
    g = generator(1)
    for state, eps in zip(states, steps.tolist(), strict=True):
        x = x + eps / 2 * x.sin() + eps**0.5 * torch.randn(3, 2, generator=g, dtype=F64)
        close(state.x, x)
        assert isinstance(state, Chain) and state.eps == eps and state.accept is None
    close(td.final(td.langevin(torch.sin, normal(3, 2), steps=iter(steps), generator=generator(1))), x)


def test_steps_may_go_on_for_ever():
    chain = td.langevin(lambda x: -x, normal(2, 1, 3, 3), itertools.repeat(0.1))
    assert next(chain).x.shape == next(chain).x.shape == (2, 1, 3, 3)


def test_gradients_are_kept_when_asked_for():
    x = normal(3, 2).requires_grad_()
    assert not td.final(td.langevin(lambda x: -x, x, [0.1])).requires_grad
    (slope,) = torch.autograd.grad(td.final(td.langevin(lambda x: -x, x, [0.1] * 2, grad=True)).sum(), x)
    close(slope, 0.95**2)


# ---- the accepted and refused --------------------------------------------------------------------


def proposal(monkeypatch, log_prob, x, y, eps, score):
    """mala's probability of accepting y from x, with the noise that leads there."""
    z = (y - x - eps / 2 * score(x)) / math.sqrt(eps)
    monkeypatch.setattr(sys.modules["tinydiff.samplers.langevin"], "noise_like", lambda x, generator: z)
    return next(td.mala(log_prob, x, [eps])).accept, (-(z**2).sum(1) / 2).exp()


@pytest.mark.parametrize("v, eps", [(1.0, 0.5), (0.4, 1.0), (2.0, 3.0)])
def test_mala_keeps_the_variance_of_a_gaussian(monkeypatch, v, eps):
    """On all pairs (x, y) of a grid: acceptance min(1, exp(eps (x^2 - y^2) / (8 v^2))), and E y^2 = E x^2."""
    grid = math.sqrt(v) * torch.linspace(-8, 8, 201, dtype=F64)
    x, y = (part.reshape(-1, 1) for part in torch.meshgrid(grid, grid, indexing="ij"))
    accept, q = proposal(monkeypatch, lambda x: -(x**2).sum(1) / (2 * v), x, y, eps, lambda x: -x / v)
    x, y = x[:, 0], y[:, 0]
    close(accept, (eps * (x**2 - y**2) / (8 * v**2)).exp().clamp(max=1), 1e-9)
    flow = (-(x**2) / (2 * v)).exp() * q * accept
    change = (flow * (y**2 - x**2)).sum() / flow.sum()
    unadjusted = (flow / accept * (y**2 - x**2)).sum() / (flow / accept).sum()
    close(change, 0, 1e-9)
    close(unadjusted, eps**2 / (4 * v), 1e-4)  # the step alone: (1 - eps/(2v))^2 v + eps - v; the grid cuts it off


def test_mala_in_detailed_balance(monkeypatch):
    """p(x) q(y | x) a(x, y) is symmetric, for a density that is not Gaussian, in two dimensions."""
    m = td.GaussianMixture(torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=F64), 0.6, [0.7, 0.3], td.VE())
    x, y = normal(50, 2), normal(50, 2, seed=1)
    flow = []
    for a, b in ((x, y), (y, x)):
        accept, q = proposal(monkeypatch, lambda x: m.log_prob(x, 0.0), a, b, 0.3, lambda x: m.score(x, 0.0))
        flow.append(m.log_prob(a, 0.0).exp() * q * accept)
    close(flow[0] / flow[1], 1, 1e-9)
    assert 0 < (accept == 1).double().mean() < 1  # otherwise nothing was tested


def test_mala_moves_the_accepted_alone():
    def log_prob(x):
        return -(x**4).sum((1, 2))

    x, eps = normal(40, 1, 2), 0.8
    states = list(td.mala(log_prob, x, [eps] * 3, generator=generator(2)))
    g, moved = generator(2), []
    for state in states:
        y = x - 2 * eps * x**3 + eps**0.5 * torch.randn(x.shape, generator=g, dtype=F64)
        yes = torch.rand(40, generator=g, dtype=F64) < state.accept
        x = torch.where(yes[:, None, None], y, x)
        close(state.x, x)
        moved.append(yes)
    moved = torch.stack(moved)
    assert 20 < moved.sum() < 100 and not torch.equal(moved[0], moved[1])
    assert state.accept.shape == (40,) and state.eps == eps and not state.x.requires_grad


def test_mala_refuses_to_leave_the_support():
    def log_prob(x):  # where x < 0 the score is nan
        return torch.where(x > 0, -x.sqrt(), -math.inf).sum(1)

    *_, last = td.mala(log_prob, torch.rand(200, 1, generator=generator(), dtype=F64), [0.5] * 20, generator())
    assert (last.x > 0).all() and (last.accept == 0).any() and (last.accept >= 0).all()


def test_mala_stays_where_plain_steps_drift():
    """Step 2 on N(0, 1): the plain chain settles at variance 2 in one step, mala stays at 1 (20,000 chains: +-0.01)."""
    x = normal(20_000, 1)
    plain = td.final(td.langevin(lambda x: -x, x, [2.0] * 20, generator=generator())).var()
    exact = td.final(td.mala(lambda x: -(x**2).sum(1) / 2, x, [2.0] * 20, generator=generator())).var()
    assert abs(plain - 2) < 0.1 and abs(exact - 1) < 0.05


# ---- mini-batches and decaying steps -------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.55, 0.75, 1.0])
def test_steps_reach_their_end_values(gamma):
    a, b = sgld_constants(1e-2, 1e-4, gamma, 10_000)
    steps = sgld_steps(a, b, gamma, 10_000)
    close(steps[[0, -1]], [1e-2, 1e-4], 1e-12)
    close(steps[5], a * (b + 5) ** -gamma, 1e-15)
    assert len(steps) == 10_000 and (steps.diff() < 0).all()


@pytest.mark.parametrize("gamma", [0.55, 0.75, 1.0])
def test_decaying_steps_sum_to_infinity_and_their_squares_do_not(gamma):
    """Sums over blocks, each twice as long as the one before, go as 2^(1 - gamma) >= 1; of squares 2^(1 - 2 gamma)."""
    steps = sgld_steps(0.3, 7.0, gamma, 2**20)
    for values, ratio in ((steps, 2 ** (1 - gamma)), (steps**2, 2 ** (1 - 2 * gamma))):
        close(values[2**19 :].sum() / values[2**18 : 2**19].sum(), ratio, 1e-4)


PRIOR = 10.0  # variance of theta; data are N(theta, 1)


def conjugate(data, batch_size, seed=0):
    return stochastic_score(
        lambda theta: -(theta**2).sum(1) / (2 * PRIOR),
        lambda theta, x: -((x - theta) ** 2) / 2,
        data,
        batch_size,
        generator(seed),
    )


def test_all_the_data_give_the_posteriors_score():
    data, theta = 0.5 + normal(20), normal(7, 1, seed=1)
    precision = 1 / PRIOR + 20
    close(conjugate(data, 20)(theta), -precision * (theta - data.sum() / precision), 1e-12)
    chain = td.langevin(conjugate(data, 20), torch.zeros(1, 1, dtype=F64), [1 / precision] * 200, generator=generator())
    assert abs(td.final(chain) - data.sum() / precision) < 6 / precision**0.5


def test_each_batch_is_as_likely_as_any_other():
    data, theta = torch.tensor([-2.0, -0.5, 0.3, 1.0, 4.0], dtype=F64), normal(5000, 1)
    noise = (conjugate(data, 2)(theta) + (1 / PRIOR + 5) * theta)[:, 0]  # what is left is 5/2 of the batch's sum
    wanted = torch.tensor([5 / 2 * (a + b) for a, b in itertools.combinations(data.tolist(), 2)], dtype=F64)
    miss, which = (noise[:, None] - wanted).abs().min(1)
    close(miss, 0, 1e-9)
    count = which.bincount(minlength=10)
    assert (count - 500).abs().max() < 130  # 6 standard deviations of 21
    close(wanted.mean(), data.sum())
    close(wanted.var(correction=0), 25 / 2 * data.var() * (1 - 2 / 5), 1e-9)


def test_mini_batches_widen_the_chain_as_predicted():
    """(1 + eps V / 4) / (precision (1 - eps precision / 4)), V the variance of the gradient; and less as eps falls."""
    data, theta = 0.5 + normal(20), torch.zeros(4000, 1, dtype=F64)
    precision, noise = 1 / PRIOR + 20, 20**2 * float(data.var(correction=0))

    def settles(eps):
        return (1 + eps * noise / 4) / (precision * (1 - eps * precision / 4))

    slope, fresh = 1 - 0.02 * precision / 2, 0.02**2 / 4 * noise + 0.02
    close(fresh / (1 - slope**2), settles(0.02), 1e-9)
    wide = td.final(td.langevin(conjugate(data, 1), theta, [0.02] * 60, generator=generator(5)))
    assert settles(0.02) > 2.5 / precision
    assert abs(wide.var() / settles(0.02) - 1) < 0.1  # 4,000 chains: +-0.022
    assert abs(wide.mean() - data.sum() / precision) < 6 * (settles(0.02) / 4000) ** 0.5
    steps = sgld_steps(*sgld_constants(0.02, 5e-4, 0.55, 500), 0.55, 500)
    narrow = td.final(td.langevin(conjugate(data, 1), theta, steps, generator=generator(6)))
    assert 0.9 < narrow.var() * precision < 1.2  # 1.05 at the last step's size; measured 1.06


# ---- annealed Langevin dynamics ------------------------------------------------------------------


@pytest.mark.parametrize("S", [td.VE(0.5, 8.0), td.EDM(0.5, 8.0)], ids=["VE", "EDM"])
@pytest.mark.parametrize("std", [0.0, 0.7])
def test_annealed_steps_scale_with_the_levels_variance(S, std):
    d = td.GaussianMixture(torch.zeros(1, 1, dtype=F64), std, None, S)
    ts, eps, each = td.grid(S, 4), 0.05, 3
    maps = affine(lambda x, g: td.annealed_langevin(d, x, ts, each, eps, g), 4 * each)
    sigma = S.sigma(ts[:-1])
    close(sigma[[0, -1]], [8.0, 0.5])
    size = (eps * sigma**2 / 0.25).repeat_interleave(each)
    variance = (sigma**2 + std**2).repeat_interleave(each)
    close(maps, torch.stack([1 - size / (2 * variance), size.sqrt()], 1), 1e-9)


def test_annealed_variance_is_the_ratio_of_technique_4():
    """Point data: at the last level, from the variance of the level above, to 1e-9."""
    sigma, gamma, each = 0.5, 1.4, 5
    S = td.VE(sigma, sigma * gamma**3)
    d = td.GaussianMixture(torch.zeros(1, 1, dtype=F64), 0.0, None, S)
    a = ncsn.best_step(sigma, gamma, each)
    maps = affine(lambda x, g: td.annealed_langevin(d, x, td.grid(S, 4), each, 2 * a, g), 4 * each)
    variance = (gamma * sigma) ** 2
    for slope, noise in maps[-each:]:
        variance = slope**2 * variance + noise**2
    close(variance / sigma**2, ncsn.langevin_ratio(a, sigma, gamma, each), 1e-9)


def test_states_of_annealed_langevin():
    S, x = td.VE(0.1, 5.0), normal(4, 2)
    d = td.GaussianMixture(normal(3, 2, seed=1), 0.2, None, S)
    ts = td.grid(S, 3)
    states = list(td.annealed_langevin(d, x, ts, 2, 0.01, generator()))
    assert [s.t for s in states] == [*ts[:-1].repeat_interleave(2).tolist(), 0.0]
    close(states[0].x0, d(x, ts[0]).x0), close(states[1].x0, d(states[0].x, ts[0]).x0)
    *_, before, last = states
    close(last.x, before.x + S.sigma(ts[-2]) ** 2 * d.score(before.x, ts[-2]), 1e-9)  # Tweedie
    noisy = list(td.annealed_langevin(d, x, ts, 2, 0.01, generator(), denoise=False))
    assert len(noisy) == 6 and torch.equal(noisy[-1].x, before.x)
    for given in (ts[:-1], ts.float()):  # the 0 at the end is no level
        close(td.final(td.annealed_langevin(d, x, given, 2, 0.01, generator())), last.x, 1e-5)
    one = list(td.annealed_langevin(d, x, ts[:1], 2, 0.01, generator()))
    assert [s.t for s in one] == [1.0, 1.0, 0.0]


def test_sample_takes_annealed_langevin():
    S = td.VE(0.1, 5.0)
    d = td.GaussianMixture(normal(3, 2), 0.2, None, S)
    options = {"steps_per_level": 2, "eps": 0.01}
    g = generator(7)
    x = td.final(td.annealed_langevin(d, 5 * torch.randn(6, 2, generator=g), td.grid(S, 3), generator=g, **options))
    assert torch.equal(x, td.sample(d, (6, 2), n=3, sampler=td.annealed_langevin, seed=7, **options))


MODES = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])


def start(n):
    return 16 * torch.rand(n, 2, generator=generator()) - 8


def upper_mass(x):
    return (x.sum(-1) > 0).float().mean(-1)


def anneal(n, eps, levels):
    """NCSN's toy: 0.8 / 0.2 at +-(5, 5), where level sigma is the standard deviation of the components, down to 1."""
    d = td.GaussianMixture(MODES, 0.0, [0.8, 0.2], td.VE(1.0, 20.0))
    ts = td.grid(d.schedule, levels)
    return td.final(td.annealed_langevin(d, start(n), ts, 100, eps, generator(1), denoise=False))


def test_annealing_weighs_the_modes_and_plain_langevin_does_not():
    """Song & Ermon 2019, figure 3, in three groups of chains with noise of their own. Sampling error of a mass: 0.009
    annealed, 0.016 plain.

    Twenty levels: with the ten of the paper's code 20,000 chains have 0.777, a bias of 0.023 that is no sampling error;
    with twenty 0.795.
    """
    m = td.GaussianMixture(MODES, 1.0, [0.8, 0.2], td.VE())
    plain = td.final(td.langevin(lambda x: m.score(x, 0.0), start(3000), [0.1] * 300, generator=generator(1)))
    assert (upper_mass(plain.reshape(3, 1000, 2)) - 0.5).abs().max() < 0.06  # measured 0.490 to 0.508
    x = anneal(6000, 0.1, 20)
    assert (upper_mass(x.reshape(3, 2000, 2)) - 0.8).abs().max() < 0.03  # measured 0.782 to 0.801
    within = (x - MODES[(x.sum(1) < 0).long()]).std()
    assert abs(within - (1 / (1 - 0.1 / 4)) ** 0.5) < 0.03  # 1.013 is settled; +-0.006; measured 1.009


def test_too_small_a_step_leaves_the_modes_wrong():
    """The margins above are not met by any step size: at a hundredth of it, on five levels, the mass is 0.54."""
    assert upper_mass(anneal(500, 0.001, 5)) < 0.65


# ---- NCSNv2's choices ----------------------------------------------------------------------------

# side of the image, sigma_1, levels, steps a level, the published step size; sigma_L = 0.01, three channels
PUBLISHED = {
    "CIFAR-10": (32, 50, 232, 5, 6.2e-6),
    "CelebA": (64, 90, 500, 5, 3.3e-6),
    "LSUN church": (96, 140, 788, 4, 4.9e-6),
    "LSUN bedroom, tower": (128, 190, 1086, 3, 1.8e-6),
    "FFHQ": (256, 348, 2311, 3, 0.9e-6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_levels_and_steps(name):
    side, first, levels, each, a = PUBLISHED[name]
    dim, gamma = 3 * side**2, (first / 0.01) ** (1 / (levels - 1))
    overlap = ncsn.ladder_overlap(dim, gamma)
    assert 0.566 < overlap < 0.567
    close(ncsn.ladder_ratio(dim, overlap), gamma, 1e-9)
    mine = ncsn.best_step(0.01, gamma, each)
    if name == "LSUN church":  # the one that the formula does not give: its r is not the least, 1.0247 against 1.0224
        assert mine == pytest.approx(2.31e-6, abs=0.01e-6)
        assert ncsn.langevin_ratio(a, 0.01, gamma, each) == pytest.approx(1.0247, abs=1e-4)
        assert ncsn.langevin_ratio(mine, 0.01, gamma, each) == pytest.approx(1.0224, abs=1e-4)
    else:
        assert abs(mine - a) < 0.051e-6  # two digits are published


def test_the_ratio_for_an_overlap_of_a_half():
    assert ncsn.ladder_ratio(32 * 32 * 3) == pytest.approx(1.0398, abs=1e-4)
    assert ncsn.ladder_ratio(64) == pytest.approx(1.361, abs=1e-3)
    assert ncsn.ladder_ratio(28 * 28) == pytest.approx(1.082, abs=1e-3)
    for dim, overlap in itertools.product((5, 64, 3072), (0.01, 0.5, 0.99)):
        assert ncsn.ladder_overlap(dim, ncsn.ladder_ratio(dim, overlap)) == pytest.approx(overlap, abs=1e-9)
    phi = torch.distributions.Normal(0, 1).cdf
    low, high = ((128**0.5 * 0.2 + sign * 3.6) for sign in (-1, 1))
    close(ncsn.ladder_overlap(64, 1.2), phi(torch.tensor(high)) - phi(torch.tensor(low)), 1e-6)


@pytest.mark.parametrize("sigma, gamma, each", [(0.01, 1.04, 5), (0.3, 2.0, 1), (1.0, 1.111, 100), (2.0, 1.001, 3)])
def test_best_step_against_all_steps(sigma, gamma, each):
    """The ratio by recursion of the variance, and its least value over a grid of step sizes."""
    best = ncsn.best_step(sigma, gamma, each)
    variance = (gamma * sigma) ** 2
    for _ in range(each):
        variance = (1 - best / sigma**2) ** 2 * variance + 2 * best
    close(variance / sigma**2, ncsn.langevin_ratio(best, sigma, gamma, each), 1e-9)
    every = (sigma**2 * torch.logspace(-5, math.log10(1.99), 20_001, dtype=F64)).tolist()
    least = min(abs(ncsn.langevin_ratio(a, sigma, gamma, each) - 1) for a in every)
    assert abs(ncsn.langevin_ratio(best, sigma, gamma, each) - 1) <= least * (1 + 1e-9)
    assert least > 0


def test_largest_distance():
    data = normal(30, 1, 4, 4)
    wanted = max(float((a - b).norm()) for a, b in itertools.combinations(data, 2))
    for chunk in (1, 7, 1000):
        close(ncsn.largest_distance(data, chunk), wanted, 1e-12)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, -0.1, math.nan, math.inf])
def test_step_sizes_that_are_none(eps):
    x, d = torch.zeros(2, 2), td.GaussianMixture(MODES, 1.0, None, td.VE())
    for run in (
        td.langevin(lambda x: -x, x, [0.1, eps]),
        td.mala(lambda x: -x.sum(1), x, torch.tensor([0.1, eps])),
        td.annealed_langevin(d, x, td.grid(td.VE(), 2), 1, eps),
    ):
        with pytest.raises(ValueError, match="a step size must be positive and finite; got "):
            td.final(run)


@pytest.mark.parametrize("S", [td.VP(), td.Flow(), td.DiscreteVP(td.linear_betas(10))], ids=lambda S: type(S).__name__)
def test_schedules_that_shrink_the_data(S):
    d = td.GaussianMixture(MODES, 1.0, None, S)
    with pytest.raises(ValueError, match="needs a schedule with alpha = 1, such as VE.* has alpha = .* at t = "):
        td.final(td.annealed_langevin(d, torch.zeros(2, 2), td.grid(S, 4)))


@pytest.mark.parametrize("ts", [[], [0.0], [0.2, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.0]], ids=str)
def test_levels_that_do_not_fall(ts):
    d = td.GaussianMixture(MODES, 1.0, None, td.VE())
    with pytest.raises(ValueError, match="ts must be at least two decreasing times"):
        td.final(td.annealed_langevin(d, torch.zeros(2, 2), torch.tensor(ts)))


def test_densities_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"a log-density must have shape \(2,\), a number for each x; got \(2, 1\)"):
        td.final(td.mala(lambda x: -x[:, :1], torch.zeros(2, 3), [0.1]))
    score = stochastic_score(lambda t: -t, lambda t, x: x - t, torch.zeros(5), 3)
    with pytest.raises(ValueError, match=r"a log-density must have shape \(2,\)"):
        score(torch.zeros(2, 1))


@pytest.mark.parametrize("batch_size", [0, 6])
def test_batches_that_cannot_be_drawn(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be from 1 to the 5 data; got {batch_size}"):
        conjugate(torch.zeros(5), batch_size)


def test_schedules_of_steps_that_do_not_exist():
    for bad in ((0.0, 1.0, 0.6, 5), (1.0, 0.0, 0.6, 5), (1.0, 1.0, 0.5, 5), (1.0, 1.0, 1.1, 5), (1.0, 1.0, 0.6, 0)):
        with pytest.raises(ValueError, match="needs a > 0, b > 0, gamma in .* and n >= 1; got a="):
            sgld_steps(*bad)
    for bad in ((1e-4, 1e-2, 0.55, 10), (1e-2, 0.0, 0.55, 10), (1e-2, 1e-4, 0.0, 10), (1e-2, 1e-4, 0.55, 1)):
        with pytest.raises(ValueError, match="needs first > last > 0, gamma > 0 and n >= 2; got first="):
            sgld_constants(*bad)


def test_levels_without_a_solution():
    for dim in (1, 2, 4):
        assert min(ncsn.ladder_overlap(dim, gamma) for gamma in (1.0, 1.1, 2.0, 10.0, 1e4)) > 0.997
        with pytest.raises(ValueError, match=f"no ratio has this overlap in {dim} dimensions"):
            ncsn.ladder_ratio(dim)
    for overlap in (0.0, 0.9974, 1.0, math.nan):
        with pytest.raises(ValueError, match="overlap must lie between 0 and 0.9973; got"):
            ncsn.ladder_ratio(64, overlap)
    for bad in ((0.0, 1.1, 5), (0.01, 1.0, 5), (0.01, 1.1, 0)):
        with pytest.raises(ValueError, match="needs sigma > 0, gamma > 1 and steps >= 1; got sigma="):
            ncsn.best_step(*bad)
    with pytest.raises(ValueError, match="data must have at least two rows"):
        ncsn.largest_distance(torch.zeros(1, 3))
