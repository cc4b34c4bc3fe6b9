"""NCSN and NCSNv2: the loss, how a network is told its level, inpainting, and the studies of notebook 05."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import tinydiff as td
from tinydiff import ncsn, targets
from tinydiff.recipes import study_ncsn, study_ncsn_toy

F64 = torch.float64


def close(a, b, tol=1e-12):
    a = torch.as_tensor(a, dtype=F64)
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=F64).expand_as(a), atol=tol, rtol=tol)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


class Affine(nn.Module):
    """A network with known answers: x times a number, plus what it was told."""

    def __init__(self, slope=0.3):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=F64))

    def forward(self, x, level):
        return self.slope * x + level.reshape(-1, *[1] * (x.ndim - 1))


# ---- the levels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first, levels", [(50.0, 232), (90.0, 500), (140.0, 788), (190.0, 1086), (348.0, 2311)])
def test_lengths_of_the_published_ladders(first, levels):
    """From their own ratio, also when it is off by a quarter of a level."""
    for off in (-0.25, 0.0, 0.25):
        assert ncsn.ladder_length(first, 0.01, (first / 0.01) ** (1 / (levels - 1 + off))) == levels
    S = td.VE(0.01, first)
    sigma = S.sigma(td.grid(S, levels)[:-1])
    close(sigma[[0, -1]], [first, 0.01], 1e-9)
    close(sigma[:-1] / sigma[1:], (first / 0.01) ** (1 / (levels - 1)), 1e-9)


def test_the_ladder_of_the_digits():
    """sigma_1 = 4.81 by technique 1, gamma = 1.361 by technique 2: 21 levels."""
    S, ts, each, a = study_ncsn.ladder(study_ncsn.WHOLE)
    train = study_ncsn.pixels()[0].flatten(1).double()
    square = (train**2).sum(1)
    furthest = (square[:, None] + square - 2 * train @ train.T).max().sqrt()
    assert S.sigma_max == pytest.approx(float(furthest), rel=1e-5) and S.sigma_min == 0.01
    assert (len(ts) - 1, each) == (21, 10)
    assert a == ncsn.best_step(0.01, (S.sigma_max / 0.01) ** (1 / 20), 10)


@pytest.mark.parametrize("bad", [(1.0, 1.0, 1.1), (0.01, 1.0, 1.1), (1.0, 0.0, 1.1), (1.0, 0.01, 1.0)])
def test_ladders_that_do_not_exist(bad):
    with pytest.raises(ValueError, match="needs first > last > 0 and gamma > 1; got first="):
        ncsn.ladder_length(*bad)


def test_levels_are_drawn_alike():
    ts = td.grid(td.VE(0.1, 5.0), 4)
    t = ncsn.level_times(ts)(40_000, generator())
    values, counts = t.unique(return_counts=True)
    close(values, ts[:-1].flip(0))  # the 0 at the end of a grid is no level
    assert (counts - 10_000).abs().max() < 5 * (40_000 * 3 / 16) ** 0.5
    assert torch.equal(t, ncsn.level_times(ts[:-1])(40_000, generator()))
    torch.manual_seed(3)
    one = ncsn.level_times(ts)(5, device="cpu")
    torch.manual_seed(3)
    assert torch.equal(one, ncsn.level_times(ts)(5))


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 0.3, 5.0])
def test_the_loss_is_the_papers(sigma):
    """1/2 |sigma s + z|^2, summed over dimensions, is dim / 2 times `denoising_loss` with the weight sigma^2."""
    S, x0 = td.VE(sigma, 10.0), normal(50, 3)
    d = td.NetDenoiser(Affine(), S, targets.score, c_noise=ncsn.untold)
    got = td.denoising_loss(d, x0, S.t_min, weight=ncsn.sigma_squared, generator=generator(1))
    z = torch.randn(50, 3, generator=generator(1), dtype=F64)
    close(3 / 2 * got, ((sigma * 0.3 * (x0 + sigma * z) + z) ** 2).sum(1) / 2, 1e-9)


def test_a_score_over_sigma_is_minus_eps():
    """Technique 3: net / sigma as the score is -net as eps: one row of the table of targets. Loss and belief agree."""
    S, x0 = td.VE(0.05, 10.0), normal(40, 2)
    t = ncsn.level_times(td.grid(S, 7))(40, generator())
    eps = td.NetDenoiser(Affine(-0.3), S, targets.eps, c_noise=ncsn.untold)

    def score(x, t):
        c = S(t, like=x)
        return td.decode(targets.score, c, x, 0.3 * x / c.sigma)

    over = td.denoiser(score, S)
    a, b = eps(x0, t), over(x0, t)
    close(a.x0.detach(), b.x0, 1e-9), close(a.eps.detach(), b.eps, 1e-9)
    one = td.denoising_loss(eps, x0, t, generator=generator(2))
    two = td.denoising_loss(over, x0, t, target=targets.score, weight=ncsn.sigma_squared, generator=generator(2))
    close(one.detach(), two, 1e-9)


def test_the_best_score_is_that_of_the_smoothed_data():
    """At the optimum sigma s + z is at right angles to every function of x; what is left is the floor of the loss.

    200,000 draws: each mean is within 5 standard errors, and a score that is 3 % too long is not.
    """
    n = 200_000
    for sigma in (0.2, 1.0):
        S = td.VE(sigma, 10.0)
        m = td.GaussianMixture(normal(3, 2), 0.3, [0.5, 0.3, 0.2], S)
        x0, z = m.sample(n, generator(1)), torch.randn(n, 2, generator=generator(2), dtype=F64)
        x = x0 + sigma * z
        score = m.score(x, S.t_min)

        def worst(factor, score=score, x=x, z=z, sigma=sigma):
            rest = sigma * factor * score + z
            products = torch.cat([rest * score, rest * x, rest * x.sin(), rest * x.flip(1) ** 2], 1)
            return (products.mean(0) / products.std(0) * n**0.5).abs().max()

        assert worst(1.0) < 5 < worst(1.03)
        loss = td.denoising_loss(
            m, x0, S.t_min, target=targets.score, weight=ncsn.sigma_squared, generator=generator(3)
        )
        floor = 1 - (sigma * score) ** 2
        spread = (loss.var() / n + floor.mean(1).var() / n) ** 0.5
        assert abs(loss.mean() - floor.mean()) < 5 * spread


# ---- how a network is told its level -------------------------------------------------------------


def test_untold_networks_see_x_alone():
    S, x = td.VE(0.1, 5.0), normal(4, 2)
    told = []

    class Spy(Affine):
        def forward(self, x, level):
            told.append(level)
            return super().forward(x, level)

    d = td.NetDenoiser(Spy(), S, targets.eps, c_noise=ncsn.untold)
    a, b = d(x, 0.2).eps, d(x, 0.9).eps
    close(torch.stack(told), 0.0)
    assert torch.equal(a, b) and told[0].shape == (4,)


def test_each_level_has_its_number_and_its_own_weights():
    S = td.VE(0.1, 5.0)
    ts = td.grid(S, 4)
    number = ncsn.level_number(ts)
    x = normal(6, 1, 8, 8)
    t = torch.cat([ts[:-1], ts[1:2] + 1e-3, ts[2:3] - 1e-3])
    assert number(S(t, like=x)).tolist() == [0, 1, 2, 3, 1, 2]
    torch.manual_seed(0)
    net = td.models.UNet(width=8, attention=(False, False), classes=4).double()
    for p in net.parameters():  # no layer at zero, as some begin
        nn.init.normal_(p, 0.0, 0.2)
    d = td.NetDenoiser(ncsn.ByLevel(net), S, targets.score, c_noise=number)
    before = d(x, t).eps
    with torch.no_grad():
        net.emb.label.weight[1] += 1.0
    changed = (d(x, t).eps - before).flatten(1).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, True, False, False, True, False]
    out, _ = d.output(x, S(t, like=x))
    for k in range(4):
        label = torch.full((6,), k)
        close(
            out[number(S(t, like=x)) == k].detach(),
            net(x, torch.zeros(6, dtype=F64), label)[number(S(t, like=x)) == k].detach(),
        )


# ---- inpainting ----------------------------------------------------------------------------------

MEANS = torch.tensor([[-0.6, -0.5], [0.5, 0.8], [0.5, -0.3]], dtype=F64)
WEIGHTS, WIDTH, KNOWN = [0.3, 0.5, 0.2], 0.5, 0.4


def fill_in(each, n=4000, eps=0.2, seed=1):
    d = td.GaussianMixture(MEANS, WIDTH, WEIGHTS, td.VE(0.1, 4.0))
    known = torch.tensor([KNOWN, 99.0], dtype=F64).expand(n, 2)  # what is not known must not matter
    x = 4 * normal(n, 2)
    run = td.annealed_langevin(
        d, x, td.grid(d.schedule, 12), each, eps * 0.01, generator(seed), known=known, mask=torch.tensor([1, 0])
    )
    return td.final(run)


def test_what_is_filled_in_follows_the_exact_conditional():
    """A mixture's conditional is a mixture: weights w_k N(known; m_k1), means m_k2. Three groups of chains.

    With 100 steps a level the means are 0.371 to 0.396 where 0.431 is due, and the standard deviations 0.735 to
    0.754 where 0.731 is;
    standard errors 0.019 and 0.013. With 2 steps a level the mean is 0.07 (and 0.19 if nothing is known).
    """
    r = (torch.tensor(WEIGHTS, dtype=F64).log() - (KNOWN - MEANS[:, 0]) ** 2 / (2 * WIDTH**2)).softmax(0)
    mean = (r * MEANS[:, 1]).sum()
    std = ((r * (MEANS[:, 1] ** 2 + WIDTH**2)).sum() - mean**2).sqrt()
    x, few = fill_in(100, 4500), fill_in(2, 1500)
    free = x[:, 1].reshape(3, 1500)
    assert (free.mean(1) - mean).abs().max() < 0.1 and (free.std(1) - std).abs().max() < 0.06
    assert few[:, 1].mean() < mean - 0.2
    for filled in (x, few):
        assert torch.equal(filled[:, 0], torch.full_like(filled[:, 0], KNOWN))


def test_the_known_part_is_noised_once_a_level():
    S, n, each = td.VE(0.1, 5.0), 5000, 3
    d = td.GaussianMixture(normal(3, 2), 0.2, None, S)
    known, mask = normal(n, 2, seed=5), torch.tensor([[False, True]])
    ts = td.grid(S, 4)
    states = list(td.annealed_langevin(d, normal(n, 2), ts, each, 0.001, generator(), known=known, mask=mask))
    noise = [s.x[:, 1] - known[:, 1] for s in states]
    for i, t in enumerate(ts[:-1]):
        level = noise[each * i : each * (i + 1)]
        assert all(torch.equal(level[0], other) for other in level)
        assert abs(level[0].std() / S.sigma(t) - 1) < 5 / (2 * n) ** 0.5
        if i:
            before = noise[each * i - 1]
            assert abs((level[0] * before).mean()) < 5 * level[0].std() * before.std() / n**0.5
    assert torch.equal(states[-1].x[:, 1], known[:, 1]) and states[-1].t == 0
    free = states[-1].x[:, 0] - states[-2].x[:, 0]
    close(free, (S.sigma(ts[-2]) ** 2 * d.score(states[-2].x, ts[-2]))[:, 0], 1e-9)  # Tweedie for the rest


def test_knowing_all_and_knowing_nothing():
    S, x = td.VE(0.1, 5.0), normal(4, 2)
    d = td.GaussianMixture(normal(3, 2), 0.2, None, S)
    run = partial(td.annealed_langevin, d, x, td.grid(S, 3), 2, 0.01)
    nothing = td.final(run(generator=generator(), known=x, mask=torch.zeros(2)))
    assert torch.equal(nothing, td.final(run(generator=generator())))
    known = normal(4, 2, seed=9)
    assert torch.equal(td.final(run(generator=generator(), known=known, mask=torch.ones(4, 2))), known)


def test_masks_that_do_not_fit():
    S, x = td.VE(), torch.zeros(4, 2)
    d = td.GaussianMixture(torch.zeros(1, 2), 1.0, None, S)
    run = partial(td.annealed_langevin, d, x, td.grid(S, 2), 1)
    for options in (dict(known=x), dict(mask=torch.ones(2))):
        with pytest.raises(ValueError, match="known and mask go together"):
            td.final(run(**options))
    for known, mask in ((x[:3], torch.ones(2)), (x, torch.ones(3)), (x, torch.ones(3, 2)), (x, torch.ones(1, 4, 2))):
        with pytest.raises(ValueError, match=r"known must have shape \(4, 2\), like x, and mask must broadcast to it"):
            td.final(run(known=known, mask=mask))


# ---- the studies of notebook 05 ------------------------------------------------------------------


@pytest.mark.parametrize("name", study_ncsn.SETS)
def test_a_run_of_the_study(name, monkeypatch):
    monkeypatch.setattr(study_ncsn, "CALLS", 21)
    monkeypatch.setattr(study_ncsn, "SAMPLES", 4)
    monkeypatch.setitem(study_ncsn.SETS, name, replace(study_ncsn.SETS[name], steps=2, width=8, batch_size=4))
    rows = study_ncsn.run(name, 3)
    assert rows[0]["set"] == name or name == "all five"
    for row in rows:
        assert row["seed"] == 3 and all(math.isfinite(row[k]) for k in ("energy_distance", "memorisation", "grain"))


@pytest.mark.parametrize("name", ["all five", "NCSN"])
def test_the_loss_of_the_study_counts_levels_alike(name):
    """It is the loss of eps at every level, whatever the target: for a network that is zero, the mean of z^2."""
    s = replace(study_ncsn.SETS[name], width=8)
    d, x0 = study_ncsn.denoiser(s), study_ncsn.pixels()[0][:64]
    for p in d.net.parameters():
        nn.init.zeros_(p)
    for t in study_ncsn.ladder(s)[1][[0, 5, 9]].tolist():
        torch.manual_seed(0)
        mean = study_ncsn.loss(d, x0, torch.full((64,), t)).mean().item()
        assert mean == pytest.approx(1.0, abs=5 * (2 / 4096) ** 0.5)


def test_the_measures_of_the_study():
    real = study_ncsn.pixels()[1]
    assert 0 <= real.min() and real.max() <= 1
    measured = study_ncsn.measure(real)
    assert measured["memorisation"] == 0.5 and abs(measured["energy_distance"]) < 0.05 and measured["grain"] == 0
    noisy = real + 0.1 * torch.randn(real.shape, generator=generator())
    assert study_ncsn.measure(noisy)["grain"] == pytest.approx(0.1, abs=0.01)


def test_the_stored_studies():
    digits, toy = td.load_results("05_ncsn"), td.load_results("05_ncsn_toy")
    assert {r["set"] for r in digits["rows"]} >= set(study_ncsn.SETS) | {"without 5", "raw", "averaged"}
    assert {r["seed"] for r in digits["rows"]} == set(study_ncsn.SEEDS) and len(digits["floor"]) == 20
    for name, s in study_ncsn.SETS.items():
        assert digits["ladders"][name]["a"] == pytest.approx(study_ncsn.ladder(s)[3])
    weights = {(r["scores"], r["sampler"], r["seed"]): r["weight"] for r in toy["rows"]}
    assert len(weights) == 12
    assert [r["levels"] for r in toy["ladders"]] == [10] * 4 + [20] * 4
    for r in toy["ladders"]:  # 0.774 to 0.782 with ten levels, 0.789 to 0.795 with twenty; a standard error is 0.003
        assert abs(r["weight"] - (0.778 if r["levels"] == 10 else 0.792)) < 0.009
    for (_, sampler, _), weight in weights.items():
        assert abs(weight - (0.8 if sampler == "annealed" else 0.5)) < (0.03 if sampler == "annealed" else 0.06)


def test_one_member_of_the_toy_again():
    """The exact scores of seed 1, as stored; 500 of the chains do not depend on the rest only in law: within 0.05."""
    s = study_ncsn_toy.Settings(seed=1, chains=500, levels=10, each=50)
    assert abs(study_ncsn_toy.weight(study_ncsn_toy.annealed(study_ncsn_toy.EXACT, s)) - 0.78) < 0.08
    assert abs(study_ncsn_toy.weight(study_ncsn_toy.plain(study_ncsn_toy.EXACT, s)) - 0.5) < 0.08
