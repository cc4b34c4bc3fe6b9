"""Progressive distillation: what the student is asked for, its weights, and halving until one step is left."""

import math

import pytest
import torch

import tinydiff as td
from tinydiff import distill, targets
from tinydiff.losses import snr, step_times
from tinydiff.models import MLP

F64 = torch.float64
MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)


def mixture(S):
    return td.GaussianMixture(MEANS, torch.tensor([0.2, 0.3, 0.15], dtype=F64), [0.5, 0.3, 0.2], S)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("S", [td.Cosine(), td.VP(), td.Flow()], ids=lambda S: type(S).__name__)
@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_student_that_hits_its_target_lands_where_the_teacher_does(S, n):
    """A step of a student whose x0 is the target, at every t = i / n, ends where two steps of DDIM do."""
    teacher, x = mixture(S), normal(6, 2)
    for i in range(1, n + 1):
        t, s = i / n, (i - 1) / n
        target = td.progressive_target(teacher, x, t, s)
        if i == 1:
            half = td.final(td.ddim(teacher, x, torch.tensor([t, t / 2], dtype=F64)))
            assert torch.allclose(target, teacher(half, t / 2).x0, atol=1e-12)
        two = td.final(td.ddim(teacher, x, torch.tensor([t, (t + s) / 2, s], dtype=F64)))
        c = S(t, like=x)
        student = td.denoiser(lambda x, t, x0=target, c=c: td.Prediction(x0, (x - c.alpha * x0) / c.sigma), S)
        assert torch.allclose(td.final(td.ddim(student, x, torch.tensor([t, s], dtype=F64))), two, atol=1e-9)


def test_times_may_differ_in_a_batch():
    S, x = td.Cosine(), normal(4, 2)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=F64)
    all_at_once = td.progressive_target(mixture(S), x, t, t - 0.25)
    for i in range(4):
        one = td.progressive_target(mixture(S), x[i : i + 1], float(t[i]), float(t[i]) - 0.25)
        assert torch.allclose(all_at_once[i], one[0], atol=1e-12)


def test_the_loss_is_zero_for_the_student_that_is_asked_for_and_only_then():
    S, x0, eps = td.Cosine(), normal(64, 2), normal(64, 2, seed=1)
    teacher, n = mixture(S), 4
    t = step_times(n)(64, generator=torch.Generator().manual_seed(2))
    c = S(t, like=x0)

    def right(x, t):
        target = td.progressive_target(teacher, x, t, (t - 1 / n).clamp(min=0))
        return td.Prediction(target, (x - c.alpha * target) / c.sigma)

    loss = td.progressive_loss(teacher, n)
    assert loss(td.denoiser(right, S), x0, t, eps=eps).max() < 1e-20
    undistilled = loss(teacher, x0, t, eps=eps)
    assert undistilled.min() > 0 and undistilled.mean() > 1e-3
    # by hand
    x = c.alpha * x0 + c.sigma * eps
    gap = (td.progressive_target(teacher, x, t, (t - 1 / n).clamp(min=0)) - teacher(x, t).x0) ** 2
    due = (snr(c).clamp(min=1) * gap).mean(1)
    assert torch.allclose(undistilled, due, rtol=1e-10)
    with_other = td.progressive_loss(teacher, n, distill.snr_plus_one)(teacher, x0, t, eps=eps)
    assert torch.allclose(with_other, ((snr(c) + 1) * gap).mean(1), rtol=1e-10)


def test_the_last_step_goes_to_the_data():
    """k / n - 1 / n is not exactly k - 1 / n: what is meant as 0 must be 0, and not the t_min of a schedule that jumps.

    Found: equal to 2e-7; through t_min it is off by 0.04.
    """
    S, x0, eps = td.VE(0.1, 10.0), normal(8, 2), normal(8, 2, seed=1)
    for n in (3, 7, 49):
        t = torch.full((8,), 1 / n, dtype=torch.float32)  # in float64 a little more than 1 / n, or less
        x = x0 + S.sigma(t.double())[:, None] * eps
        due = (td.progressive_target(mixture(S), x, t, 0.0) - mixture(S)(x, t).x0).square()
        weight = distill.truncated_snr(S(t, like=x))
        found = td.progressive_loss(mixture(S), n)(mixture(S), x0, t, eps=eps)
        assert torch.allclose(found, (weight * due).mean(1), rtol=1e-4, atol=0)


def test_weights():
    S = td.Cosine()
    c = S(torch.tensor([0.1, 0.5, 0.9], dtype=F64), like=torch.zeros(3, 1, dtype=F64))
    one, x0, eps = distill.snr_plus_one(c), normal(3, 1), normal(3, 1, seed=1)
    assert torch.allclose(distill.truncated_snr(c).flatten()[[1, 2]], torch.ones(2, dtype=F64))
    assert distill.truncated_snr(c)[0] == snr(c)[0] > 1
    # SNR + 1 on x0 is an even weight on v
    wrong = x0 + 0.1
    noise = (c.alpha * x0 + c.sigma * eps - c.alpha * wrong) / c.sigma
    v = td.encode(targets.v, c, x0, eps) - td.encode(targets.v, c, wrong, noise)
    assert torch.allclose(one * (x0 - wrong) ** 2, v**2)
    # max(SNR, 1) is the larger of both errors
    assert torch.allclose(
        distill.truncated_snr(c) * (x0 - wrong) ** 2, torch.maximum((x0 - wrong) ** 2, (eps - noise) ** 2)
    )


def test_halvings_on_gaussian_data_reach_the_ideal_student():
    """Where all is linear, so is the ideal student of each round: x0 = k(t) x. Four rounds of targets, no training."""
    S, std, n = td.Cosine(math.inf), 0.6, 16  # so that a grid's first time is 1
    gain = {i / n: None for i in range(1, n + 1)}

    def of(gains):
        def fn(x, t):
            k = torch.tensor([gains[round(float(v) * n) / n] for v in t], dtype=F64)[:, None]
            c = S(t, like=x)
            return td.Prediction(k * x, (x - c.alpha * k * x) / c.sigma)

        return td.denoiser(fn, S)

    exact = td.GaussianMixture(torch.zeros(1, 1, dtype=F64), std, None, S)
    x = torch.ones(1, 1, dtype=F64)
    gain = {t: exact(x, t).x0.item() for t in gain}
    teacher, due = of(gain), td.final(td.ddim(of(gain), x, td.grid(S, n))).item()
    steps = n // 2
    while steps >= 1:
        new = {
            i / steps: td.progressive_target(teacher, x, i / steps, (i - 1) / steps).item() for i in range(1, steps + 1)
        }
        teacher = of(new)
        assert td.final(td.ddim(teacher, x, td.grid(S, steps))).item() == pytest.approx(due, rel=1e-9)
        steps //= 2
    assert due == pytest.approx(std, rel=0.1)  # 16 steps of DDIM: 0.55, on the way from N(0, 1) to 0.6


def test_a_round_of_training_learns_its_target():
    """One halving, 4 steps to 2, on data that the teacher knows exactly: the student's error falls by far."""
    S = td.Cosine()
    torch.manual_seed(0)
    data = mixture(S).sample(2000, torch.Generator().manual_seed(0)).float()
    net = MLP(dim=2, width=64, depth=3)
    for step in td.fit(td.NetDenoiser(net, S, targets.v), data, steps=300, lr=3e-3, batch_size=256):  # noqa: B007
        pass
    teacher = step.denoiser
    student = distill.student_of(teacher)
    assert all(torch.equal(p, q) for p, q in zip(student.net.parameters(), teacher.net.parameters(), strict=True))
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(3))
    due = td.final(td.ddim(teacher, x, td.grid(S, 4)))
    before = (td.final(td.ddim(student, x, td.grid(S, 2))) - due).square().mean().sqrt()
    options = dict(steps=300, lr=1e-3, batch_size=256, times=step_times(2), lr_schedule=distill.to_zero)
    for _ in td.fit(student, data, loss=td.progressive_loss(teacher, 2), **options):
        pass
    after = (td.final(td.ddim(student, x, td.grid(S, 2))) - due).square().mean().sqrt()
    assert after < 0.5 * before


def test_guidance_goes_into_one_network():
    """Stage one: the student is asked for what the guided teacher believes, told the same scale."""
    S, x0, eps = td.Cosine(), normal(8, 2), normal(8, 2, seed=1)
    narrow = td.GaussianMixture(MEANS[:1], torch.tensor([0.2], dtype=F64), None, S)
    w, t = torch.linspace(0, 3, 8, dtype=F64), torch.linspace(0.1, 0.9, 8, dtype=F64)

    def teacher(w):
        def fn(x, t):
            c, k = S(t, like=x), w[:, None]
            x0 = mixture(S)(x, t).x0 + k * (narrow(x, t).x0 - mixture(S)(x, t).x0)
            return td.Prediction(x0, (x - c.alpha * x0) / c.sigma)

        return td.denoiser(fn, S)

    told = []

    def student(x, t, w):
        told.append(w)
        return teacher(w)(x, t)

    loss = distill.match_loss(teacher)
    assert loss(td.denoiser(student, S), x0, t, eps=eps, w=w).max() < 1e-24 and torch.equal(told[0], w)
    plain = td.denoiser(lambda x, t, w: mixture(S)(x, t), S)
    off = loss(plain, x0, t, eps=eps, w=w)
    assert off[0] < 1e-24 and off[1:].min() > 0  # the scale 0 is no guidance


def test_the_rate_falls_to_zero():
    assert [distill.to_zero(k, 4) for k in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_bad_steps_are_named():
    with pytest.raises(ValueError, match="n must be at least 1 step; got 0"):
        td.progressive_loss(mixture(td.Cosine()), 0)


@pytest.mark.parametrize("first", [0, 1, 6, 48])
def test_steps_that_cannot_be_halved_to_one_are_named(first):
    with pytest.raises(ValueError, match=f"first must be a power of two, at least 2; got {first}"):
        next(distill.halved(td.NetDenoiser(MLP(dim=2), td.Cosine(), targets.v), normal(8, 2).float(), first))
