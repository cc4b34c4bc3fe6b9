"""Targets: every one of them on every schedule, and the tables of the papers."""

import pytest
import torch
from test_schedules import EVERY, PRESERVING, TIMES, coefs, every

import tinydiff as td
from tinydiff import targets

F64 = torch.float64
ALL = {
    "x0": targets.x0,
    "eps": targets.eps,
    "v": targets.v,
    "score": targets.score,
    "velocity": targets.velocity,
    "edm": targets.edm(0.5),
    "edm(1)": targets.edm(1.0),
}
each_target = pytest.mark.parametrize("target", ALL.values(), ids=ALL.keys())


def close(a, b, tol=1e-9):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


def pair(shape=(7, 3), seed=0):  # one row a time
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64), torch.randn(shape, generator=g, dtype=F64)


def at(S, t=TIMES, like=None):
    return S(t, like=torch.empty(len(t), 3, dtype=F64) if like is None else like)


@every()
@each_target
def test_encode_and_decode_are_inverse(S, target):
    x0, eps = pair()
    c = at(S)
    x = c.alpha * x0 + c.sigma * eps
    p = td.decode(target, c, x, td.encode(target, c, x0, eps))
    close(p.x0, x0), close(p.eps, eps)
    assert p.var is None


@every()
@each_target
def test_what_is_decoded_agrees_with_x_whatever_the_network_says(S, target):
    x, out = pair(seed=1)
    c = at(S)
    p = td.decode(target, c, x, out)
    scale = (c.alpha * p.x0).abs().max()  # a wild output gives a large x0 and eps that cancel
    close((c.alpha * p.x0 + c.sigma * p.eps) / scale, x / scale, 1e-12)
    close(td.encode(target, c, p.x0, p.eps), out, 1e-9)


# ---- the rows by hand ----------------------------------------------------------------------------


def test_rows_on_the_straight_path():
    """At t = 0.3 on Flow alpha = 0.7, sigma = 0.3, alpha' = -1, sigma' = 1."""
    c = at(td.Flow(), torch.tensor([0.3], dtype=F64))
    n = 0.5 * (0.09 + 0.49 * 0.25) ** 0.5
    rows = {
        "x0": (1, 0),
        "eps": (0, 1),
        "v": (-0.3, 0.7),
        "score": (0, -1 / 0.3),
        "velocity": (-1, 1),
        "edm": (0.3 / n, -0.7 * 0.25 / n),
    }
    for name, (c0, c1) in rows.items():
        x0, eps = pair((1, 3))
        close(td.encode(ALL[name], c, x0, eps), c0 * x0 + c1 * eps, 1e-12)


# variance-preserving conversions: what is wanted (row), what a network gave (column)
CONVERSIONS = {
    "eps": lambda x, e, a, s: ((x - s * e) / a, e, (e - s * x) / a, -e / s),
    "x0": lambda x, x0, a, s: (x0, (x - a * x0) / s, (a * x - x0) / s, (a * x0 - x) / s**2),
    "v": lambda x, v, a, s: (a * x - s * v, s * x + a * v, v, -(s * x + a * v) / s),
    "score": lambda x, sc, a, s: ((x + s**2 * sc) / a, -s * sc, (-s * sc - s * x) / a, sc),
}


@every(*PRESERVING)
@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_of_the_literature(S, name):
    x, out = pair(seed=2)
    c = at(S)
    p = td.decode(ALL[name], c, x, out)
    x0, eps, v, score = CONVERSIONS[name](x, out, c.alpha, c.sigma)
    for mine, theirs in (
        (p.x0, x0),
        (p.eps, eps),
        (td.encode(targets.v, c, p.x0, p.eps), v),
        (p.score(c), score),
    ):
        close(mine / theirs.abs().max(), theirs / theirs.abs().max(), 1e-11)


@every(*PRESERVING)
def test_v_is_minus_edm_of_unit_data_on_a_variance_preserving_path(S):
    x0, eps = pair()
    c = at(S)
    close(td.encode(targets.v, c, x0, eps), -td.encode(targets.edm(1.0), c, x0, eps), 1e-13)


@every("Cosine")
def test_v_is_the_velocity_up_to_the_speed_of_the_clock(S):
    x0, eps = pair()
    c = at(S)
    close(td.encode(targets.velocity, c, x0, eps), torch.pi / 2 * td.encode(targets.v, c, x0, eps), 1e-12)


@pytest.mark.parametrize("data", [0.5, 1.0, 2.0])
def test_edm_is_the_preconditioning_of_karras(data):
    """D = c_skip x + c_out F, with the loss weight (sigma^2 + data^2) / (sigma data)^2 (table 1)."""
    x, out = pair(seed=3)
    c = at(td.EDM())
    s, target = c.sigma, targets.edm(data)
    skip, c_out = data**2 / (s**2 + data**2), s * data / (s**2 + data**2).sqrt()
    close(td.decode(target, c, x, out).x0, skip * x + c_out * out, 1e-11)
    close(targets.x0_weight(target, c) * (s**2 + data**2) / (s * data) ** 2, torch.ones_like(s), 1e-12)
    c0, c1 = target(c)  # the output has unit variance for data of this standard deviation
    close(c0**2 * data**2 + c1**2, torch.ones_like(s), 1e-12)


# ---- weights -------------------------------------------------------------------------------------


@every()
@each_target
def test_a_weight_in_x0_space_carries_over(S, target):
    """Two outputs: the squared distance between their x0 is x0_weight times that between the outputs."""
    x, out = pair(seed=4)
    other = out + pair(seed=5)[0]
    c = at(S)
    x0_error = (td.decode(target, c, x, out).x0 - td.decode(target, c, x, other).x0) ** 2
    weighted = targets.x0_weight(target, c) * (out - other) ** 2
    close(weighted / x0_error, torch.ones_like(x), 1e-8)


@every()
def test_equivalent_losses(S):
    c = at(S)
    snr = (c.alpha / c.sigma) ** 2
    weight = {name: 1 / targets.x0_weight(target, c) for name, target in ALL.items()}
    ones = torch.ones_like(snr)
    close(weight["x0"] * ones, ones, 1e-12)
    close(weight["eps"], snr, 1e-12)
    close(weight["score"], c.alpha**2 / c.sigma**4, 1e-12)
    if S in [EVERY[name] for name in PRESERVING]:
        close(weight["v"], snr + 1, 1e-12)


# ---- Prediction ----------------------------------------------------------------------------------


@every()
def test_another_belief_of_the_same_x(S):
    x, x0 = pair(seed=6)
    c = at(S)
    var = lambda ct, cs: ct.sigma  # noqa: E731
    p = td.decode(targets.v, c, x, pair(seed=7)[0], var)
    q, r = p.with_x0(x0, c), p.with_eps(x0, c)
    assert torch.equal(q.x0, x0) and torch.equal(r.eps, x0) and q.var is r.var is var
    close(c.alpha * q.x0 + c.sigma * q.eps, x, 1e-10)
    close(c.alpha * r.x0 + c.sigma * r.eps, x, 1e-10)


@every()
def test_velocity_of_a_belief_is_the_probability_flow(S):
    """dx/dt = f x - g^2 score / 2 (Song et al. 2021, eq. 13)."""
    x0, eps = pair(seed=8)
    c = at(S)
    p, x = td.Prediction(x0, eps), c.alpha * x0 + c.sigma * eps
    close(p.velocity(c), c.drift * x - c.diffusion2 * p.score(c) / 2, 1e-10)
    close(p.velocity(c), td.encode(targets.velocity, c, x0, eps), 1e-13)
    close(p.score(c), -eps / c.sigma, 1e-13)


# ---- ends, names, targets of one's own -----------------------------------------------------------


def test_v_and_edm_are_decoded_at_both_ends():
    x, out = pair((2, 3))
    c = at(td.Cosine(float("inf")), torch.tensor([0.0, 1.0], dtype=F64))
    p = td.decode(targets.v, c, x, out)
    close(p.x0, torch.stack([x[0], -out[1]])), close(p.eps, torch.stack([out[0], x[1]]))
    p = td.decode(targets.edm(1.0), c, x, out)
    close(p.x0, torch.stack([x[0], out[1]])), close(p.eps, torch.stack([-out[0], x[1]]))


def test_a_target_of_ones_own():
    def residual(c):
        """x0 less x."""
        return 1 - c.alpha, -c.sigma

    x0, eps = pair()
    c = at(td.VP())
    x = c.alpha * x0 + c.sigma * eps
    close(td.encode(residual, c, x0, eps), x0 - x, 1e-13)
    close(td.decode(residual, c, x, x0 - x).x0, x0, 1e-10)
    assert targets.check_target(residual) is residual


def test_names():
    assert targets.name_of(targets.eps) == "eps" and targets.name_of(targets.edm(0.5)) == "edm(sigma_data=0.5)"


def test_images_are_decoded_element_by_element():
    x, out = pair((2, 1, 4, 4))
    t = torch.tensor([0.2, 0.7], dtype=F64)
    whole = td.decode(targets.v, at(td.VP(), t, like=x), x, out)
    for i in range(2):
        one = td.decode(targets.v, coefs(td.VP(), t[i]), x[i].reshape(-1), out[i].reshape(-1))
        close(whole.x0[i].reshape(-1), one.x0, 1e-14)
