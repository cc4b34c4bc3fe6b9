"""What must hold for any schedule, shape, dtype and time: hypothesis looks for a counterexample."""

from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tinydiff as td
from tinydiff import targets
from tinydiff.samplers import large, small

quick = settings(deadline=None, derandomize=True, max_examples=40)


def number(low, high):
    return st.floats(low, high, allow_nan=False)


def made(kind, *args):
    """Schedules to be called: made inside the test, as the checks of types draw numbers that hypothesis would count."""
    return st.builds(partial, st.just(kind), *args)


schedules = st.one_of(
    made(td.DiscreteVP, st.lists(number(1e-5, 0.6), min_size=1, max_size=12)),
    made(td.VP, number(0.01, 1.0), number(1.5, 25.0)),
    made(td.SubVP, number(0.01, 1.0), number(1.5, 25.0)),
    made(td.VE, number(1e-3, 0.1), number(1.0, 200.0)),
    made(td.EDM, number(1e-3, 0.1), number(1.0, 200.0), number(1.0, 9.0)),
    made(td.Cosine, number(5.0, 25.0)),
    made(td.Flow, number(5.0, 25.0)),
)
shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64])
times = number(0.0, 1.0)
# v on a variance-exploding path is ill-conditioned far out, and velocity where a chain barely moves
ROWS = [targets.x0, targets.eps, targets.v, targets.score, targets.edm(0.5), targets.edm(2.0)]


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@quick
@given(schedules, shapes, dtypes, times)
def test_coefficients_follow_x(S, shape, dtype, t):
    S = S()
    like = draw(shape, dtype)
    c = S(t, like=like)
    for value in (c.alpha, c.sigma, c.logsnr, c.dalpha, c.dsigma, c.drift, c.diffusion2):
        assert value.shape == (shape[0], *[1] * (len(shape) - 1)) and value.dtype == dtype
        assert not value.isnan().any()
    assert (0 < c.alpha).all() and (c.alpha <= 1).all() and (c.sigma >= 0).all()
    assert (c.diffusion2 >= 0).all() and (c.drift <= 0).all()


@quick
@given(schedules, st.lists(times, min_size=2, max_size=20))
def test_noise_only_grows(S, ts):
    S = S()
    t = torch.tensor(sorted(ts), dtype=torch.float64)
    alpha, sigma, logsnr = S.alpha(t), S.sigma(t), S.logsnr(t)
    assert (alpha.diff() <= 1e-12).all() and (sigma.diff() >= -1e-12 * sigma[1:]).all()
    assert (logsnr[1:] <= logsnr[:-1] + 1e-9).all()


@quick
@given(schedules, number(0.0, 1.0))
def test_time_inverts_logsnr(S, u):
    S = S()
    t = torch.tensor([S.t_min + u * (S.t_max - S.t_min)], dtype=torch.float64)
    logsnr = S.logsnr(t)
    found = S.time(logsnr)
    assert S.t_min <= found <= S.t_max
    # a chain reads a time within 1e-4 of a step as that step
    torch.testing.assert_close(S.logsnr(found), logsnr, atol=2e-3 if hasattr(S, "betas") else 1e-8, rtol=1e-8)


@quick
@given(schedules, shapes, dtypes, number(0.02, 0.98), st.sampled_from(ROWS))
def test_encode_and_decode_are_inverse(S, shape, dtype, t, target):
    S = S()
    x0, eps = draw(shape, dtype), draw(shape, dtype, 1)
    c = S(t, like=x0)
    x = c.alpha * x0 + c.sigma * eps
    p = td.decode(target, c, x, td.encode(target, c, x0, eps))
    assert p.x0.shape == p.eps.shape == shape and p.x0.dtype == p.eps.dtype == dtype
    c0, c1 = target(c)
    det = (c.alpha * c1 - c.sigma * c0).abs()
    size = torch.maximum(c.alpha, c.sigma) * max(float(torch.as_tensor(v).abs().max()) for v in (c0, c1))
    tol = 200 * torch.finfo(dtype).eps * float((size * (1 + size) / det).max())  # what the solve may lose
    torch.testing.assert_close(p.x0, x0, atol=tol, rtol=tol)
    torch.testing.assert_close(p.eps, eps, atol=tol, rtol=tol)
    torch.testing.assert_close(td.encode(target, c, p.x0, p.eps), td.encode(target, c, x0, eps), atol=tol, rtol=tol)


@quick
@given(schedules, times, times, dtypes)
def test_posterior_lies_between_its_ends(S, a, b, dtype):
    S = S()
    s, t = sorted((a, b))
    if s == t or t < S.t_min:
        return
    like = draw((1, 1), dtype)
    ct, cs = S(t, like=like), S(s, like=like)
    p, q = td.Prediction(like, like), td.posterior(ct, cs)
    assert 0 <= small(p, ct, cs) <= large(p, ct, cs) * (1 + 1e-4) <= ct.sigma**2 * (1 + 1e-3)
    assert q.a_x0 >= 0 and q.a_x >= 0 and q.var <= cs.sigma**2
    if dtype == torch.float64:
        torch.testing.assert_close(q.a_x0 + q.a_x * ct.alpha, cs.alpha, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(q.var + q.a_x**2 * ct.sigma**2, cs.sigma**2, atol=1e-12, rtol=1e-9)


@quick
@given(schedules, st.integers(1, 6), number(0.0, 1.0), dtypes)
def test_samplers_end_in_what_is_believed(S, n, eta, dtype):
    S = S()
    d = td.GaussianMixture(draw((3, 2)), 0.2, None, S)
    x = S.prior_std * draw((4, 2), dtype)
    ts = td.grid(S, n)
    for run in (td.ddim(d, x, ts, eta=eta), td.ancestral(d, x, ts)):
        *_, last = run
        assert torch.equal(last.x, last.x0) and last.t == 0
        assert last.x.dtype == dtype and last.x.isfinite().all() and last.x.abs().max() < 10


@quick
@given(schedules, st.integers(1, 30))
def test_grids_fall_to_zero(S, n):
    S = S()
    for spacing in (td.uniform, td.logsnr_uniform, td.karras(5.0)):
        ts = td.grid(S, n, spacing)
        assert ts.shape == (n + 1,) and ts[0] == S.t_max and ts[-1] == 0
        if not hasattr(S, "betas"):  # between the last steps of a short chain log-SNR may need finer times
            assert (ts.diff() < 0).all()


@quick
@given(st.integers(1, 200), st.data())
def test_leading_and_trailing_are_steps_of_the_chain(steps, data):
    n = data.draw(st.integers(1, steps))
    S = td.DiscreteVP(td.linear_betas(steps))
    for spacing in (td.leading, td.trailing):
        k = td.grid(S, n, spacing) * steps
        assert (k - k.round()).abs().max() < 1e-9 and len(set(k.round().tolist())) == n + 1
        assert k.max() <= steps and k[-2] >= 1


@quick
@given(schedules, number(0.0, 1.0), st.integers(1, 4), st.integers(1, 3))
def test_exact_beliefs_agree_with_x(S, t, k, dim):
    S = S()
    g = td.GaussianMixture(draw((k, dim)), 0.3, None, S)
    x = draw((5, dim), seed=1)
    p, c = g(x, t), S(t, like=x)
    torch.testing.assert_close(c.alpha * p.x0 + c.sigma * p.eps, x, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(g.posterior(x, t).sum(1), torch.ones(5, dtype=torch.float64))
