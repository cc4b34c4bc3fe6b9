"""Consistency models: the boundary, the schedules, the pairs, and every loss at the true consistency function."""

import copy
import math

import pytest
import torch

import tinydiff as td
from tinydiff import consistency, targets
from tinydiff.denoisers import c_in_edm, c_noise_edm
from tinydiff.losses import lognormal_times, uniform_times
from tinydiff.models import MLP
from tinydiff.samplers import heun_step

F64 = torch.float64
MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)
S = td.EDM()


def mixture(schedule=S):
    return td.GaussianMixture(MEANS, torch.tensor([0.2, 0.3, 0.15], dtype=F64), [0.5, 0.3, 0.2], schedule)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def net(seed=0):
    torch.manual_seed(seed)
    made = MLP(dim=2, width=16, depth=2).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made


class Truth:
    """The consistency function of the mixture, by the exact ODE."""

    schedule = S

    def __call__(self, x, t, **cond):
        t = torch.as_tensor(t, dtype=F64).expand(len(x))
        rows = [td.ode.flow_map(mixture(), x[i : i + 1], float(t[i]), S.t_min, tol=1e-7) for i in range(len(x))]
        x0 = torch.cat(rows)
        return td.Prediction(x0, (x - x0) / S(t, like=x).sigma)


# ---- the boundary --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [td.EDM(), td.EDM(0.01, 20.0), td.VE(0.02, 30.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_at_the_boundary_it_is_the_identity_for_any_weights(schedule, dtype):
    for seed in range(3):
        f = td.ConsistencyDenoiser(net(seed).to(dtype), schedule)
        x = 50 * normal(7, 2, seed=seed).to(dtype)
        assert torch.equal(f(x, schedule.t_min).x0, x)
        assert not torch.equal(f(x, 0.5).x0, x)


def test_the_coefficients_are_those_of_the_paper():
    """Song et al. 2023, appendix C, by their letters."""
    made, x, sd, least = net(), normal(5, 2), 0.5, 0.002
    f = td.ConsistencyDenoiser(made, S)
    t = torch.linspace(0.05, 1, 5, dtype=F64)
    time = S.sigma(t)[:, None]
    c_skip, c_out = sd**2 / ((time - least) ** 2 + sd**2), sd * (time - least) / (sd**2 + time**2).sqrt()
    with torch.no_grad():
        F = made(x / (time**2 + sd**2).sqrt(), time.flatten().log() / 4)
        assert torch.allclose(f(x, t).x0, c_skip * x + c_out * F, atol=1e-12)
        p = f(x, t)
    assert torch.allclose(p.x0 + time * p.eps, x, atol=1e-12)


def test_a_diffusion_model_starts_it():
    """Far above sigma_min, Karras' denoiser with the same network says the same: ECT begins there."""
    made, x = net(), normal(5, 2)
    d = td.NetDenoiser(made, S, targets.edm(0.5), c_in_edm(0.5), c_noise_edm)
    with torch.no_grad():
        for t in (0.5, 0.8, 1.0):
            assert torch.allclose(td.ConsistencyDenoiser(made, S)(x, t).x0, d(x, t).x0, rtol=0.02, atol=0.02)


def test_a_network_of_another_shape_is_refused():
    class Narrow(torch.nn.Module):
        def forward(self, x, t):
            return x[:, :2]

    with pytest.raises(ValueError, match=r"net must return a tensor of shape \(4, 3\)"):
        td.ConsistencyDenoiser(Narrow(), S)(torch.randn(4, 3), 0.5)


# ---- schedules -----------------------------------------------------------------------------------


def test_levels_of_consistency_training():
    """By the published formula: s0 = 2 and s1 = 150 go from 2 to 151 (CIFAR-10), s1 = 200 to 201 (ImageNet)."""
    assert consistency.ct_levels(0) == 2 and consistency.ct_levels(1) == 151
    assert consistency.ct_levels(1, last=200) == 201
    K = 800_000
    for k in (1, 1000, 123_456, 400_000, 799_999):
        due = math.ceil(math.sqrt(k / K * ((150 + 1) ** 2 - 2**2) + 2**2) - 1) + 1
        assert consistency.ct_levels(k / K) == due
    grown = [consistency.ct_levels(k / 100) for k in range(101)]
    assert grown == sorted(grown) and consistency.ct_levels(0.5) == 107


def test_decay_of_the_target():
    assert consistency.ct_decay(0) == pytest.approx(0.9)
    assert consistency.ct_decay(1) == pytest.approx(math.exp(2 * math.log(0.9) / 151))
    rising = [consistency.ct_decay(k / 50) for k in range(51)]
    assert rising == sorted(rising) and rising[-1] < 1


def test_levels_of_improved_training():
    """s0 = 10 doubles in eight even parts to 1,280, each plus one."""
    assert [consistency.ict_levels((k + 0.5) / 8) for k in range(8)] == [10 * 2**k + 1 for k in range(8)]
    assert consistency.ict_levels(0) == 11 and consistency.ict_levels(1) == 1281
    K, s0, s1 = 400_000, 10, 1280
    part = K // (int(math.log2(s1 // s0)) + 1)
    for k in (0, part - 1, part, 3 * part + 5, K - 1):
        assert consistency.ict_levels(k / K) == min(s0 * 2 ** (k // part), s1) + 1


# ---- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [S, td.Cosine()], ids=repr)
def test_no_number_of_levels_goes_past_the_last_by_a_rounding(schedule):
    t = torch.tensor([0.5, 1.0])
    for n in (*range(2, 160), 161, 321, 641, 1281):
        later, earlier = consistency.neighbours(n)(schedule, t, 0.0)
        assert (later <= schedule.t_max).all() and (earlier >= schedule.t_min).all(), n


@pytest.mark.parametrize("n", [2, 18, 151])
def test_neighbours_are_two_of_karras_levels(n):
    levels = td.grid(S, n)[:-1].flip(0)  # from sigma_min up
    rho = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), n, dtype=F64) ** 7
    assert torch.allclose(S.sigma(levels), rho, rtol=1e-9)
    t, s = consistency.neighbours(n)(S, uniform_times(5000, torch.Generator().manual_seed(0)), 0.0)
    which = (t[:, None] - levels[None]).abs().argmin(1)
    assert torch.allclose(t, levels[which], atol=1e-9) and torch.allclose(s, levels[which - 1], atol=1e-9)
    assert set(which.tolist()) == set(range(1, n)) and (t <= 1).all() and (s >= S.t_min).all()
    if n == 18:  # each as likely as another: 17 cells of 294, four standard errors
        assert (torch.bincount(which, minlength=18)[1:] - 5000 / 17).abs().max() < 4 * math.sqrt(5000 / 17)


def test_lognormal_pairs_have_the_published_chances():
    """Song & Dhariwal 2023: p_i is erf((ln s_{i+1} - P) / (sqrt 2 Q)) - erf((ln s_i - P) / (sqrt 2 Q)), P -1.1, Q 2."""
    n, draws = 11, 40_000
    times = lognormal_times(S, -1.1, 2.0)(draws, torch.Generator().manual_seed(0))
    t, _ = consistency.neighbours(n)(S, times, 0.0)
    levels = td.grid(S, n)[:-1].flip(0)
    found = torch.bincount((t[:, None] - levels[None]).abs().argmin(1), minlength=n)[1:] / draws
    z = (S.sigma(levels).log() + 1.1) / (math.sqrt(2) * 2)
    p = z.erf().diff()
    assert (found - p / p.sum()).abs().max() < 0.012  # 4 standard errors, and tails of half a percent go to the ends


def test_levels_may_grow_with_training():
    t = torch.full((3,), 0.9)
    few, many = (consistency.neighbours(consistency.ct_levels)(S, t, done) for done in (0.0, 1.0))
    assert few[1][0] == pytest.approx(S.t_min, abs=1e-12) and few[0][0] == pytest.approx(1)
    assert (many[0] - many[1])[0] == pytest.approx((1 - S.t_min) / 150)


def test_ect_goes_from_denoising_to_consistency():
    """By the paper's formula in sigma, with q = 2, k = 8, b = 1; s = 0 where r is below the least level."""
    t = torch.linspace(0.1, 1, 19, dtype=F64)
    level, ratios = S.sigma(t), []
    for a in range(8):
        same, s = consistency.ect_pairs()(S, t, (a + 0.5) / 8)
        r = (level * (1 - 2.0 ** -(a + 1) * (1 + 8 / (1 + level.exp())))).clamp(min=0)
        due = torch.where(r <= 0.002, 0.0, r)
        assert torch.equal(same, t) and torch.allclose(S.sigma(s), due, rtol=1e-5, atol=1e-9)
        ratios.append((S.sigma(s) / level).mean().item())
    assert ratios == sorted(ratios) and ratios[-1] > 0.98
    assert (consistency.ect_pairs(q=256.0, stages=1)(S, t, 0.0)[1] > 0).double().mean() > 0.9


# ---- distances -----------------------------------------------------------------------------------


def test_pseudo_huber_is_of_the_whole_vector():
    x, y = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    c = 0.00054 * math.sqrt(8)
    due = ((x - y).flatten(1).norm(dim=1) ** 2 + c**2).sqrt() - c
    assert torch.allclose(consistency.pseudo_huber()(x, y), due)
    assert consistency.pseudo_huber()(x, x).max() == 0
    near, far = torch.full((1, 1), 1e-3), torch.full((1, 1), 1e3)
    huber = consistency.pseudo_huber(1.0)
    assert huber(near, 0 * near).item() == pytest.approx(0.5e-6, rel=0.1)  # x^2 / 2c, and float32
    assert huber(far, 0 * far).item() == pytest.approx(999, rel=1e-5)
    assert torch.allclose(consistency.squared(x, y), ((x - y) ** 2).flatten(1).mean(1))


# ---- the loss ------------------------------------------------------------------------------------


def drawn(n=4):
    x0 = mixture().sample(n, torch.Generator().manual_seed(3)).double()
    return x0, normal(n, 2, seed=4), uniform_times(n, torch.Generator().manual_seed(5)).double()


def test_distillation_from_an_exact_teacher_holds_at_the_true_function():
    """With more levels Heun's step nears the path, so the loss of the truth falls as the 6th power of their number."""
    x0, eps, t = drawn()
    found = [
        td.consistency_loss(consistency.neighbours(n), teacher=mixture())(Truth(), x0, t, eps=eps).mean().item()
        for n in (10, 80)
    ]
    assert found[0] > 20_000 * found[1]  # 8^6 = 260,000; with Euler's steps 8^4 = 4,000
    wrong = td.consistency_loss(consistency.neighbours(80), teacher=mixture())(mixture(), x0, t, eps=eps).mean()
    assert wrong > 100 * found[1]  # a denoiser is not constant along a path


def test_x_s_is_where_it_should_be():
    """In distillation a step of Heun's, in training the same noise: seen by a function that returns its input."""
    x0, eps, t = drawn()
    seen = []

    def spy(x, t):
        seen.append((x, t))
        return td.Prediction(x, x)

    d = td.denoiser(spy, S)
    td.consistency_loss(consistency.neighbours(10))(d, x0, t, eps=eps)
    td.consistency_loss(consistency.neighbours(10), teacher=mixture())(d, x0, t, eps=eps)
    (x_t, t1), (x_s, s1), (y_t, _), (y_s, _) = seen
    assert torch.allclose(x_t, x0 + S.sigma(t1)[:, None] * eps) and torch.equal(x_t, y_t)
    assert torch.allclose(x_s, x0 + S.sigma(s1)[:, None] * eps)
    assert torch.allclose(y_s, heun_step(mixture(), x_t, t1, s1))
    one = td.final(td.heun(mixture(), x_t[:1], torch.stack([t1[0], s1[0]])))
    assert torch.allclose(y_s[:1], one)


def test_the_target_has_no_gradient():
    """The loss's gradient is that of a fixed target: not of both sides."""
    x0, eps, t = drawn()
    f = td.ConsistencyDenoiser(net(), S)
    td.consistency_loss(consistency.neighbours(10))(f, x0, t, eps=eps).mean().backward()
    got = [p.grad.clone() for p in f.net.parameters()]
    f.net.zero_grad()
    tt, s = consistency.neighbours(10)(S, t, 0.0)
    with torch.no_grad():
        fixed = f(x0 + S.sigma(s)[:, None] * eps, s).x0
    consistency.squared(f(x0 + S.sigma(tt)[:, None] * eps, tt).x0, fixed).mean().backward()
    assert all(torch.allclose(a, p.grad) for a, p in zip(got, f.net.parameters(), strict=True))


def test_an_average_gives_the_target():
    x0, eps, t = drawn()
    f = td.ConsistencyDenoiser(net(), S)
    loss = td.consistency_loss(consistency.neighbours(10), decay=0.75)
    first = loss(f, x0, t, eps=eps)
    assert torch.allclose(first, td.consistency_loss(consistency.neighbours(10))(f, x0, t, eps=eps))  # a copy as yet
    old = [p.clone() for p in f.net.parameters()]
    with torch.no_grad():
        for p in f.net.parameters():
            p.add_(0.1)
    second = loss(f, x0, t, eps=eps)
    slow = copy.deepcopy(f)
    with torch.no_grad():
        for p, was in zip(slow.net.parameters(), old, strict=True):
            p.copy_(was + 0.25 * 0.1)
        tt, s = consistency.neighbours(10)(S, t, 0.0)
        due = consistency.squared(f(x0 + S.sigma(tt)[:, None] * eps, tt).x0, slow(x0 + S.sigma(s)[:, None] * eps, s).x0)
    assert torch.allclose(second, due)


def test_ect_is_asked_for_the_data_at_first():
    """At the first stage small levels have s = 0, where the target is x0 itself: the denoiser's loss."""
    x0, eps, _ = drawn()
    t = torch.full((4,), 0.3, dtype=F64)
    f = td.ConsistencyDenoiser(net(), S)
    with torch.no_grad():
        loss = td.consistency_loss(consistency.ect_pairs(), weight=consistency.inverse_gap)(f, x0, t, eps=eps)
        level = S.sigma(t)
        due = consistency.squared(f(x0 + level[:, None] * eps, t).x0, x0) / level
    assert torch.allclose(loss, due)


def test_by_one_over_sigma_an_error_of_v_counts_alike_at_all_noise():
    """A network whose v is off by 0.1 everywhere: |gap of x0| / sigma_t is 0.1 wherever it is asked."""
    S, x0 = td.Cosine(), torch.zeros(5, 3, dtype=torch.float64)
    t = torch.linspace(0.1, 0.95, 5, dtype=torch.float64)
    ct, cs = S(t, like=x0), S(t / 2, like=x0)
    off = ct.sigma * 0.1 * torch.ones_like(x0)  # x0 = alpha x - sigma v
    length = off.norm(dim=1)
    weighted = consistency.inverse_sigma(ct, cs).reshape(-1) * length
    assert (
        torch.allclose(weighted, torch.full((5,), 0.1 * 3**0.5, dtype=torch.float64))
        and length.max() > 4 * length.min()
    )


def test_both_passes_see_the_same_dropout():
    class Dropped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.seen = torch.nn.Dropout(0.5), []

        def forward(self, x, t):
            self.seen.append(self.drop(torch.ones_like(x)))
            return x * self.seen[-1]

    made = Dropped()
    x0, eps, t = drawn()
    td.consistency_loss(consistency.neighbours(10))(td.ConsistencyDenoiser(made, S), x0, t, eps=eps)
    assert torch.equal(*made.seen) and set(made.seen[0].unique().tolist()) == {0.0, 2.0}


def test_fit_tells_how_far_it_is():
    seen = []

    def loss(d, x0, t, done):
        seen.append(done)
        return d(x0, t).x0.square().mean(1)

    made = MLP(dim=2, width=8, depth=1)
    for _ in td.fit(td.NetDenoiser(made, td.Cosine(), targets.v), torch.randn(20, 2), steps=4, batch_size=5, loss=loss):
        pass
    assert seen == [0.0, 0.25, 0.5, 0.75]


# ---- the continuous limit ------------------------------------------------------------------------


def trig(seed=0):
    return td.NetDenoiser(net(seed), td.Cosine(), targets.v, c_noise=lambda c: c.t)


@pytest.mark.parametrize("taught", [False, True])
def test_the_tangent_is_the_derivative_along_the_path(taught):
    """cos(a) df/da by central differences along dx/da, for the network as it stands, against the forward mode."""
    d, teacher = trig(), mixture(td.Cosine())
    x0, eps = normal(6, 2), normal(6, 2, seed=1)
    t = torch.linspace(0.15, 0.85, 6, dtype=F64)
    c = td.Cosine()(t, like=x0)
    x = c.alpha * x0 + c.sigma * eps

    out, g = consistency.tangent(d, x0, eps, t, teacher if taught else None)
    p = teacher(x, t) if taught else td.Prediction(x0, eps)
    dx = td.encode(targets.v, c, p.x0, p.eps)
    assert torch.allclose(dx * math.pi / 2, p.velocity(c))  # the ODE's own speed, in t
    h = 1e-6
    with torch.no_grad():
        ahead, behind = (d(x + k * h * dx, t + k * h * 2 / math.pi).x0 for k in (1, -1))
    assert torch.allclose(g, c.alpha * (ahead - behind) / (2 * h), atol=1e-6)
    assert torch.allclose(out, d.output(x, c)[0]) and out.requires_grad and not g.requires_grad


def test_the_tangent_of_the_truth_is_zero():
    """Gaussian data of standard deviation 1 stay where they are: f = x at every angle a, that is F = -tan(a / 2) x."""

    class Truth(torch.nn.Module):
        def forward(self, x, t):
            return -torch.tan(math.pi / 4 * t)[:, None] * x

    d = td.NetDenoiser(Truth(), td.Cosine(), targets.v, c_noise=lambda c: c.t)
    still = td.GaussianMixture(torch.zeros(1, 2, dtype=F64), 1.0, None, td.Cosine())  # whose velocity is 0
    x0, eps, t = normal(6, 2), normal(6, 2, seed=1), torch.linspace(0.1, 0.9, 6, dtype=F64)
    c = td.Cosine()(t, like=x0)
    x = c.alpha * x0 + c.sigma * eps
    assert torch.allclose(d(x, t).x0, x, atol=1e-12)
    _, g = consistency.tangent(d, x0, eps, t, still)
    assert g.abs().max() < 1e-12
    assert consistency.tangent(d, x0, eps, t)[1].abs().max() > 0.1  # along one pair's path it is not


def test_the_gradient_of_the_continuous_loss_is_the_tangent():
    d, x0, eps = trig(), normal(5, 2), normal(5, 2, seed=1)
    t = torch.linspace(0.2, 0.8, 5, dtype=F64)
    loss = td.tangent_loss(warmup=0, norm=0.1)
    value = loss(d, x0, t, eps=eps)
    value.sum().backward()
    got = [p.grad.clone() for p in d.net.parameters()]
    d.net.zero_grad()
    out, g = consistency.tangent(d, x0, eps, t)
    size = g.square().mean(1, keepdim=True).sqrt()
    assert torch.allclose(value, ((g / (size + 0.1)) ** 2).mean(1))
    (-2 * g / (size + 0.1) * out).mean(1).sum().backward()
    assert all(torch.allclose(a, p.grad) for a, p in zip(got, d.net.parameters(), strict=True))


def test_the_hard_part_comes_in_slowly():
    """r is 0 at first: then g has no derivative of the network in it."""
    d, x0, eps, t = trig(), normal(5, 2), normal(5, 2, seed=1), torch.linspace(0.2, 0.8, 5, dtype=F64)
    c = td.Cosine()(t, like=x0)
    out, g = consistency.tangent(d, x0, eps, t, r=0.0)
    assert torch.allclose(g, -(c.alpha**2) * (out.detach() - (c.alpha * eps - c.sigma * x0)))
    at = {
        done: td.tangent_loss(warmup=0.5)(d, x0, t, done=done, eps=eps).mean().item() for done in (0.0, 0.25, 0.5, 1.0)
    }
    assert at[0.5] == at[1.0] and at[0.0] != at[0.25] != at[0.5]


# ---- editing -------------------------------------------------------------------------------------


def test_what_is_known_stays():
    """Inpainting and super-resolution: the projection of every answer is the reference's, the rest is the model's."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    blocks = lambda v: torch.nn.functional.avg_pool2d(v, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)  # noqa: E731
    made = td.denoiser(lambda x, t: td.Prediction(0.3 * x, 0.7 * x / S(t, like=x).sigma), S)
    for keep in (lambda v: v * mask, blocks):
        d = consistency.replaced(made, reference, keep)
        for state in td.consistency_multistep(d, x, td.grid(S, 3), generator=torch.Generator().manual_seed(2)):
            assert torch.allclose(keep(state.x0), keep(reference), atol=1e-5)
        p, plain = d(x, 0.5), made(x, 0.5)
        assert torch.allclose(p.x0 - keep(p.x0), plain.x0 - keep(plain.x0), atol=1e-5)
        assert torch.allclose(p.x0 + S.sigma(0.5) * p.eps, x, atol=1e-4)


def test_it_trains_and_goes_on_and_is_read_again(tmp_path):
    """Consistency training through `fit`: bit for bit the same after a stop, and the file rebuilds the function."""

    def run(steps=6, **options):
        torch.manual_seed(1)
        f = td.ConsistencyDenoiser(MLP(dim=2, width=16, depth=1), S, 0.6)
        loss = td.consistency_loss(consistency.neighbours(consistency.ct_levels), consistency.pseudo_huber())
        data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        return td.fit(f, data, steps=steps, batch_size=8, loss=loss, times=uniform_times, seed=3, **options)

    whole = [step for step in run()][-1]
    path = tmp_path / "f.safetensors"
    for step in run(checkpoint=path, every=2):
        if step.number == 4:
            break
    again = [step for step in run(checkpoint=path, every=2, resume=True)][-1]
    assert again.number == 6
    for p, q in zip(whole.denoiser.net.parameters(), again.denoiser.net.parameters(), strict=True):
        assert torch.equal(p, q)
    read = td.load_checkpoint(path)
    assert isinstance(read, td.ConsistencyDenoiser) and read.sigma_data == 0.6
    x = torch.randn(4, 2)
    assert torch.equal(read(x, 0.5).x0, again.denoiser(x, 0.5).x0)


@pytest.mark.parametrize(("schedule", "most"), [(S, 0.1), (td.Cosine(), 0.015)], ids=["EDM", "Cosine"])
def test_each_pair_of_distillation_is_on_one_path(schedule, most):
    """All 17 pairs of 18 levels, against the exact flow of a mixture, in units of the noise or of the data. Found over
    three seeds: at most 0.029 and 0.0037. On the cosine path sigma / alpha falls from 22,026 to 11 in the first step,
    and a mean of slopes over that is 9 off."""
    d, x0, eps = (
        mixture(schedule),
        mixture(schedule).sample(60, torch.Generator().manual_seed(1)),
        normal(60, 2, seed=3),
    )
    levels = torch.linspace(schedule.t_min, schedule.t_max, 18, dtype=F64)
    for t in levels[1:]:
        later, earlier = consistency.neighbours(18)(schedule, t.repeat(60), 0.0)
        c = schedule(later, like=x0)
        x = c.alpha * x0 + c.sigma * eps
        due = td.ode.flow_map(d, x, float(later[0]), float(earlier[0]), tol=1e-8)
        far = (heun_step(d, x, later, earlier) - due).square().sum(1).mean().sqrt().item()
        assert far < most * max(1, schedule(earlier, like=x0).sigma.max().item()), float(t)
