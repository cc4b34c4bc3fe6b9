"""Identities that no other file tests: of distillation, consistency models, TrigFlow and MeanFlow.

Their systems come in later notebooks; what they rest on is here already: steps, targets, velocities, the flow map.
"""

import math

import pytest
import torch

import tinydiff as td
from tinydiff import targets

F64 = torch.float64
MEANS = torch.tensor([[-0.9, 0.4], [0.8, -0.3], [0.1, 1.0]], dtype=F64)


def mixture(S):
    return td.GaussianMixture(MEANS, torch.tensor([0.2, 0.3, 0.15], dtype=F64), [0.5, 0.3, 0.2], S)


def gaussian(S, std=0.6):
    return td.GaussianMixture(torch.zeros(1, 2, dtype=F64), std, None, S)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), atol=tol, rtol=tol)


@pytest.mark.parametrize("t, m, s", [(1.0, 0.75, 0.5), (0.5, 0.4, 0.3), (0.2, 0.1, 0.05)])
def test_13_a_student_lands_where_two_steps_of_the_teacher_do(t, m, s):
    """Salimans & Ho 2022, Algorithm 2: x~ = (z'' - (sigma_s / sigma_t) z) / (alpha_s - (sigma_s / sigma_t) alpha_t)."""
    S, z = td.Cosine(), normal(5, 2)
    two = td.final(td.ddim(mixture(S), z, torch.tensor([t, m, s], dtype=F64)))
    ct, cs = S(t, like=z), S(s, like=z)
    ratio = cs.sigma / ct.sigma
    x0 = (two - ratio * z) / (cs.alpha - ratio * ct.alpha)
    student = td.denoiser(lambda z, t: td.Prediction(x0, (z - ct.alpha * x0) / ct.sigma), S)
    close(td.final(td.ddim(student, z, torch.tensor([t, s], dtype=F64))), two, 1e-10)


def test_14_the_consistency_function_of_gaussian_data():
    """f(x, t) = x sqrt((s^2 + e^2) / (s^2 + t^2)) is the flow map to e: f(x, e) = x, and it is constant on a path."""
    S, std, x = td.EDM(0.002, 80.0), 0.6, 5 * normal(6, 2)
    f = lambda x, level: x * ((std**2 + S.sigma_min**2) / (std**2 + level**2)) ** 0.5  # noqa: E731
    assert torch.equal(f(x, S.sigma_min), x)
    for t in (0.3, 0.6, 0.9):
        close(
            td.ode.flow_map(gaussian(S, std), x, t, S.t_min, tol=1e-10),
            f(x, float(S.sigma(torch.tensor(t, dtype=F64)))),
            1e-7,
        )
        # df/dt along the library's velocity: the total derivative is 0
        when = torch.tensor(t, dtype=F64)
        v = gaussian(S, std)(x, t).velocity(S(t, like=x))
        _, change = torch.func.jvp(lambda x, t: f(x, S.alpha_sigma(t)[1]), (x, when), (v, torch.ones_like(when)))
        close(change, torch.zeros_like(x), 1e-9)


def test_15_a_step_of_euler_with_the_true_x0_keeps_the_noise():
    """Consistency training: from x0 + t z, Euler's step with the denoiser x0 ends in x0 + s z."""
    S, x0, z = td.EDM(), normal(4, 2), normal(4, 2, seed=1)
    t, s = (float(v) for v in td.grid(S, 10)[[3, 4]])
    ct, cs = S(t, like=x0), S(s, like=x0)
    known = td.denoiser(lambda x, t: td.Prediction(x0, (x - x0) / S(t, like=x).sigma), S)
    end = td.final(td.euler(known, x0 + ct.sigma * z, torch.tensor([t, s], dtype=F64)))
    close(end, x0 + cs.sigma * z, 1e-10)


@pytest.mark.parametrize("level", [0.01, 0.3, 2.0, 40.0])
def test_17_trigflow_is_edm_in_other_coordinates(level):
    """Lu & Song 2024: t = atan(level / sd), x_trig = x sd / sqrt(level^2 + sd^2), F_trig = -F_edm.

    TrigFlow noises by x = cos t x0 + sin t (sd z), and its D = cos t x - sin t sd F.
    """
    sd, x = 0.5, normal(5, 2) * (level**2 + 0.5**2) ** 0.5
    E = td.EDM()
    t_edm = E.time(torch.tensor(-2 * math.log(level), dtype=F64))
    p = mixture(E)(x, t_edm)
    F_edm = td.encode(targets.edm(sd), E(t_edm, like=x), p.x0, p.eps)
    angle = math.atan(level / sd)
    x_trig = x * sd / (level**2 + sd**2) ** 0.5
    close(math.cos(angle) * x_trig - math.sin(angle) * sd * -F_edm, p.x0, 1e-9)
    # the same data under the library's cosine path, whose noise has variance 1: scaled by sd
    C = td.Cosine()
    scaled = td.GaussianMixture(MEANS / sd, torch.tensor([0.2, 0.3, 0.15], dtype=F64) / sd, [0.5, 0.3, 0.2], C)
    q = scaled(x_trig / sd, 2 * angle / math.pi)
    close(sd * q.x0, p.x0, 1e-8)
    v = td.encode(targets.v, C(2 * angle / math.pi, like=x), q.x0, q.eps)
    close(v, -F_edm, 1e-8)


def test_17_the_tangent_of_a_consistency_function():
    """f = cos t x - sin t sd F:  df/dt = -cos t (sd F - dx/dt) - sin t (x + sd dF/dt), for any F."""
    sd, x, t, dx = 0.5, normal(4, 2), torch.tensor(0.7, dtype=F64), normal(4, 2, seed=1)
    F = lambda x, t: (2 * x).sin() * t + x * t.cos()  # noqa: E731
    f = lambda x, t: t.cos() * x - t.sin() * sd * F(x / sd, t)  # noqa: E731
    one = torch.ones_like(t)
    _, df = torch.func.jvp(f, (x, t), (dx, one))
    value, dF = torch.func.jvp(F, (x / sd, t), (dx / sd, one))
    close(df, -t.cos() * (sd * value - dx) - t.sin() * (x + sd * dF))
    # rearranged for half precision: tangents times cos t sin t sd give sd cos t sin t dF/dt, once
    scale = t.cos() * t.sin()
    _, scaled = torch.func.jvp(F, (x / sd, t), (scale * dx, scale * sd))
    close(scaled, sd * scale * dF)


def test_19_the_average_velocity_of_gaussian_data():
    """Geng et al. 2025: u = v - (t - r) du/dt along the flow, for u(z, r, t) = z (1 - sd(r) / sd(t)) / (t - r)."""
    S, std, z = td.Flow(), 0.6, normal(5, 2)
    r, t = torch.tensor(0.2, dtype=F64), torch.tensor(0.8, dtype=F64)
    sd = lambda t: ((1 - t) ** 2 * std**2 + t**2).sqrt()  # noqa: E731
    u = lambda z, r, t: z * (1 - sd(r) / sd(t)) / (t - r)  # noqa: E731
    v = gaussian(S, std)(z, float(t)).velocity(S(float(t), like=z))
    value, du = torch.func.jvp(u, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    close(value, v - (t - r) * du, 1e-10)
    close(z - (t - r) * value, td.ode.flow_map(gaussian(S, std), z, float(t), float(r), tol=1e-10), 1e-7)
    close(u(z, t - 1e-6, t), v, 1e-5)


# ---- the multistep sampler of consistency models -------------------------------------------------


def test_multistep_noises_the_answer_to_the_next_level():
    """x <- f + sqrt(s^2 - sigma_min^2) z (Song et al. 2023, Algorithm 1), and data at t = 0 on other paths."""
    S, x = td.EDM(), 80 * normal(4, 2)
    ts = td.grid(S, 3)
    g = torch.Generator().manual_seed(5)
    want = x
    for t, s in zip(ts, ts[1:], strict=False):
        want = mixture(S)(want, float(t)).x0
        level = float(S.sigma(s)) if s > 0 else 0.0
        if level > S.sigma_min * (1 + 1e-9):
            want = want + math.sqrt(level**2 - S.sigma_min**2) * torch.randn(x.shape, generator=g, dtype=F64)
    got = td.final(td.consistency_multistep(mixture(S), x, ts, generator=torch.Generator().manual_seed(5)))
    close(got, want, 1e-9)
    C, x = td.Cosine(), normal(4, 2)
    one, _ = td.consistency_multistep(
        mixture(C), x, torch.tensor([0.9, 0.5, 0.0], dtype=F64), generator=g.manual_seed(6)
    )
    z = torch.randn(x.shape, generator=g.manual_seed(6), dtype=F64)
    close(one.x, math.cos(math.pi / 4) * (one.x0 + z), 1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_multistep_with_the_exact_jump_keeps_the_law_of_the_data(seed):
    """Gaussian data: f is known, and after any number of jumps the samples have variance s^2 + sigma_min^2."""
    S, std, n = td.EDM(), 0.6, 20_000

    def jump(x, t):
        c = S(t, like=x)
        x0 = x * ((std**2 + S.sigma_min**2) / (std**2 + c.sigma**2)).sqrt()
        return td.Prediction(x0, (x - x0) / c.sigma)

    x = (80.0**2 + std**2) ** 0.5 * normal(n, 1, seed=seed)
    g = torch.Generator().manual_seed(100 + seed)
    x0 = td.final(td.consistency_multistep(td.denoiser(jump, S), x, td.grid(S, 4), generator=g))
    assert abs(x0.var() / std**2 - 1) < 5 * (2 / n) ** 0.5
