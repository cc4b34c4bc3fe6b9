"""Wrappers: the denoiser that comes out is a denoiser, and its belief agrees with x."""

import pytest
import torch

import tinydiff as td

F64 = torch.float64


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture
def d():
    return td.GaussianMixture(torch.tensor([[-1.0, 2.0], [1.5, 0.0]], dtype=F64), 0.3, None, td.VP())


def test_bind_fixes_the_conditions(d):
    x, y = normal(3, 2), torch.tensor([0, 1, 2])
    bound = td.bind(d, y=y)
    assert bound.schedule is d.schedule and isinstance(bound, td.Denoiser)
    for t in (0.2, torch.tensor([0.1, 0.5, 0.9])):
        close(bound(x, t).x0, d(x, t, y=y).x0, 0), close(bound(x, t).eps, d(x, t, y=y).eps, 0)
    with pytest.raises(ValueError, match="y given twice"):
        bound(x, 0.2, y=y)
    for others in (normal(2, 2), normal(4, 2)):
        with pytest.raises(ValueError, match=f"y must have a row for each of the {len(others)} samples.*got 3"):
            bound(others, 0.2)


def test_cfg_goes_within():
    """It asks for both branches at once, so what is fixed to a batch goes around it, not into it."""
    gm = td.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64), 0.3, None, td.VP())
    x, y, null = normal(3, 2), torch.tensor([0, 1, 1]), torch.full((3,), 2)
    pair = dict(cond=dict(y=y), null=dict(y=null))
    log_prob = lambda x, t: gm.log_class(x, t, y)  # noqa: E731
    for within, kind in (
        (td.bind(gm, y=y), "bind"),
        (td.cfg(gm, 2.0, **pair), "cfg"),
        (td.counted(td.bind(gm, y=y)), "bind"),
        (td.interval(gm, td.bind(gm, y=y), 0.3, 3.0), "bind"),
        (td.autoguide(gm, td.thresholded(td.bind(gm, y=y), td.static()), 2.0), "bind"),
    ):
        with pytest.raises(ValueError, match=f"must not be fixed to a batch, by {kind}"):
            td.cfg(within, 2.0, **pair)
    around = td.classifier(td.cfg(gm, 2.0, **pair), log_prob, 0.5)  # adds to what cfg does: 1 + 1 + 0.5
    close(around(x, 0.4).eps, td.cfg(gm, 2.5, **pair)(x, 0.4).eps, 1e-10)
    with pytest.raises(RuntimeError) as caught:  # it may go within if it has no labels of its own
        td.cfg(td.classifier(gm, lambda x, t: -((x - x.new_zeros(3, 2)) ** 2).sum(1)), 2.0, **pair)(x, 0.4)
    assert "of 6 samples: is it for the labels of this batch" in caught.value.__notes__[0]
    free = td.interval(td.thresholded(gm, td.dynamic()), td.bind(gm), 0.3, 3.0)
    td.cfg(td.counted(free), 2.0, **pair)(x, 0.4)
    for wrong in (dict(cond=dict(y=y[:2]), null=dict(y=null)), dict(cond=dict(y=y), null=dict(y=null[:2]))):
        with pytest.raises(ValueError, match="y must have a row for each of the 3 samples of this batch; got 2"):
            td.cfg(gm, 2.0, **wrong)(x, 0.4)


def test_bind_passes_other_conditions_on():
    def fn(x, t, a, b):
        return td.Prediction(a * x, b * x)

    p = td.bind(td.denoiser(fn, td.VP()), a=2.0)(normal(1, 2), 0.5, b=3.0)
    close(p.x0, 2 * normal(1, 2)), close(p.eps, 3 * normal(1, 2))


def test_a_bound_denoiser_is_sampled_from_its_class(d):
    y = torch.tensor([0] * 50 + [1] * 50)
    x = td.sample(td.bind(d, y=y), (100, 2), n=20, seed=0)
    assert torch.equal(torch.cdist(x.double(), d.means).argmin(1), y)


def test_static_clips():
    x = torch.tensor([-3.0, -1.0, 0.2, 1.0, 7.0])
    assert td.static()(x).tolist() == pytest.approx([-1, -1, 0.2, 1, 1])
    assert td.static(0.0, 5.0)(x).tolist() == pytest.approx([0, 0, 0.2, 1, 5])


@pytest.mark.parametrize("S", [td.VP(), td.EDM(), td.Flow()], ids=["VP", "EDM", "Flow"])
def test_thresholded_keeps_x0_in_range_and_eps_in_agreement(S):
    d = td.GaussianMixture(torch.tensor([[-1.0, 2.0], [1.5, 0.0]], dtype=F64), 0.3, None, S)
    cut = td.thresholded(d, td.static())
    assert cut.schedule is S and isinstance(cut, td.Denoiser)
    x, t = 3 * normal(6, 2), torch.linspace(0.05, 1, 6, dtype=F64)
    p, q, c = d(x, t), cut(x, t), S(t, like=x)
    close(q.x0, p.x0.clamp(-1, 1)), close(c.alpha * q.x0 + c.sigma * q.eps, x, 1e-10)
    assert (p.x0.abs() > 1).any() and not torch.allclose(p.eps, q.eps)
    wide = td.thresholded(d, td.static(-100.0, 100.0))
    close(wide(x, t).x0, p.x0, 0), close(wide(x, t).eps, p.eps, 0)


def test_wrappers_compose_and_keep_the_variance(d):
    var = lambda ct, cs: ct.sigma  # noqa: E731
    inner = td.denoiser(lambda x, t, y: td.Prediction(d(x, t, y).x0, d(x, t, y).eps, var), d.schedule)
    x, y = normal(2, 2), torch.tensor([0, 1])
    for outer in (
        td.thresholded(td.bind(inner, y=y), td.static()),
        td.bind(td.thresholded(inner, td.static()), y=y),
    ):
        p = outer(x, 0.3)
        close(p.x0, d(x, 0.3, y).x0.clamp(-1, 1))
        assert p.var is var and outer.schedule is d.schedule


def test_ddpm_clips_x0_at_every_step(d):
    """The official sampler, by hand, on two steps with no noise."""
    x, ts = normal(4, 2), torch.tensor([0.8, 0.4, 0.0], dtype=F64)
    none = lambda p, ct, cs: torch.zeros_like(ct.sigma)  # noqa: E731
    mine = td.final(td.ancestral(td.thresholded(d, td.static()), x, ts, var=none))
    q = td.posterior(d.schedule(0.8, like=x), d.schedule(0.4, like=x))
    between = q.a_x0 * d(x, 0.8).x0.clamp(-1, 1) + q.a_x * x
    close(mine, d(between, 0.4).x0.clamp(-1, 1))


# ---- classifier-free guidance --------------------------------------------------------------------

TWO = dict(y=torch.tensor([0, 1, 0])), dict(y=torch.full((3,), 2))  # conditions, and none


def believed(d, x, t):
    return d(x, t, **TWO[0]), d(x, t, **TWO[1])


@pytest.mark.parametrize("w", [0, 0.5, 1, 3.0, torch.tensor([0.5, 1.0, 4.0])])
@pytest.mark.parametrize("t", [0.3, torch.tensor([0.1, 0.5, 0.9], dtype=F64)], ids=["one t", "each its own"])
def test_cfg_is_u_plus_w_times_c_minus_u(d, w, t):
    x = normal(3, 2)
    (c, u), p = believed(d, x, t), td.cfg(d, w, *TWO)(x, t)
    each = w[:, None] if isinstance(w, torch.Tensor) else w
    close(p.x0, u.x0 + each * (c.x0 - u.x0)), close(p.eps, u.eps + each * (c.eps - u.eps))
    coefs = d.schedule(t, like=x)
    close(coefs.alpha * p.x0 + coefs.sigma * p.eps, x)


def test_cfg_agrees_with_the_convention_of_ho_and_salimans(d):
    """(1 + w) eps_c - w eps_u, whose w = 0 is the conditional model."""
    x, w = normal(3, 2), 0.3
    c, u = believed(d, x, 0.4)
    close(td.cfg(d, 1 + w, *TWO)(x, 0.4).eps, (1 + w) * c.eps - w * u.eps)


@pytest.mark.parametrize("w", [0.5, 1.0, 3.0])
def test_cfg_is_guidance_by_the_classifier_that_the_pair_implies(d, w):
    """grad log p_t(y | x) = score_c - score_u, by autograd of the mixture's own posterior."""
    x = normal(3, 2)
    by_hand = td.classifier(td.bind(d, **TWO[1]), lambda x, t: d.log_class(x, t, TWO[0]["y"]), w)
    for t in (0.05, 0.4, 0.95):
        p, q = td.cfg(d, w, *TWO)(x, t), by_hand(x, t)
        close(p.eps, q.eps, 1e-10), close(p.x0, q.x0, 1e-10)


@pytest.mark.parametrize("w, rows", [(0, 3), (1, 3), (1.0, 3), (2, 6), (0.5, 6)])
def test_cfg_asks_once_and_for_no_more_than_counts(d, w, rows):
    count = td.counted(d)
    td.cfg(count, w, *TWO)(normal(3, 2), 0.5)
    assert (count.calls, count.rows) == (1, rows)


def test_cfg_puts_the_condition_first_and_passes_others_on():
    seen = {}

    def fn(x, t, y, size):
        seen.update(y=y, size=size, t=t)
        return td.Prediction(x, x)

    guided = td.cfg(td.denoiser(fn, td.VP()), 2.0, *TWO)
    guided(normal(3, 2), 0.5, size=torch.tensor([7, 8, 9]))
    assert seen["y"].tolist() == [0, 1, 0, 2, 2, 2] and seen["size"].tolist() == [7, 8, 9] * 2
    assert seen["t"].tolist() == [0.5] * 6


def test_a_negative_condition_is_a_null_that_is_not_wanted(d):
    x, y = normal(3, 2), TWO[0]["y"]
    p = td.cfg(d, 1.5, dict(y=y), dict(y=1 - y))(x, 0.4)
    yes, no = d(x, 0.4, y=y), d(x, 0.4, y=1 - y)
    close(p.x0, 1.5 * yes.x0 - 0.5 * no.x0)


def test_the_variance_of_a_guided_belief_is_the_conditional_one(d):
    v = lambda y: 0.1 + y.to(F64)[:, None]  # noqa: E731
    inner = td.denoiser(
        lambda x, t, y: td.Prediction(d(x, t, y).x0, d(x, t, y).eps, lambda ct, cs: v(y) * ct.sigma * cs.sigma),
        d.schedule,
    )
    x = normal(3, 2)
    ct, cs = d.schedule(0.5, like=x), d.schedule(0.4, like=x)
    for w in (1, 2.5):
        close(td.cfg(inner, w, *TWO)(x, 0.5).var(ct, cs), v(TWO[0]["y"]) * ct.sigma * cs.sigma)
    td.final(td.ancestral(td.cfg(inner, 2.5, *TWO), x, td.grid(d.schedule, n=3), var=td.samplers.learned))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: td.cfg(d, 2.0, dict(y=torch.tensor([0])), dict(z=torch.tensor([0]))), "must name the same cond"),
        (lambda d: td.cfg(d, 2.0, {}, {}), "must name the same conditions"),
        (lambda d: td.cfg(d, torch.ones(2), *TWO)(normal(3, 2), 0.5), r"w must be one number or \(3,\)"),
        (lambda d: td.cfg(td.bind(d, **TWO[0]), 2.0, *TWO)(normal(3, 2), 0.5), "fixed to a batch, by bind"),
        (lambda d: td.cfg(td.cfg(d, 2.0, *TWO), 2.0, *TWO)(normal(3, 2), 0.5), "fixed to a batch, by cfg"),
        (lambda d: td.autoguide(d, twin(d, td.Cosine()), 2.0), "one schedule"),
        (lambda d: td.interval(d, twin(d, td.Cosine()), 0.1, 1.0), "one schedule"),
        (lambda d: td.interval(d, d, 1.0, 0.5), "0 <= low < high"),
        (lambda d: td.interval(d, d, 0.5, 1.0)(normal(2, 2), torch.tensor([0.01, 0.2])), "both sides"),
        (lambda d: td.guidance.rescaled(1.5), r"phi must lie in \[0, 1\]"),
        (lambda d: td.dynamic(0.0), r"share must lie in \(0, 1\]"),
    ],
)
def test_what_makes_no_sense_is_named(d, make, message):
    with pytest.raises(ValueError, match=message):
        make(d)


def twin(d, schedule=None, std=0.5):
    return td.GaussianMixture(d.means, std, None, schedule or d.schedule)


# ---- other guides --------------------------------------------------------------------------------


def test_autoguidance_goes_away_from_the_bad_model(d):
    x, y, bad = normal(3, 2), TWO[0]["y"], twin(d)
    good = d(x, 0.4, y=y)
    for guided in (
        td.autoguide(td.bind(d, y=y), td.bind(bad, y=y), 2.5),
        td.bind(td.autoguide(d, bad, 2.5), y=y),
    ):
        p, q = guided(x, 0.4), bad(x, 0.4, y=y)
        close(p.x0, q.x0 + 2.5 * (good.x0 - q.x0)), close(p.eps, q.eps + 2.5 * (good.eps - q.eps))
    close(td.autoguide(d, bad, 1.0)(x, 0.4, y=y).x0, good.x0), close(td.autoguide(d, bad, 0.0)(x, 0.4, y=y).x0, q.x0)


def test_guidance_in_an_interval_of_noise_levels():
    S = td.EDM()
    d = twin(td.GaussianMixture(torch.tensor([[-1.0, 2.0], [1.5, 0.0]], dtype=F64), 0.3, None, S))
    count, x = td.counted(d), normal(3, 2)
    guided, plain = td.cfg(count, 3.0, *TWO), td.bind(count, **TWO[0])
    part = td.interval(guided, plain, 0.3, 5.0)
    assert part.schedule is S
    for level, inside in ((0.1, False), (0.29, False), (0.31, True), (4.9, True), (5.1, False), (80.0, False)):
        t = S.time(-2 * torch.tensor(level, dtype=F64).log()).item()
        close(part(x, t).x0, (guided if inside else plain)(x, t).x0, 0)
    ts = td.grid(S, n=20)
    sampled = lambda d: td.final(td.ddim(d, 80 * x, ts))  # noqa: E731
    close(sampled(td.interval(guided, plain, 0.0, 1e9)), sampled(guided), 0)
    close(sampled(td.interval(guided, plain, 1e8, 1e9)), sampled(plain), 0)
    count.rows = 0
    sampled(part)
    levels = [S(t, like=x).sigma[0].item() for t in ts[:-1].tolist()]
    assert count.rows == 3 * (20 + sum(0.3 <= level <= 5.0 for level in levels))


def test_rescaled_keeps_the_standard_deviation_of_the_conditional_belief(d):
    wide = td.denoiser(
        lambda x, t, y: td.Prediction(x * (1 + y[:, None].to(F64)), td.VP()(t, like=x).alpha * (x - 1)), td.VP()
    )
    x, coefs = normal(3, 6), td.VP()(0.4, like=normal(3, 6))
    v = lambda p: td.targets.encode(td.targets.v, coefs, p.x0, p.eps)  # noqa: E731
    plain, c = td.cfg(wide, 3.0, *TWO)(x, 0.4), wide(x, 0.4, **TWO[0])
    close(td.cfg(wide, 3.0, *TWO, td.guidance.rescaled(0.0))(x, 0.4).x0, plain.x0, 1e-10)
    full = td.cfg(wide, 3.0, *TWO, td.guidance.rescaled(1.0))(x, 0.4)
    close(v(full).std(1), v(c).std(1), 1e-10)
    close(coefs.alpha * full.x0 + coefs.sigma * full.eps, coefs.alpha * plain.x0 + coefs.sigma * plain.eps, 1e-10)
    utils = pytest.importorskip("diffusers.guiders.guider_utils")
    for phi in (0.3, 0.7):
        p = td.cfg(wide, 3.0, *TWO, td.guidance.rescaled(phi))(x, 0.4)
        close(v(p), utils.rescale_noise_cfg(v(plain), v(c), phi), 1e-10)


def test_dynamic_threshold_by_hand_and_as_diffusers():
    x = 2 * normal(4, 3, 5, 5)
    x[3] /= 10  # nothing of it is out of range
    out = td.dynamic(0.9)(x)
    for one, of in zip(x, out, strict=True):
        s = max(1.0, torch.quantile(one.abs().flatten(), 0.9).item())
        close(of, one.clamp(-s, s) / s)
    close(out[3], x[3], 0)
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)
    close(out, theirs._threshold_sample(x), 1e-6)


# ---- CFG++ ---------------------------------------------------------------------------------------


def test_cfg_plus_plus_renoises_with_the_unconditional_noise(d):
    x, rule = normal(3, 2), td.guidance.cfg_plus_plus
    c, u = believed(d, x, 0.5)
    p = td.cfg(d, 0.6, *TWO, rule)(x, 0.5)
    close(p.x0, u.x0 + 0.6 * (c.x0 - u.x0)), close(p.eps, u.eps, 0)
    assert not p.paired and not td.bind(td.cfg(d, 0.6, *TWO, rule)).paired and td.cfg(d, 0.6, *TWO).paired
    ts = td.grid(d.schedule, n=10)
    none = td.final(td.ddim(td.cfg(d, 0.0, *TWO, rule), x, ts))
    close(none, td.final(td.ddim(td.bind(d, **TWO[1]), x, ts)))


@pytest.mark.parametrize("n", [5, 40])
def test_cfg_plus_plus_is_cfg_with_a_scale_that_depends_on_the_step(d, n):
    """w_t = lambda r / (r - 1), r = sqrt(abar_s (1 - abar_t)) / sqrt(abar_t (1 - abar_s)): derived from one step."""
    x, lam, ts = normal(3, 2), 0.6, td.grid(d.schedule, n=n)
    plus = [s.x for s in td.ddim(td.cfg(d, lam, *TWO, td.guidance.cfg_plus_plus), x, ts)]
    for (t, s), reached in zip(td.pairs(ts), plus, strict=True):
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        up, down = (cs.alpha * ct.sigma)[0].item(), (ct.alpha * cs.sigma)[0].item()
        x = td.final(td.ddim(td.cfg(d, lam * up / (up - down), *TWO), x, torch.tensor([t, s], dtype=F64)))
        close(x, reached, 1e-10)


def test_what_cannot_work_with_cfg_plus_plus_says_so(d):
    plus, x, ts = td.cfg(d, 0.6, *TWO, td.guidance.cfg_plus_plus), normal(3, 2), td.grid(d.schedule, n=4)
    for steps in (td.ancestral, td.dpmpp_2m, td.heun, td.reverse_sde):
        with pytest.raises(ValueError, match=f"needs the sampler ddim.*got {steps.__name__}"):
            td.final(steps(plus, x, ts))
        plain = td.bind(d, **TWO[1])
        for outer in (td.bind(plus), td.interval(plain, plus, 0.1, 1.0), td.autoguide(plain, plus, 2.0)):
            with pytest.raises(ValueError, match="needs the sampler ddim"):
                td.final(steps(outer, x, ts))
    for outer in (td.thresholded(plus, td.static()), td.classifier(plus, lambda x, t: x.sum(1))):
        with pytest.raises(ValueError, match="two beliefs"):
            td.final(td.ddim(outer, x, ts))


# ---- ADM's shift of the ancestral mean -----------------------------------------------------------


def test_the_ancestral_mean_is_shifted_by_the_variance_times_the_gradient(d):
    """Dhariwal and Nichol 2021, Algorithm 1, by hand: the gradient at x_t, and none in the last step."""
    x, ts, y = normal(3, 2), torch.tensor([0.8, 0.4, 0.0], dtype=F64), TWO[0]["y"]
    asked = []

    def shift(x, t):
        asked.append((x, t))
        return 2.0 * td.guidance.gradient(lambda x, t: d.log_class(x, t, y), x, t)

    for var in (td.samplers.small, td.samplers.large):
        g = lambda: torch.Generator().manual_seed(0)  # noqa: E731
        states = list(td.guided_ancestral(d, x, ts, shift, var=var, generator=g()))
        ct, cs = d.schedule(0.8, like=x), d.schedule(0.4, like=x)
        q, v = td.posterior(ct, cs), var(d(x, 0.8), ct, cs)
        close(asked[0][0], x, 0), close(asked[0][1], 0.8, 0)
        score = d.score(x, 0.8, y) - d.score(x, 0.8)
        noise = torch.randn(x.shape, generator=g(), dtype=F64)
        close(states[0].x, q.a_x0 * d(x, 0.8).x0 + q.a_x * x + v * 2 * score + v.sqrt() * noise, 1e-10)
        close(states[1].x, d(states[0].x, 0.4).x0)
        assert len(asked) == 1 and not asked.clear()


def test_shifting_the_mean_and_guiding_the_belief_agree_in_short_steps(d):
    """Algorithms 1 and 2 of ADM: the two shifts of the mean differ by a factor that goes to 1 with the step."""
    x, y = normal(3, 2), TWO[0]["y"]
    log_prob = lambda x, t: d.log_class(x, t, y)  # noqa: E731
    none = lambda p, ct, cs: td.posterior(ct, cs).var * 0  # noqa: E731
    factors = []
    for step in (0.1, 0.01, 0.001):
        ts = torch.tensor([0.5, 0.5 - step], dtype=F64)
        mean = lambda d: td.final(td.ancestral(d, x, ts, var=none))  # noqa: E731, B023
        ct, cs = d.schedule(ts[0].item(), like=x), d.schedule(ts[1].item(), like=x)
        shift = td.posterior(ct, cs).var * td.guidance.gradient(log_prob, x, 0.5)
        factors += [((mean(td.classifier(d, log_prob)) - mean(d)) / shift).mean().item() - 1]
    assert abs(factors[2]) < 0.01 and abs(factors[0]) > 5 * abs(factors[1]) > 25 * abs(factors[2])


# ---- composition ---------------------------------------------------------------------------------


def test_guides_compose_in_the_orders_that_make_sense(d):
    x, t = 3 * normal(3, 2), 0.5
    guided, cut = td.cfg(d, 3.0, *TWO), td.static(-0.5, 0.5)
    c, u = believed(d, x, t)
    # the range after guidance, and before it, where guidance may leave it again
    after, before = td.thresholded(guided, cut)(x, t), td.cfg(td.thresholded(d, cut), 3.0, *TWO)(x, t)
    close(after.x0, (u.x0 + 3 * (c.x0 - u.x0)).clamp(-0.5, 0.5))
    close(before.x0, (lambda a, b: b + 3 * (a - b))(c.x0.clamp(-0.5, 0.5), u.x0.clamp(-0.5, 0.5)))
    # two scores add in any order: classifier-free guidance and another classifier
    log_prob = lambda x, t: -(x**2).sum(1)  # noqa: E731
    one = td.classifier(guided, log_prob, 0.1)(x, t)
    other = td.cfg(td.classifier(d, lambda x, t: -(x**2).sum(1), 0.1), 3.0, *TWO)(x, t)
    close(one.eps, other.eps)
    # guidance of a pair, each of which is guided
    twice = td.autoguide(guided, td.bind(twin(d), **TWO[0]), 2.0)(x, t)
    close(twice.x0, 2 * guided(x, t).x0 - twin(d)(x, t, **TWO[0]).x0)
    for outer in (td.interval(guided, td.bind(d, **TWO[0]), 0.1, 9.0), td.thresholded(guided, cut), td.counted(guided)):
        assert isinstance(outer, td.Denoiser) and outer.schedule is d.schedule and outer.paired
        td.sample(outer, (3, 2), n=3, seed=0)


# ---- what guidance samples -----------------------------------------------------------------------

PAIRS = [(0.0, 1.0, 2.0, 2.0), (1.0, 0.25, 1.0, 3.0), (-0.5, 0.8, 0.4, 1.3), (1.0, 0.5, 0.5, 3.0), (0.7, 0.3, 2.0, 0.4)]


def gaussian(mean, var, S):
    return td.GaussianMixture(torch.tensor([[mean]], dtype=F64), var**0.5, None, S)


def test_the_known_values_of_guided_gaussians():
    law = lambda *v, lam=0.0: td.exact.guided_gaussian(*map(float, v[:4]), lam=float(lam))  # noqa: E731
    tilted = lambda *v: td.exact.tilted_gaussian(*map(float, v))  # noqa: E731
    assert law(0, 1, 2, 2).var == pytest.approx(0.5) and law(0, 1, 2, 2, lam=1).var == pytest.approx(7 / 12)
    assert law(0, 1, 2, 3).var == pytest.approx(0.25) and law(0, 1, 2, 3, lam=1).var == pytest.approx(0.3875)
    assert tilted(0, 1, 2, 2).var == pytest.approx(2 / 3)
    assert law(1, 0.25, 1, 3).mean == pytest.approx(1.5) and tilted(1, 0.25, 1, 3).mean == pytest.approx(1.2)
    assert law(1, 0.25, 1, 3, lam=1).mean == pytest.approx(1 / 0.75 * (1 - 0.25**3))  # b m (1 - (a/b)^w) / (b - a)
    for lam in (0, 0.5, 1):
        close(torch.tensor(law(0.7, 0.5, 0.5, 3, lam=lam)), torch.tensor([2.1, 0.5]), 1e-6)  # exact: N(w m, a)
        close(torch.tensor(law(0.7, 0.5, 2.0, 1, lam=lam)), torch.tensor([0.7, 0.5]), 1e-6)  # the conditional
        close(torch.tensor(law(0.7, 0.5, 2.0, 0, lam=lam)), torch.tensor([0.0, 2.0]), 1e-6)  # and the unconditional law
    with pytest.raises(ValueError, match="no density"):
        tilted(0, 2, 1, 3)
    with pytest.raises(ValueError, match="null_var > 0"):
        law(0, 1, 0, 2)


@pytest.mark.parametrize("mean, var, null_var, w", PAIRS)
def test_the_ode_under_guidance(mean, var, null_var, w):
    """The map from noise to data is affine for Gaussians: its value at 0 and its slope are the mean and the std."""
    S = td.EDM(2e-4, 1e7)  # the mean is short by about mean / sigma_max
    guided = td.autoguide(gaussian(mean, var, S), gaussian(0.0, null_var, S), w)
    start = torch.tensor([[0.0], [S.sigma_max]], dtype=F64)
    at = td.ode.flow_map(guided, start, 1.0, S.t_min, tol=1e-7)[:, 0]
    law = td.exact.guided_gaussian(mean, var, null_var, w)
    (
        close(at[0], torch.tensor(law.mean, dtype=F64), 1e-6),
        close((at[1] - at[0]) ** 2, torch.tensor(law.var, dtype=F64), 1e-6),
    )


def moments(guided, steps, n):
    """Mean and variance that n steps give: each maps a Gaussian to a Gaussian, whose map is known by two points."""
    S, two = guided.schedule, torch.tensor([[0.0], [1.0]], dtype=F64)
    none = dict(var=lambda p, ct, cs: ct.sigma * 0) if steps is td.ancestral else {}
    m, v = 0.0, 1.0
    for t, s in td.pairs(td.grid(S, n=n)):
        at = td.final(steps(guided, two, torch.tensor([t, s], dtype=F64), **none))[:, 0]
        noise = td.posterior(S(t, like=two), S(s, like=two)).var[0, 0] if none and s > 0 else 0.0
        m, v = at[0] + (at[1] - at[0]) * m, (at[1] - at[0]) ** 2 * v + noise
    return torch.stack([m, v])


@pytest.mark.parametrize("mean, var, null_var, w", PAIRS)
@pytest.mark.parametrize("steps", [td.ancestral, td.ddim])
def test_what_samplers_draw_under_guidance(steps, mean, var, null_var, w):
    """The error of n steps falls as 1 / n to the closed form, and 1,000 draws are within three standard errors of it.

    800 steps are less than half a standard error from endless ones. All other closed forms are further off, where they
    differ: 2 M(2 n) - M(n) is within 0.003 of the right one.
    """
    S, lam = td.Cosine(), 1.0 if steps is td.ancestral else 0.0
    guided = td.autoguide(gaussian(mean, var, S), gaussian(0.0, null_var, S), w)
    law = torch.tensor(td.exact.guided_gaussian(mean, var, null_var, w, lam=lam), dtype=F64)
    coarse, fine = moments(guided, steps, 80), moments(guided, steps, 160)
    close(2 * fine - coarse, law, 3e-3)
    x = td.sample(guided, (1000, 1), n=800, sampler=steps, seed=1).double()
    assert abs(x.mean() - law[0]) < 3 * (law[1] / len(x)) ** 0.5
    assert abs(x.var() / law[1] - 1) < 3 * (2 / len(x)) ** 0.5
