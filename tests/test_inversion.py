"""DDIM backwards, arcs between noises, and the grid of squares."""

import math

import pytest
import torch
from test_schedules import every

import tinydiff as td

F64 = torch.float64
MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)


def mixture(S):
    return td.GaussianMixture(MEANS, torch.tensor([0.2, 0.3, 0.15], dtype=F64), [0.5, 0.3, 0.2], S)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), atol=tol, rtol=tol)


# ---- inversion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [False, True])
@every("linear", "VP", "Cosine", "VE", "Flow")
def test_a_step_back_is_eulers_rule_the_other_way(S, ahead):
    """x_t / alpha_t = x_s / alpha_s + (sigma_t / alpha_t - sigma_s / alpha_s) eps, eps believed at x_s."""
    x, ts = normal(4, 2), torch.tensor([0.8005, 0.5005, 0.1105], dtype=F64)
    g = mixture(S)
    states = list(td.ddim_inverse(g, x, ts, ahead=ahead))
    assert [state.t for state in states] == [0.5005, 0.8005]
    for state, s, t in zip(states, (0.1105, 0.5005), (0.5005, 0.8005), strict=True):
        cs, ct = S(s, like=x), S(t, like=x)
        eps = g(x, t if ahead else s).eps
        close(state.x0, (x - cs.sigma * eps) / cs.alpha, 1e-10)
        x = ct.alpha * (x / cs.alpha + (ct.sigma / ct.alpha - cs.sigma / cs.alpha) * eps)
        close(state.x, x, 1e-9)


def test_from_the_data_it_asks_at_t_min_and_never_at_zero():
    S, seen = td.VP(), []

    def watch(x, t):
        seen.append(float(t[0]))
        return mixture(S)(x, t)

    for ahead in (False, True):
        td.final(td.ddim_inverse(td.denoiser(watch, S), normal(3, 2), td.grid(S, 4), ahead=ahead))
    assert seen == pytest.approx([S.t_min, 0.25, 0.5, 0.75, 0.25, 0.5, 0.75, 1.0])


def test_point_data_come_back_exactly():
    """The noise believed in is the same all along a line, so both ways agree."""
    S = td.VP()
    d = td.GaussianMixture(MEANS[:1], 0.0, None, S)
    x, ts = normal(5, 2), torch.tensor([0.9, 0.6, 0.3], dtype=F64)
    close(td.final(td.ddim(d, td.final(td.ddim_inverse(d, x, ts)), ts)), x, 1e-9)


@pytest.mark.parametrize("ahead", [False, True])
def test_the_round_trip_has_an_error_of_first_order(ahead):
    """Slope of log-log over 100 to 400 steps. Seen: -0.85 to -1.05."""
    S = td.VP()
    g = mixture(S)
    x0 = g.sample(400, seeded())
    error = []
    for n in (100, 200, 400):
        ts = S.time(torch.linspace(-9.0, 5.0, n + 1, dtype=F64))
        error.append(
            (td.final(td.ddim(g, td.final(td.ddim_inverse(g, x0, ts, ahead=ahead)), ts)) - x0)
            .square()
            .mean()
            .sqrt()
            .item()
        )
    assert 0.7 < math.log2(error[0] / error[1]) < 1.3 and 0.7 < math.log2(error[1] / error[2]) < 1.3
    assert error[2] < 0.02


def test_codes_of_fine_grids_are_those_of_the_ode():
    S = td.VP()
    g, x0 = mixture(S), mixture(S).sample(30, seeded())
    code = td.final(td.ddim_inverse(g, x0, td.grid(S, 2000)))
    close(code, td.ode.flow_map(g, x0, 0.0, 1.0, tol=1e-8), 0.05)


# ---- arcs ----------------------------------------------------------------------------------------


def test_slerp_turns_by_a_part_of_the_angle():
    a, b = torch.tensor([[2.0, 0.0]], dtype=F64), torch.tensor([[0.0, 2.0]], dtype=F64)
    for w in (0.0, 0.25, 0.5, 1.0):
        angle = w * math.pi / 2
        close(td.slerp(a, b, w), [[2 * math.cos(angle), 2 * math.sin(angle)]])


def test_slerp_of_a_batch_of_images():
    a, b = normal(3, 1, 8, 8), normal(3, 1, 8, 8, seed=1)
    w = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    out = td.slerp(a, b, w)
    close(out[0], a[0]), close(out[2], b[2])
    theta = math.acos(float((a[1] * b[1]).sum() / (a[1].norm() * b[1].norm())))
    close(out[1], (math.sin(0.7 * theta) * a[1] + math.sin(0.3 * theta) * b[1]) / math.sin(theta), 1e-10)


def test_slerp_keeps_the_length_that_noise_has():
    a, b = normal(2000, 64), normal(2000, 64, seed=1)
    assert abs(td.slerp(a, b, 0.5).square().mean().item() - 1) < 0.03
    assert abs((a / 2 + b / 2).square().mean().item() - 0.5) < 0.02


def test_slerp_of_parallel_noises_is_the_line():
    a = normal(2, 3)
    close(td.slerp(a, a, 0.4), a, 1e-9)
    assert td.slerp(a, -a, 0.5).isfinite().all()
    with pytest.raises(ValueError, match="a and b must have one shape"):
        td.slerp(a, a[:1], 0.5)


# ---- the grid of squares -------------------------------------------------------------------------


def test_quadratic_steps_are_those_of_the_official_code():
    S = td.DiscreteVP(td.linear_betas(1000))
    index = [round(float(t) * 1000) - 1 for t in td.grid(S, 10, td.quadratic)[:-1]]
    assert index == [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]


@pytest.mark.parametrize("n", [1, 2, 100, 300, 1000])
def test_quadratic_steps_are_distinct(n):
    S = td.DiscreteVP(td.linear_betas(1000))
    ts = td.grid(S, n, td.quadratic)
    assert len(ts) == n + 1 and (ts.diff() < 0).all() and float(ts[-2]) == 1 / 1000
    if n == 100:  # the official list has 96 different steps
        theirs = {int(v) for v in torch.linspace(0, math.sqrt(800), 100, dtype=F64) ** 2 + 1e-9}
        ours = {round(float(t) * 1000) - 1 for t in ts[:-1]}
        assert len(theirs) == 96 and len(ours) == 100 and len(theirs & ours) >= 88
    with pytest.raises(ValueError, match="need a DiscreteVP of at least n = 1001"):
        td.grid(S, 1001, td.quadratic)
