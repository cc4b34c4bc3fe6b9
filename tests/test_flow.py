"""Flow matching: velocities, conversions, pairs by transport, reflow, straightness, distributions of the time."""

import itertools
import math

import pytest
import torch
from scipy import stats
from test_schedules import every

import tinydiff as td
from tinydiff import flow, targets
from tinydiff.losses import logit_normal_times, lognormal_times

F64 = torch.float64
MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)
FIVE = {"eps": targets.eps, "x0": targets.x0, "v": targets.v, "score": targets.score, "velocity": targets.velocity}


def mixture(S):
    return td.GaussianMixture(MEANS, torch.tensor([0.2, 0.3, 0.15], dtype=F64), [0.5, 0.3, 0.2], S)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), atol=tol, rtol=tol)


# ---- velocity and conversions --------------------------------------------------------------------


@every("linear", "VP", "SubVP", "Cosine", "Flow", "VE", "EDM")
def test_every_pair_of_targets_converts_and_closes(S):
    """The full table: from each of five targets to each other and back, to 1e-6 of the value's size."""
    x0, eps = normal(8, 3), normal(8, 3, seed=1)
    for t in (0.0705, 0.3005, 0.5005, 0.9005):
        c = S(t, like=x0)
        x = c.alpha * x0 + c.sigma * eps
        for a, b in itertools.product(FIVE.values(), repeat=2):
            first = td.encode(a, c, x0, eps)
            p = td.decode(a, c, x, first)
            second = td.encode(b, c, p.x0, p.eps)
            q = td.decode(b, c, x, second)
            gap = (td.encode(a, c, q.x0, q.eps) - first).abs().max() / first.abs().max()
            assert gap < 1e-6 and (second - td.encode(b, c, x0, eps)).abs().max() / second.abs().max() < 1e-6


def test_formulas_of_the_straight_path():
    """Facts of the literature, by hand: x0 = x - t v, eps = x + (1 - t) v, score = -(x + (1 - t) v) / t."""
    S, t = td.Flow(), 0.3
    x0, eps = normal(6, 2), normal(6, 2, seed=1)
    x, v = (1 - t) * x0 + t * eps, eps - x0
    p = td.decode(targets.velocity, S(t, like=x), x, v)
    close(p.x0, x - t * v), close(p.eps, x + (1 - t) * v), close(p.score(S(t, like=x)), -(x + (1 - t) * v) / t)
    close(p.velocity(S(t, like=x)), v)


def test_velocity_of_gaussian_data():
    """v = x (t - (1 - t) s^2) / ((1 - t)^2 s^2 + t^2) for data N(0, s^2)."""
    S, s, x = td.Flow(), 0.6, normal(5, 2)
    d = td.GaussianMixture(torch.zeros(1, 2, dtype=F64), s, None, S)
    for t in (0.1, 0.5, 0.9):
        want = x * (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
        close(d(x, t).velocity(S(t, like=x)), want, 1e-10)


def test_euler_in_t_is_ddim():
    """#18, step by step on an uneven grid."""
    S, x = td.Flow(), normal(6, 2)
    ts = torch.tensor([0.98, 0.7, 0.55, 0.1, 0.0], dtype=F64)
    for a, b in zip(td.probability_flow(mixture(S), x, ts), td.ddim(mixture(S), x, ts), strict=True):
        close(a.x, b.x, 1e-12)


def test_the_loss_of_conditional_flow_matching():
    """|net - (eps - x0)|^2 at x_t = (1 - t) x0 + t eps, with the noise that is given."""
    S, x0, eps, t = td.Flow(), normal(9, 2), normal(9, 2, seed=1), torch.linspace(0.1, 0.9, 9, dtype=F64)

    class Net(torch.nn.Module):
        def forward(self, x, noise_level):
            return x.sin() + noise_level[:, None] / 1000

    d = td.NetDenoiser(Net(), S, targets.velocity)
    x = (1 - t)[:, None] * x0 + t[:, None] * eps
    want = (x.sin() + t[:, None] - (eps - x0)).square().mean(1)
    close(td.denoising_loss(d, x0, t, eps=eps), want)
    # drawn, it is another noise each time; given, the generator is left alone
    g = seeded(3)
    before = g.get_state().clone()
    td.denoising_loss(d, x0, t, eps=eps, generator=g)
    assert torch.equal(g.get_state(), before)


# ---- pairs by transport --------------------------------------------------------------------------


def test_transport_is_the_best_of_all_orders():
    x0, eps = normal(6, 2), normal(6, 2, seed=1)
    best = min(itertools.permutations(range(6)), key=lambda o: (x0 - eps[list(o)]).square().sum().item())
    assert torch.equal(flow.paired_by_transport(x0, eps), eps[list(best)])


def test_transport_in_one_dimension_sorts():
    x0, eps = normal(200, 1), normal(200, 1, seed=1)
    paired = flow.paired_by_transport(x0, eps)
    order = x0[:, 0].argsort()
    assert torch.equal(paired[order, 0], eps[:, 0].sort().values)


def test_transport_of_images():
    x0, eps = normal(5, 1, 3, 3), normal(5, 1, 3, 3, seed=1)
    paired = flow.paired_by_transport(x0, eps)
    assert paired.shape == eps.shape and {tuple(v.flatten().tolist()) for v in paired} == {
        tuple(v.flatten().tolist()) for v in eps
    }


def test_the_transport_loss_uses_the_pairs():
    S, x0, t = td.Flow(), normal(20, 2), torch.full((20,), 0.4, dtype=F64)

    class Zero(torch.nn.Module):
        def forward(self, x, noise_level):
            return torch.zeros_like(x)

    d = td.NetDenoiser(Zero(), S, targets.velocity)
    eps = torch.randn(x0.shape, generator=seeded(2), dtype=F64)
    got = flow.transport_loss(d, x0, t, generator=seeded(2))
    close(got, (flow.paired_by_transport(x0, eps) - x0).square().mean(1))
    assert got.sum() < td.denoising_loss(d, x0, t, eps=eps).sum()


# ---- reflow and straightness ---------------------------------------------------------------------


def test_pairs_of_a_flow_are_its_two_ends():
    S, eps = td.Flow(), normal(10, 2)
    pairs = flow.reflow_pairs(mixture(S), eps, td.grid(S, 30))
    assert torch.equal(pairs["eps"], eps)
    close(pairs["x0"], td.final(td.euler(mixture(S), eps, td.grid(S, 30))))
    better = flow.reflow_pairs(mixture(S), eps, td.grid(S, 30), sampler=td.heun)["x0"]
    assert 0 < (better - pairs["x0"]).abs().max() < 1


def test_pairs_are_taken_by_fit():
    S = td.Flow()
    torch.manual_seed(0)
    d = td.NetDenoiser(td.models.MLP(dim=2, width=16, depth=2), S, targets.velocity)
    pairs = flow.reflow_pairs(mixture(S), normal(50, 2), td.grid(S, 4))
    seen = []

    def loss(d, x0, t, eps):
        seen.append((x0, eps))
        return td.denoising_loss(d, x0, t, eps=eps)

    for _ in td.fit(d, {k: v.float() for k, v in pairs.items()}, steps=2, batch_size=8, loss=loss):
        pass
    x0, eps = seen[0]
    row = (pairs["eps"].float()[:, None] == eps).all(2).nonzero()[:, 0]
    assert torch.equal(pairs["x0"].float()[row], x0[(pairs["eps"].float()[:, None] == eps).all(2).nonzero()[:, 1]])


def test_straightness_of_points_and_of_gaussians():
    """Point data: 0. N(0, s^2): the path is x_t = sd(t) z, so S = dim * int (1 - s - sd'(t))^2 dt."""
    S = td.Flow()
    eps = normal(20_000, 2)
    point = td.GaussianMixture(MEANS[:1], 0.0, None, S)
    assert flow.straightness(point, eps[:100], td.grid(S, 20)) < 1e-7
    s, t = 0.3, (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    slope = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2).sqrt()
    want = 2 * ((1 - s) - slope).square().mean().item()
    d = td.GaussianMixture(torch.zeros(1, 2, dtype=F64), s, None, S)
    got = flow.straightness(d, eps, td.grid(S, 400))
    assert got == pytest.approx(want, rel=0.05)  # 2 percent of chance in the squares, and steps of 1/400
    with pytest.raises(ValueError, match="ts must end in 0"):
        flow.straightness(d, eps, torch.tensor([1.0, 0.5]))


# ---- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_logit_normal_times(seed):
    t = logit_normal_times(-0.4, 0.8)(5000, generator=seeded(seed))
    assert stats.kstest(torch.logit(t).numpy(), stats.norm(-0.4, 0.8).cdf).pvalue > 1e-4
    assert ((t > 0) & (t < 1)).all() and t.dtype == F64
    assert stats.kstest(torch.logit(logit_normal_times()(5000, generator=seeded(seed))).numpy(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("S", [td.EDM(), td.VP()], ids=["EDM", "VP"])
def test_lognormal_times(S):
    t = lognormal_times(S)(5000, generator=seeded(1))
    level = -S.logsnr(t) / 2
    assert stats.kstest(level.numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-4


def test_the_shift_of_the_straight_path():
    """Esser et al. 2024, eq. 23: t' = k t / (1 + (k - 1) t), and logsnr falls by 2 log k."""
    base, k = td.Flow(), 3.0
    t = torch.linspace(0.05, 0.95, 11, dtype=F64)
    close(td.Shifted(base, k).sigma(t), k * t / (1 + (k - 1) * t), 1e-9)
    close(base.logsnr(t) - td.Shifted(base, k).logsnr(t), torch.full_like(t, 2 * math.log(k)), 1e-7)
