"""Training on the bound: the losses and the importance sampling of Improved DDPM, against the bound itself."""

import math
from functools import partial

import pytest
import torch
from test_likelihood import DIGIT, F64, SEEDS, SHORT, chain, close, column, gaussian, generator

import tinydiff as td
from tinydiff import hybrid, likelihood, losses, targets
from tinydiff.denoisers import interpolated_variance
from tinydiff.samplers import learned

# ---- training ------------------------------------------------------------------------------------


class Halves(torch.nn.Module):
    """A mean and a variance, each with weights of its own."""

    def __init__(self, dim=2):
        super().__init__()
        torch.manual_seed(0)
        part = lambda: torch.nn.Sequential(  # noqa: E731
            torch.nn.Linear(dim + 1, 16), torch.nn.SiLU(), torch.nn.Linear(16, dim)
        )
        self.mean, self.var = part(), part()

    def forward(self, x, noise_level, **cond):
        h = torch.cat([x, noise_level[:, None] / 1000], 1).float()
        return torch.cat([self.mean(h), self.var(h)], 1)


def learner(S=SHORT, target=targets.eps):
    return td.NetDenoiser(Halves(), S, target, var=interpolated_variance)


STEPS = torch.tensor([0.01, 0.01, 0.02, 0.3, 0.7, 1.0], dtype=F64)


def gradients(loss, d):
    d.net.zero_grad()
    loss.mean().backward()
    total = lambda part: sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None)  # noqa: E731
    return float(total(d.net.mean)), float(total(d.net.var))


@pytest.mark.parametrize("decoder", [likelihood.gaussian_log_likelihood, DIGIT], ids=["continuous", "digits"])
def test_the_gradient_of_the_bound_stops_at_the_mean(decoder):
    d, x0 = learner(), torch.randn(6, 2, generator=generator()).clamp(-1, 1)

    def loss(weight):
        return td.hybrid_loss(d, x0, STEPS, weight=weight, decoder=decoder, generator=generator(1))

    mean, var = gradients(loss(1.0) - loss(0.0), d)
    assert mean == 0 and var > 0
    simple, none = gradients(loss(0.0), d)
    assert simple > 0 and none == 0
    # without the stop, and at each step alone, both have one
    for t in STEPS:
        mean, var = gradients(hybrid.vlb_loss(d, x0, float(t), decoder=decoder), d)
        assert 0 < mean < math.inf and 0 < var < math.inf


@pytest.mark.parametrize("target", [targets.eps, targets.x0, targets.v])
def test_the_hybrid_loss_is_the_sum_of_its_parts(target):
    d, x0 = learner(target=target), torch.randn(6, 2, generator=generator(), dtype=F64)
    whole = td.hybrid_loss(d, x0, STEPS, generator=generator(1))
    simple = td.denoising_loss(d, x0, STEPS, generator=generator(1))
    vlb = hybrid.vlb_loss(d, x0, STEPS, generator=generator(1))
    close(whole, simple + 0.001 * vlb, 1e-10)
    term = td.vlb_term(d, x0, STEPS, STEPS - 0.01, var=learned, generator=generator(1))
    close(vlb[2:], 100 * term[2:], 1e-8)
    assert whole.shape == (6,)


def test_the_mean_of_the_loss_over_steps_is_the_bound():
    S = td.DiscreteVP(td.linear_betas(50))
    d, x0 = learner(S), torch.randn(4, 2, generator=generator(), dtype=F64)
    eps = torch.randn(4, 2, generator=generator(3), dtype=F64)
    each = [hybrid.vlb_loss(d, x0, k / 50, generator=generator(3)) for k in range(1, 51)]
    got = likelihood.bound(d, x0, chain(S), var=learned, eps=eps)
    close(torch.stack(each).mean(0), got.terms.sum(0), 1e-9)


def test_the_loss_decodes_with_the_decoder_it_is_given():
    d, x0, t = learner(), torch.tensor([[-1.0, 0.5], [0.125, 1.0]], dtype=F64), torch.tensor([0.01, 0.5], dtype=F64)
    by_level, by_density = (
        hybrid.vlb_loss(d, x0, t, decoder=decoder, generator=generator(1))
        for decoder in (DIGIT, likelihood.gaussian_log_likelihood)
    )
    term = td.vlb_term(d, x0, t, t - 0.01, var=learned, decoder=DIGIT, generator=generator(1))
    close(by_level, 100 * term, 1e-8)
    assert by_level[0] != by_density[0] and by_level[1] == by_density[1]


@pytest.mark.parametrize("S", [SHORT, td.Cosine()], ids=["chain", "continuous"])
def test_times_are_rounded_up_to_the_chain(S):
    d, x0 = learner(S), torch.randn(4, 2, generator=generator())
    loss = lambda t: td.hybrid_loss(d, x0, t, steps=100, generator=generator(1))  # noqa: E731
    on = torch.tensor([0.01, 0.3, 0.31, 1.0])
    for between in (on, on.double(), on - 0.0042, on - 0.0099):
        close(loss(on.double()), loss(between), 1e-6)
    assert not torch.allclose(loss(on.double()), loss(on - 0.0101 + 0.01 * (on < 0.02)), rtol=1e-3)


def test_the_hybrid_loss_trains_by_fit():
    data = torch.randn(512, 2, generator=generator()).clamp(-1, 1)
    for times in (losses.stratified_times, losses.step_times(100)):
        d = learner()
        before = {name: p.clone() for name, p in d.net.named_parameters()}
        steps = list(td.fit(d, data, steps=60, loss=td.hybrid_loss, lr=1e-2, times=times))
        assert steps[-1].denoiser.var is interpolated_variance
        first, last = (sum(s.loss for s in part) / 15 for part in (steps[:15], steps[-15:]))
        assert last < 0.9 * first
        moved = [name for name, p in d.net.named_parameters() if not torch.equal(p, before[name])]
        assert len(moved) == len(before)


def test_training_finds_the_variance():
    """For N(0, 1) data the large variance is right. With the exact mean, only the variance is left to learn."""
    S = td.DiscreteVP(td.linear_betas(20))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Parameter(torch.zeros(1, 1))

        def forward(self, x, noise_level):
            sigma = S.sigma(noise_level / 1000)[:, None]
            return torch.cat([sigma * x, self.out.expand(len(x), 1)], 1)

    d = td.NetDenoiser(Net(), S, targets.eps, var=interpolated_variance)
    data = torch.randn(4096, 1, generator=generator())
    loss = partial(td.hybrid_loss, weight=1.0)
    list(td.fit(d, data, steps=80, batch_size=512, lr=0.1, loss=loss, times=losses.step_times(20)))
    assert abs(float(d.net.out.detach()) - 1) < 0.1


# ---- importance sampling -------------------------------------------------------------------------


def filled(steps=20, seed=0, **options):
    by_size = hybrid.LossSecondMoment(steps, **options)
    values = torch.rand(steps, 10, generator=generator(seed), dtype=F64) * torch.linspace(5, 0.01, steps)[:, None]
    k = torch.arange(1, steps + 1, dtype=F64)
    for one in values.T:
        by_size.update(k / steps, one)
    return by_size, values


@SEEDS
def test_importance_sampling_is_unbiased(seed):
    by_size, values = filled(seed=seed)
    t = torch.arange(1, 21, dtype=F64) / 20
    size = values.square().mean(1).sqrt()
    close(by_size.p, 0.999 * size / size.sum() + 0.001 / 20, 1e-15)
    assert abs(by_size.p.sum() - 1) < 1e-15
    losses_ = values.mean(1)
    assert abs((by_size.p * by_size.weight(t) * losses_).sum() - losses_.mean()) < 1e-15
    # and by drawing: fewer than 4 standard errors off, which are less than a third of those of uniform times
    n = 20000
    drawn = by_size(n, generator(seed))
    terms = by_size.weight(drawn) * losses_[(drawn * 20).round().long() - 1]
    error = terms.std() / n**0.5
    assert abs(terms.mean() - losses_.mean()) < 4 * error
    assert terms.std() < losses_.std() / 3


def test_before_the_history_is_full_times_are_uniform():
    by_size = hybrid.LossSecondMoment(5)
    flat = torch.full((5,), 0.2, dtype=F64)
    t = torch.arange(1, 6, dtype=F64) / 5
    for _ in range(9):
        assert torch.equal(by_size.p, flat)
        by_size.update(t, torch.arange(5.0))
    by_size.update(t[:4], torch.arange(4.0))
    assert torch.equal(by_size.p, flat)  # all but one step have 10
    close(by_size.weight(t), 1.0, 1e-15)
    by_size.update(t[4:], torch.tensor([4.0]))
    close(by_size.p, 0.999 * torch.arange(5, dtype=F64) / 10 + 0.0002, 1e-15)
    assert by_size.p[0] > 0


def test_the_history_forgets():
    by_size = hybrid.LossSecondMoment(2, history=3, uniform=0.0)
    t = torch.tensor([0.5, 1.0])
    for value in (100.0, 1.0, 2.0, 2.0):
        by_size.update(t, torch.tensor([value, 3.0]))
    size = torch.tensor([3**0.5, 3.0], dtype=F64)  # of 1, 2, 2 and 3, 3, 3
    close(by_size.p, size / size.sum(), 1e-14)
    for _ in range(3):
        by_size.update(t, torch.zeros(2))
    close(by_size.p, 0.5, 1e-15)  # nothing to go by


@SEEDS
@pytest.mark.parametrize("steps", [7, 1000, 4000])
def test_drawn_times_are_steps_of_the_chain_in_their_shares(steps, seed):
    by_size, _ = filled(steps, seed)
    t = by_size(20000, generator=generator(seed))
    k = (t * steps).round().long()
    assert t.shape == (20000,) and k.min() >= 1 and k.max() <= steps
    close(t, k / torch.tensor(steps, dtype=F64), 1e-12)
    assert torch.equal(by_size.weight(t), (1 / (steps * by_size.p))[k - 1])
    assert torch.equal(t, by_size(20000, generator=generator(seed)))
    # 4 standard errors of the mean step
    every_k = torch.arange(1, steps + 1, dtype=F64)
    mean = (by_size.p * every_k).sum()
    std = ((by_size.p * every_k**2).sum() - mean**2).sqrt()
    assert abs(k.double().mean() - mean) < 4 * std / 20000**0.5


def test_importance_sampling_trains_by_fit():
    S = td.DiscreteVP(td.linear_betas(20))
    d, data = learner(S), torch.randn(512, 2, generator=generator()).clamp(-1, 1)
    by_size = hybrid.LossSecondMoment(20)
    steps = list(td.fit(d, data, steps=60, loss=by_size.weighted(hybrid.vlb_loss), times=by_size, lr=1e-2))
    assert (by_size.count >= 10).all() and by_size.p[0] > 0.06 > by_size.p[10]
    assert sum(s.loss for s in steps[-15:]) < sum(s.loss for s in steps[:15])


def test_the_weight_is_that_of_the_draw_and_the_history_has_none():
    by_size, values = filled()
    t, kept = torch.arange(1, 21, dtype=F64) / 20, by_size.p
    value = torch.linspace(1, 2, 20, dtype=F64)
    weighted = by_size.weighted(lambda d, x0, t: value)(gaussian(SHORT), torch.zeros(20, 1), t)
    close(weighted, value / (20 * kept), 1e-14)
    assert torch.equal(by_size.losses[:, 0], value) and torch.equal(by_size.losses[:, 1:], values[:, 1:])


# ---- errors --------------------------------------------------------------------------------------


def test_errors():
    x0, refused = column(0.0, 0.1), partial(pytest.raises, ValueError)
    plain = td.NetDenoiser(torch.nn.Sequential(), SHORT, targets.eps)
    plain.net.forward = lambda x, noise_level: x
    with refused(match="var=learned needs a denoiser that predicts a variance"):
        td.hybrid_loss(plain, x0, 0.5)
    with refused(match=r"steps must say how many steps the chain has, since Cosine\(max_logsnr=20.0\) does not"):
        td.hybrid_loss(learner(td.Cosine()), torch.zeros(2, 2), 0.5)
    for wrong in (dict(steps=0), dict(steps=5, history=0), dict(steps=5, uniform=1.5)):
        with refused(match="steps and history must be at least 1, uniform in"):
            hybrid.LossSecondMoment(**wrong)
