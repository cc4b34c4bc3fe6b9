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
    with pytest.raises(TypeError, match="y"):
        bound(x, 0.2, y=y)


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
