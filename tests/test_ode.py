"""The probability-flow ODE: densities against exact mixtures, Hutchinson's estimator, encodings, bits."""

import math

import pytest
import torch
from test_schedules import every

import tinydiff as td
from tinydiff import ode

F64 = torch.float64
MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)
STDS = torch.tensor([0.2, 0.3, 0.15], dtype=F64)
WEIGHTS = [0.5, 0.3, 0.2]


def mixture(S):
    return td.GaussianMixture(MEANS, STDS, WEIGHTS, S)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), atol=tol, rtol=tol)


@every("VP", "SubVP", "VE", "EDM", "Cosine", "Flow")
def test_the_density_of_a_mixture_with_the_exact_prior(S):
    """#9: exact divergence, exact p_T, small tolerance. Seen: below 2e-8."""
    g = mixture(S)
    x0 = g.sample(30, seeded())
    got = td.ode_log_likelihood(g, x0, tol=1e-9, prior=lambda x: g.log_prob(x, S.t_max))
    close(got, g.log_prob(x0, S.t_min), 1e-6)


@pytest.mark.parametrize("seed", range(3))
@every("VP", "SubVP", "VE", "EDM", "Cosine", "Flow")
def test_the_density_of_a_mixture_as_the_paper_computes_it(S, seed):
    """Within 0.02 nat with the Gaussian prior and a tolerance of 1e-5. Seen: at most 0.016 over 64 points.

    VE is given its exact p_T: its prior ignores the mean m of the data, which costs up to |m| |z| / sigma_max = 0.03.
    """
    g = mixture(S)
    x0 = g.sample(64, seeded(seed))
    prior = (lambda x: g.log_prob(x, 1.0)) if isinstance(S, td.VE) else None
    assert (td.ode_log_likelihood(g, x0, prior=prior) - g.log_prob(x0, S.t_min)).abs().max() < 0.02


def test_a_prior_that_does_not_fit_shows():
    """Where sigma_max is not far above the data, N(0, sigma_max^2) is not p_T, and the density is another one."""
    S = td.VE(0.01, 5.0)
    x0 = mixture(S).sample(64, seeded())
    assert (td.ode_log_likelihood(mixture(S), x0) - mixture(S).log_prob(x0, S.t_min)).abs().max() > 0.1


def test_conditions_are_passed_on():
    S, y = td.VP(), torch.tensor([0, 1, 2, 1])
    x0 = mixture(S).sample(4, seeded())
    got = td.ode_log_likelihood(mixture(S), x0, y=y, tol=1e-7)
    close(got, mixture(S).log_prob(x0, S.t_min, y=y), 0.02)


# ---- divergences ---------------------------------------------------------------------------------


def field(x):
    """A field with a full Jacobian, and its divergence by hand."""
    a, b, c = x.unbind(1)
    return torch.stack([a.sin() * b, b**2 + c, a * c**3], 1)


def its_divergence(x):
    a, b, c = x.unbind(1)
    return a.cos() * b + 2 * b + 3 * a * c**2


def test_the_exact_divergence():
    x = torch.randn(7, 3, generator=seeded(), dtype=F64)
    value, div = ode.exact(field, x)
    close(value, field(x)), close(div, its_divergence(x))
    images = torch.randn(2, 1, 4, 4, generator=seeded(), dtype=F64)
    close(ode.exact(lambda x: x**2, images)[1], (2 * images).flatten(1).sum(1))


def test_hutchinson_by_its_definition():
    x = torch.randn(5, 3, generator=seeded(), dtype=F64)
    z = torch.randn(2, 5, 3, generator=seeded(1), dtype=F64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: field(v[None])[0], row) for row in x])
    value, div = ode.hutchinson(z)(field, x)
    close(value, field(x)), close(div, torch.einsum("kbi,bij,kbj->b", z, jacobian, z) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_signs_are_unbiased_and_have_less_variance_than_gaussians(seed):
    """Var = sum over pairs i < j of (J_ij + J_ji)^2, and with Gaussian probes 2 sum J_ii^2 more."""
    n, x = 20_000, torch.tensor([[0.4, -0.7, 1.1]], dtype=F64)
    J = torch.autograd.functional.jacobian(lambda v: field(v[None])[0], x[0])
    many = x.expand(n, 3).clone()
    off = (J + J.T).triu(1).square().sum()
    for probes, var in (
        (ode.rademacher(many, generator=seeded(seed)), off),
        (torch.randn(1, n, 3, generator=seeded(seed), dtype=F64), off + 2 * J.diagonal().square().sum()),
    ):
        estimate = ode.hutchinson(probes)(field, many)[1]
        assert abs(estimate.mean() - its_divergence(x)[0]) < 5 * (var / n).sqrt()
        assert abs(estimate.var() / var - 1) < 0.1
    assert ode.rademacher(x, 4, seeded()).shape == (4, 1, 3) and (ode.rademacher(x, 50).abs() == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_hutchinson_is_within_three_standard_errors_of_the_exact_density(seed):
    """#10: 600 probes at one point each. (The seeds are fixed: three standard errors would fail 1 in 370 by chance.)"""
    S = td.VP()
    g, n = mixture(S), 600
    x0 = g.sample(3, seeded(seed)).repeat_interleave(n, 0)
    got = td.ode_log_likelihood(
        g, x0, divergence=ode.hutchinson(ode.rademacher(x0, generator=seeded(seed + 5))), tol=1e-6
    )
    want = td.ode_log_likelihood(g, x0[::n], tol=1e-7)
    for mine, true in zip(got.split(n), want, strict=True):
        assert abs(mine.mean() - true) < 3 * mine.std() / n**0.5
    assert max(mine.std() for mine in got.split(n)) > 0.2


# ---- encodings -----------------------------------------------------------------------------------


@every("VP", "SubVP", "VE", "EDM", "Cosine", "Flow")
def test_the_flow_of_gaussian_data_is_a_line(S):
    """x_t = alpha_t m + (sqrt(V_t) / sqrt(V_s)) (x_s - alpha_s m), V = alpha^2 s^2 + sigma^2."""
    mean, std = torch.tensor([[0.7, -0.3]], dtype=F64), 0.4
    d = td.GaussianMixture(mean, std, None, S)
    x, t, s = torch.randn(5, 2, generator=seeded(), dtype=F64), 0.3, 0.8
    a, b = S(t, like=x), S(s, like=x)
    v = [(c.alpha**2 * std**2 + c.sigma**2).sqrt() for c in (a, b)]
    want = b.alpha * mean + v[1] / v[0] * (x - a.alpha * mean)
    close(ode.flow_map(d, x, t, s, tol=1e-9), want, 1e-6)
    close(ode.flow_map(d, want, s, t, tol=1e-9), x, 1e-6)


def test_data_to_noise_and_back():
    S = td.VP()
    g = mixture(S)
    x0 = g.sample(20, seeded())
    noise = ode.flow_map(g, x0, 0.0, 1.0, tol=1e-9)
    close(ode.flow_map(g, noise, 1.0, 0.0, tol=1e-9), x0, 1e-6)
    assert noise.std() > 0.6 and ode.flow_map(g, x0.float(), 0.0, 1.0).dtype == torch.float32


@every("VE", "EDM", "Flow", "Cosine")
def test_nothing_is_asked_outside_the_schedule(S):
    """Times below t_min mean t_min, and those above t_max t_max: no network was trained there."""
    seen = []

    def watch(x, t):
        seen.append(float(t[0]))
        return mixture(S)(x, t)

    x = mixture(S).sample(3, seeded())
    ode.flow_map(td.denoiser(watch, S), x, 0.0, 1.0)
    assert min(seen) >= S.t_min and max(seen) <= S.t_max and len(seen) > 10


def test_bits():
    """A lattice value of width w in a flat density p = 1/8 a dimension has p w of the mass."""
    log_p = torch.tensor([3 * math.log(1 / 8)], dtype=F64)
    close(ode.bits_per_dim(log_p, 3, 0.25), [5.0])
    close(ode.bits_per_dim(torch.tensor([64 * math.log(1 / 2)], dtype=F64), 64, 1 / 8), [4.0])


def test_bad_settings_are_told():
    S = td.VP()
    x = torch.zeros(2, 2, dtype=F64)
    for call in (
        lambda: ode.flow_map(mixture(S), x, 0.0, 1.5),
        lambda: ode.flow_map(mixture(S), x, 0.0, 1.0, tol=0.0),
        lambda: td.ode_log_likelihood(mixture(S), x, tol=-1e-3),
    ):
        with pytest.raises(ValueError, match="tol must be positive and times lie in"):
            call()


def test_a_velocity_that_is_not_finite_is_told():
    nowhere = td.denoiser(lambda x, t: td.Prediction(x * torch.nan, x * torch.nan), td.VP())
    with pytest.raises(FloatingPointError, match="not finite at t = 0.5"):
        ode.flow_map(nowhere, torch.ones(1, 2, dtype=F64), 0.5, 0.6)


def test_no_way_to_go_leaves_all_as_it_is():
    S = td.EDM()
    d, x = td.GaussianMixture(torch.zeros(1, 2), 0.6, None, S), torch.ones(3, 2)
    assert torch.equal(td.ode.flow_map(d, x, 0.4, 0.4), x)
    assert torch.equal(td.ode.flow_map(d, x, 0.0, S.t_min), x)  # both mean t_min
