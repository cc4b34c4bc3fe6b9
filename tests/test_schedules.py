"""Schedules against closed forms derived by hand, against difference quotients, and against published constants."""

import math

import pytest
import torch
from scipy.integrate import quad

import tinydiff as td
from tinydiff import schedules

# torch's own, when forward-mode differentiation is first used

F64 = torch.float64

# every kind of schedule; other tests run over them too
EVERY = {
    "linear": td.DiscreteVP(td.linear_betas(1000)),
    "cosine betas": td.DiscreteVP(td.cosine_betas(100)),
    "VP": td.VP(),
    "SubVP": td.SubVP(),
    "VE": td.VE(),
    "EDM": td.EDM(),
    "Cosine": td.Cosine(),
    "Flow": td.Flow(),
    "Shifted Flow": td.Shifted(td.Flow(), 3.0),
    "Shifted VP": td.Shifted(td.VP(), 0.5),
    "Shifted EDM": td.Shifted(td.EDM(), 0.5),
}
PLAIN = [name for name in EVERY if not name.startswith("Shifted")]  # a shifted one takes long to invert
MOST = [*PLAIN, "Shifted Flow"]
PRESERVING = ("linear", "cosine betas", "VP", "Cosine", "Shifted VP")  # alpha^2 + sigma^2 = 1
TIMES = torch.tensor([0.0305, 0.1105, 0.2505, 0.5005, 0.6655, 0.8005, 0.9505], dtype=F64)  # between steps of chains


def every(*names):
    chosen = {name: EVERY[name] for name in names or EVERY}
    return pytest.mark.parametrize("S", chosen.values(), ids=chosen.keys())


def column(*values):
    return torch.tensor(values, dtype=F64)


def coefs(S, t):
    t = torch.as_tensor(t, dtype=F64).reshape(-1)
    return S(t, like=torch.empty(len(t), dtype=F64))


def difference(f, t, h=2e-5):
    """f' to fourth order."""
    return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)


# ---- published constants -------------------------------------------------------------------------


def test_ddpm_constants():
    S = td.DiscreteVP(td.linear_betas(1000))
    abar = S.alpha(torch.arange(1, 1001, dtype=F64) / 1000) ** 2
    assert float(abar[-1]) == pytest.approx(4.035830e-5, rel=1e-6)
    assert float(S.alpha(1.0)) == pytest.approx(0.006353, abs=5e-7)
    assert float(abar[499]) == pytest.approx(0.0786, abs=5e-5)
    assert float((abar / (1 - abar))[0]) == pytest.approx(9999, abs=1e-6)
    assert float((abar / (1 - abar))[-1]) == pytest.approx(4.036e-5, rel=1e-3)
    for second_moment, bits in ((1.0, 2.911e-5), (0.25, 7.28e-6)):  # KL to N(0, 1), a dimension
        kl = (abar[-1] * second_moment - abar[-1] - torch.log1p(-abar[-1])) / 2 / math.log(2)
        assert float(kl) == pytest.approx(bits, rel=1e-3)


def test_linear_betas_of_other_lengths():
    last = {T: float((1 - td.linear_betas(T)).prod()) for T in (100, 4000)}
    assert last[4000] == pytest.approx(4.247e-5, rel=1e-3) and last[100] == pytest.approx(2.039e-5, rel=1e-3)
    assert float(td.linear_betas(100)[-1]) == pytest.approx(0.2)
    assert float(td.linear_betas(10)[-1]) == 0.999  # would be 2
    assert td.linear_betas(10).dtype == F64


@pytest.mark.parametrize("T", [100, 1000, 4000])
def test_one_beta_of_the_cosine_schedule_is_cut(T):
    betas = td.cosine_betas(T)
    assert betas.shape == (T,) and (betas == 0.999).sum() == 1 and betas[-1] == 0.999
    k = torch.arange(T, dtype=F64)
    wanted = (((k / T + 0.008) / 1.008 * math.pi / 2).cos() / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    torch.testing.assert_close((1 - betas).cumprod(0)[:-1], wanted[1:], atol=1e-13, rtol=1e-9)


def test_cosine_constants():
    betas = td.cosine_betas(1000)
    abar = (1 - betas).cumprod(0)
    assert float(betas[0]) == pytest.approx(4.128e-5, rel=1e-3)
    assert float(abar[-1]) == pytest.approx(2.43e-9, rel=5e-3)
    assert float(abar[-2]) == pytest.approx(2.43e-6, rel=5e-3)
    assert float(abar[499]) == pytest.approx(0.4938, abs=5e-5)


def test_the_vp_sde_and_its_chain():
    assert float(td.VP().alpha(1.0)) ** 2 == pytest.approx(math.exp(-10.05), rel=1e-12)
    assert math.exp(-10.05) == pytest.approx(4.3186e-5, rel=1e-4)
    t = torch.linspace(0, 1, 1000, dtype=F64)
    torch.testing.assert_close(linear_beta(t) / 1000, td.linear_betas(1000), atol=1e-17, rtol=1e-13)


def test_scaled_linear_betas_have_an_even_square_root():
    betas = td.scaled_linear_betas(1000)
    torch.testing.assert_close(betas[[0, -1]], column(0.00085, 0.012), atol=0, rtol=1e-13)
    assert float(betas.sqrt().diff().std()) < 1e-15
    assert float((1 - betas).prod()) == pytest.approx(0.0047, abs=5e-5)


# ---- chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 10, 1000])
def test_a_chain_is_the_product_of_its_steps(T):
    betas = torch.linspace(0.001, 0.02, T, dtype=F64)
    S = td.DiscreteVP(betas)
    abar = (1 - betas).cumprod(0)
    t = torch.arange(1, T + 1, dtype=F64) / T
    torch.testing.assert_close(S.alpha(t), abar.sqrt(), atol=1e-14, rtol=0)
    torch.testing.assert_close(S.sigma(t) ** 2, 1 - abar, atol=1e-14, rtol=0)
    assert S.steps == T and S.t_min == 1 / T and not S.jumps and S.prior_std == 1


def test_float32_times_of_a_chain_mean_its_steps():
    S = td.DiscreteVP(td.linear_betas(1000))
    t = torch.arange(1, 1001) / 1000  # float32
    exact = S.alpha(t.double().mul(1000).round() / 1000)
    assert torch.equal(S(t, like=torch.empty(1000, dtype=F64)).alpha, exact)
    assert S.alpha(t).dtype == torch.float32


def test_between_the_steps_of_a_chain_log_alpha_bar_is_a_straight_line():
    S = td.DiscreteVP([0.1, 0.2, 0.5])
    ends, share = S.alpha(column(1 / 3, 2 / 3)).log(), 0.3
    between = S.alpha((1 + share) / 3).log()
    torch.testing.assert_close(between, ends[0] + share * (ends[1] - ends[0]), atol=1e-14, rtol=0)


def test_a_part_of_a_chain_is_a_chain():
    betas = td.linear_betas(1000)
    S = td.DiscreteVP(betas)
    abar = (1 - betas).cumprod(0)[19::20]  # every twentieth
    coarse = td.DiscreteVP(1 - abar / torch.cat([column(1.0), abar[:-1]]))
    t = torch.arange(1, 51, dtype=F64) / 50
    torch.testing.assert_close(coarse.alpha(t), S.alpha(t), atol=1e-15, rtol=1e-13)


def test_betas_can_be_learnt():
    betas = torch.full((4,), 0.2, dtype=F64, requires_grad=True)
    alpha = td.DiscreteVP(betas)(0.75, like=torch.empty(1, dtype=F64)).alpha
    alpha.sum().backward()
    slope = -0.5 * 0.8**0.5  # d/dbeta_1 of sqrt((1 - beta_1)(1 - beta_2)(1 - beta_3))
    torch.testing.assert_close(betas.grad, column(slope, slope, slope, 0.0), atol=1e-14, rtol=0)


def test_a_chain_prints_what_it_is():
    assert repr(td.DiscreteVP(td.linear_betas(1000))) == "DiscreteVP(1000 betas from 0.0001 to 0.02)"


# ---- grids ---------------------------------------------------------------------------------------

SPACINGS = {"uniform": td.uniform, "logsnr": td.logsnr_uniform, "karras": td.karras(), "rho 3": td.karras(3.0)}


@every(*PLAIN)
@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS.keys())
def test_grids_fall_from_t_max_to_zero(S, spacing):
    for n in (1, 2, 7):
        ts = td.grid(S, n, spacing)
        assert ts.shape == (n + 1,) and ts.dtype == F64
        assert ts[0] == S.t_max and ts[-1] == 0 and (ts.diff() < 0).all()
        assert ts[-2] >= S.t_min * (1 - 1e-9)


def test_the_even_grid():
    torch.testing.assert_close(td.grid(td.VP(), 4), column(1, 0.75, 0.5, 0.25, 0), atol=1e-15, rtol=0)
    assert torch.equal(td.grid(td.VP(), 4), td.grid(td.VP(), 4, td.uniform))
    assert td.grid(td.VE(), 4)[-2] == td.VE().t_min  # the smallest noise is a step of its own


def karras_sigmas(n, low=0.002, high=80.0, rho=7.0):
    """Karras et al. 2022, eq. 5."""
    return column(
        *[(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    )


@pytest.mark.parametrize("n", [2, 18, 40])
def test_karras_grid(n):
    for S, spacing in ((td.EDM(), None), (td.EDM(), td.karras(7.0)), (td.VE(0.002, 80.0), td.karras(7.0))):
        sigmas = S.sigma(td.grid(S, n, spacing))
        assert sigmas.shape == (n + 1,) and sigmas[-1] == 0
        torch.testing.assert_close(sigmas[:-1], karras_sigmas(n), atol=0, rtol=1e-10)
    S = td.VP()  # on any schedule the noise-to-signal ratio is spaced so
    low, high = (float((-S.logsnr(t) / 2).exp()) for t in (S.t_min, S.t_max))
    ratios = (-S.logsnr(td.grid(S, n, td.karras(3.0))) / 2).exp()[:-1]
    torch.testing.assert_close(ratios, karras_sigmas(n, low, high, 3.0), atol=0, rtol=1e-8)


@every(*PLAIN)
def test_the_logsnr_grid_is_even_in_logsnr(S):
    gaps = S.logsnr(td.grid(S, 9, td.logsnr_uniform)[:-1]).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(8), atol=1e-8, rtol=0)


def test_grids_of_a_shifted_schedule():
    S = td.Shifted(td.Flow(), 3.0)
    for spacing in (td.uniform, td.logsnr_uniform):
        ts = td.grid(S, 4, spacing)
        assert ts.shape == (5,) and ts[0] == S.t_max and ts[-1] == 0 and (ts.diff() < 0).all()


@pytest.mark.parametrize("n", [1, 10, 20, 50, 100, 1000])
def test_leading_and_trailing_against_the_indices_of_ddim(n):
    """Official index k, counted from 0, is our time (k + 1) / T."""
    S = td.DiscreteVP(td.linear_betas(1000))
    index = [k + 1 for k in range(0, 1000, 1000 // n)][::-1]
    torch.testing.assert_close(td.grid(S, n, td.leading) * 1000, column(*index, 0), atol=1e-10, rtol=0)
    index = [k for k in range(1000, 0, -(1000 // n))]
    torch.testing.assert_close(td.grid(S, n, td.trailing) * 1000, column(*index, 0), atol=1e-10, rtol=0)


def test_strided_steps_are_those_of_improved_ddpm():
    """The indices of its `space_timesteps(1000, "50")`, which counts from 0: strides of 999 / 49, both ends kept."""
    S = td.DiscreteVP(td.linear_betas(1000))
    index = (td.grid(S, 50, td.strided)[:-1] * 1000 - 1).flip(0)
    torch.testing.assert_close(index[[0, 1, 2, 3, -3, -2, -1]], column(0, 20, 41, 61, 958, 979, 999), atol=1e-9, rtol=0)
    for n, steps in ((5, 200), (7, 12), (33, 1000), (12, 12)):
        S = td.DiscreteVP(td.linear_betas(steps))
        expected = [round(i * (steps - 1) / (n - 1)) + 1 for i in range(n)]  # as there, half to even
        got = td.grid(S, n, td.strided)
        torch.testing.assert_close(got.flip(0) * steps, column(0, *expected), atol=1e-9, rtol=0)
    assert td.grid(S, 1, td.strided).tolist() == [1, 0]  # one step comes from pure noise


@pytest.mark.parametrize("betas", [td.linear_betas, td.cosine_betas])
def test_betas_of_a_strided_chain_are_those_of_its_alpha_bars(betas):
    """1 - abar_t / abar_s, the betas of Improved DDPM's respaced chain, which has alpha-bar at the steps it kept."""
    S = td.DiscreteVP(betas(1000))
    ts = td.grid(S, 50, td.strided)[:-1]
    k = (ts * 1000).round().long() - 1
    abar = torch.cumprod(1 - S.betas, 0)[k].flip(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    sub = td.DiscreteVP(1 - abar / before)
    every = torch.arange(1, 51, dtype=torch.float64) / 50
    # cumprod against cumsum of log1p: 1e-13 of rounding; the cosine's last abar is 2.4e-9, of which beta keeps 7 digits
    torch.testing.assert_close(sub.alpha(every) ** 2, abar, atol=1e-13, rtol=0)
    x = torch.zeros(50, 1, dtype=torch.float64)
    ct, cs = S(ts, like=x), S(torch.cat([ts[1:], ts.new_zeros(1)]), like=x)
    beta = (ct.new_noise(cs) * ct.sigma**2)[:, 0].flip(0)
    torch.testing.assert_close(beta, sub.betas, atol=1e-13, rtol=0)


def test_leading_and_trailing_where_n_does_not_divide_the_steps():
    S = td.DiscreteVP(td.linear_betas(10))
    torch.testing.assert_close(td.grid(S, 3, td.leading) * 10, column(7, 4, 1, 0), atol=1e-12, rtol=0)
    torch.testing.assert_close(td.grid(S, 3, td.trailing) * 10, column(10, 7, 4, 0), atol=1e-12, rtol=0)


# ---- the two rules that hold for all -------------------------------------------------------------


@every()
def test_ends_and_the_two_rules(S):
    c = coefs(S, [0.0, S.t_min / 3, S.t_min, 1.0, S.t_max])
    assert c.alpha[0] == 1 and c.sigma[0] == 0 and c.logsnr[0] == math.inf
    assert c.sigma[1] == c.sigma[2] > 0 and c.alpha[1] == c.alpha[2] > 0
    assert c.sigma[3] == c.sigma[4] and c.alpha[3] == c.alpha[4]
    assert float(S.alpha(0)) == 1 and float(S.sigma(0)) == 0


@every()
def test_outside_the_range_nothing_moves(S):
    c = coefs(S, [0.0, S.t_min / 3] + ([1.0] if S.t_max < 1 else []))
    assert (c.dalpha == 0).all() and (c.dsigma == 0).all() and (c.diffusion2 == 0).all() and (c.drift == 0).all()


@every()
def test_noise_grows(S):
    t = torch.linspace(0.03, 0.96, 200, dtype=F64)  # a shift holds one end still
    assert (S.alpha(t).diff() <= 0).all() and (S.sigma(t).diff() > 0).all() and (S.logsnr(t).diff() < 0).all()


@every(*PRESERVING)
def test_variance_is_preserved(S):
    c = coefs(S, TIMES)
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones_like(TIMES), atol=1e-14, rtol=0)


@every()
def test_logsnr_is_twice_the_log_of_the_ratio(S):
    c = coefs(S, TIMES)
    torch.testing.assert_close(c.logsnr, (c.alpha**2 / c.sigma**2).log(), atol=1e-12, rtol=0)


@every(*(name for name in EVERY if name != "Shifted EDM"))
def test_sampling_starts_from_the_noise_that_is_there(S):
    c = coefs(S, S.t_max)
    assert float(c.alpha**2 + c.sigma**2) ** 0.5 == pytest.approx(S.prior_std, rel=1e-3)


def test_sampling_of_a_shifted_schedule_starts_from_the_noise_that_is_there():
    S = td.Shifted(td.EDM(), 0.5)
    assert float(S.sigma(S.t_max)) == pytest.approx(S.prior_std, rel=1e-9)


# ---- alpha and sigma in closed form --------------------------------------------------------------


def linear_beta(t):
    return 0.1 + t * (20 - 0.1)


def integral_of_beta(t):
    return torch.tensor([quad(linear_beta, 0, float(v), epsabs=1e-13)[0] for v in t], dtype=F64)


def u(t):
    return (t - 1e-5) / (1 - 1e-5)


EDM_ENDS = 0.002 ** (1 / 7), 80 ** (1 / 7)
SLOPE = (EDM_ENDS[1] - EDM_ENDS[0]) / (1 - 1e-5)


def edm_sigma(t):
    return (EDM_ENDS[0] + u(t) * (EDM_ENDS[1] - EDM_ENDS[0])) ** 7


CLOSED = {
    "VP": lambda t: ((-integral_of_beta(t) / 2).exp(), (1 - (-integral_of_beta(t)).exp()).sqrt()),
    "SubVP": lambda t: ((-integral_of_beta(t) / 2).exp(), 1 - (-integral_of_beta(t)).exp()),
    "VE": lambda t: (torch.ones_like(t), 0.01 * 5000 ** u(t)),
    "EDM": lambda t: (torch.ones_like(t), edm_sigma(t)),
    "Cosine": lambda t: ((math.pi * t / 2).cos(), (math.pi * t / 2).sin()),
    "Flow": lambda t: (1 - t, t),
    "Shifted Flow": lambda t: ((1 - t) / (1 + 2 * t), 3 * t / (1 + 2 * t)),  # Esser et al. 2024, eq. 23
    "Shifted EDM": lambda t: (torch.ones_like(t), edm_sigma(t) / 2),
    "Shifted VP": lambda t: (  # variance preserving, with odds alpha^2 / sigma^2 four times those of VP
        (1 / (1 + integral_of_beta(t).expm1() / 4)).sqrt(),
        (1 / (1 + 4 / integral_of_beta(t).expm1())).sqrt(),
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_alpha_and_sigma_in_closed_form(name):
    alpha, sigma = CLOSED[name](TIMES)
    c = coefs(EVERY[name], TIMES)
    torch.testing.assert_close(c.alpha, alpha, atol=1e-12, rtol=1e-11)
    torch.testing.assert_close(c.sigma, sigma, atol=1e-12, rtol=1e-11)


def test_other_parameters_than_the_defaults():
    t = TIMES
    torch.testing.assert_close(td.VP(0.5, 3.0).alpha(t), (-(0.5 * t + 2.5 * t**2 / 2) / 2).exp())
    torch.testing.assert_close(td.SubVP(0.5, 3.0).sigma(t), 1 - (-(0.5 * t + 2.5 * t**2 / 2)).exp())
    assert float(td.VE(0.1, 7.0).sigma(1e-5)) == pytest.approx(0.1, rel=1e-13)
    assert float(td.VE(0.1, 7.0).sigma(1.0)) == pytest.approx(7, rel=1e-13) and td.VE(0.1, 7.0).prior_std == 7
    assert float(td.EDM(0.1, 7.0, rho=3.0).sigma((1 + 1e-5) / 2)) == pytest.approx(
        ((0.1 ** (1 / 3) + 7 ** (1 / 3)) / 2) ** 3, rel=1e-12
    )
    for cut in (4.0, 20.0):
        for S in (td.Cosine(cut), td.Flow(cut)):
            ends = S.logsnr(column(S.t_min, S.t_max))
            torch.testing.assert_close(ends, column(cut, -cut), atol=1e-9, rtol=0)


def test_a_path_that_is_not_cut_ends_in_pure_noise():
    for S in (td.Cosine(math.inf), td.Flow(math.inf)):
        assert float(S.alpha(1.0)) == 0 and float(S.sigma(1.0)) == 1 and float(S.logsnr(1.0)) == -math.inf
        assert float(S.sigma(1e-9)) < 2e-9


# ---- drift and diffusion -------------------------------------------------------------------------

# f and g^2 by hand, from the papers or from the closed forms above
SDE = {
    "VP": lambda t: (-linear_beta(t) / 2, linear_beta(t)),
    "SubVP": lambda t: (-linear_beta(t) / 2, linear_beta(t) * (1 - (-2 * integral_of_beta(t)).exp())),
    "VE": lambda t: (0 * t, (0.01 * 5000 ** u(t)) ** 2 * 2 * math.log(5000) / (1 - 1e-5)),
    "EDM": lambda t: (0 * t, 2 * edm_sigma(t) * 7 * edm_sigma(t) ** (6 / 7) * SLOPE),
    "Cosine": lambda t: (-math.pi / 2 * (math.pi * t / 2).tan(), math.pi * (math.pi * t / 2).tan()),
    "Flow": lambda t: (-1 / (1 - t), 2 * t / (1 - t)),
    # s = 3: alpha = (1 - t) / (1 + 2t), sigma = 3t / (1 + 2t), so alpha' = -3 / (1 + 2t)^2 and sigma' = -alpha'
    "Shifted Flow": lambda t: (-3 / ((1 + 2 * t) * (1 - t)), 18 * t / ((1 + 2 * t) ** 2 * (1 - t))),
    # on a variance-preserving path f = -g^2 / 2 and g^2 = -sigma^2 logsnr', with logsnr of VP less a constant
    "Shifted VP": lambda t: (lambda g2: (-g2 / 2, g2))(
        linear_beta(t) / (1 - (-integral_of_beta(t)).exp()) * CLOSED["Shifted VP"](t)[1] ** 2
    ),
}


@pytest.mark.parametrize("name", SDE)
def test_drift_and_diffusion_by_hand(name):
    f, g2 = SDE[name](TIMES)
    c = coefs(EVERY[name], TIMES)
    torch.testing.assert_close(c.drift, f, atol=1e-9, rtol=1e-10)
    torch.testing.assert_close(c.diffusion2, g2, atol=1e-9, rtol=1e-10)


@pytest.mark.parametrize("T", [7, 1000])
def test_drift_and_diffusion_of_a_chain(T):
    betas = torch.linspace(0.001, 0.3, T, dtype=F64)
    k = torch.arange(1, T + 1, dtype=F64)
    for t in (k / T, (k - 0.37) / T):  # within a step log alpha-bar is a straight line; at k it ends
        c = coefs(td.DiscreteVP(betas), t)
        inside = t > 1 / T  # before the first step ends, t_min is meant, and nothing moves
        rate = -T * torch.log1p(-betas) * (inside | (t == 1 / T))
        torch.testing.assert_close(c.diffusion2, rate, atol=1e-9, rtol=1e-10)
        torch.testing.assert_close(c.drift, -rate / 2, atol=1e-9, rtol=1e-10)


@every()
def test_rates_against_difference_quotients(S):
    c = coefs(S, TIMES)
    # rounding leaves 1e-16 / 2e-5 times the size of the function
    torch.testing.assert_close(c.dalpha, difference(S.alpha, TIMES), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(c.dsigma, difference(S.sigma, TIMES), atol=1e-9, rtol=1e-9)


@every()
def test_diffusion_is_the_fall_of_the_logsnr_and_feeds_the_variance(S):
    c = coefs(S, TIMES)
    torch.testing.assert_close(c.diffusion2, -(c.sigma**2) * difference(S.logsnr, TIMES), atol=1e-9, rtol=1e-8)
    growth = difference(lambda t: S.sigma(t) ** 2, TIMES)  # dV/dt = 2 f V + g^2
    torch.testing.assert_close(2 * c.drift * c.sigma**2 + c.diffusion2, growth, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(c.drift, c.dalpha / c.alpha, atol=1e-13, rtol=1e-13)


# ---- shapes and dtypes ---------------------------------------------------------------------------

NAMES = ("alpha", "sigma", "logsnr", "dalpha", "dsigma", "drift", "diffusion2")


@every()
def test_coefficients_multiply_a_batch(S):
    for shape in ((3,), (3, 2), (3, 1, 4, 4)):
        for dtype in (torch.float32, F64):
            like = torch.zeros(shape, dtype=dtype)
            c = S(torch.tensor([0.1, 0.5, 0.9]), like=like)
            for name in NAMES:
                value = getattr(c, name)
                assert value.shape == (3, *[1] * (len(shape) - 1)) and value.dtype == dtype, name
            assert c.t.shape == (3,)
    one = S(0.5, like=torch.zeros(3, 2))
    assert one.alpha.shape == (3, 1) and (one.alpha == one.alpha[0]).all()


def test_alpha_sigma_and_logsnr_follow_the_time():
    S = td.VP()
    for t in (0.3, torch.tensor(0.3), torch.full((3,), 0.3, dtype=F64)):
        for f in (S.alpha, S.sigma, S.logsnr):
            assert f(t).shape == torch.as_tensor(t).shape
            assert f(t).dtype == (t.dtype if isinstance(t, torch.Tensor) else F64)


def test_float32_coefficients_are_rounded_from_float64():
    S = EVERY["linear"]
    t = torch.arange(1, 1001, dtype=F64) / 1000
    c, like = coefs(S, t), S(t, like=torch.empty(1000))
    for name in NAMES:
        assert torch.equal(getattr(like, name), getattr(c, name).float()), name


def test_a_schedule_of_ones_own():
    class Quadratic(td.Schedule):
        def path(self, t):
            return 1 - t**2, t

    S = Quadratic()
    c = coefs(S, [0.0, 0.5])
    torch.testing.assert_close(c.alpha, column(1.0, 0.75)) and torch.testing.assert_close(c.sigma, column(0.0, 0.5))
    torch.testing.assert_close(c.drift, column(0.0, -1 / 0.75), atol=1e-14, rtol=0)
    torch.testing.assert_close(S.time(S.logsnr(column(0.3))), column(0.3))
    assert td.grid(S, 5).shape == (6,)
    with pytest.raises(NotImplementedError):
        schedules.Schedule()(0.5, like=torch.empty(1))


# ---- the inverse ---------------------------------------------------------------------------------


@every(*PLAIN, "Shifted Flow")
def test_time_inverts_logsnr(S):
    torch.testing.assert_close(S.time(S.logsnr(TIMES)), TIMES, atol=1e-12, rtol=1e-11)


@every(*PLAIN)
def test_time_stays_in_its_range(S):
    assert float(S.time(column(1e4))) == S.t_min and float(S.time(column(-1e4))) == S.t_max


def test_time_stays_in_the_range_of_a_shifted_schedule():
    S = td.Shifted(td.EDM(), 0.5)
    assert float(S.sigma(S.time(column(1e4)))) == pytest.approx(0.002)


def test_time_inverts_logsnr_at_the_steps_of_a_chain():
    for S in (EVERY["linear"], EVERY["cosine betas"]):
        t = torch.arange(1, S.steps + 1, dtype=F64) / S.steps
        found = S.time(S.logsnr(t))
        assert ((found - t).abs() * S.steps).max() < 1.001e-4  # all of these times mean the step
        torch.testing.assert_close(S.logsnr(found), S.logsnr(t), atol=1e-4, rtol=0)


@every(*PLAIN)
def test_time_carries_its_derivative(S):
    logsnr = S.logsnr(TIMES).requires_grad_()
    (slope,) = torch.autograd.grad(S.time(logsnr).sum(), logsnr)
    torch.testing.assert_close(slope, 1 / difference(S.logsnr, TIMES), atol=1e-12, rtol=1e-8)


def test_a_shift_lowers_the_logsnr():
    for base in (td.Flow(), td.Cosine(), td.EDM(), td.DiscreteVP(td.linear_betas(1000))):
        for shift in (0.5, 2.0):
            fall = base.logsnr(TIMES[1:-2]) - td.Shifted(base, shift).logsnr(TIMES[1:-2])
            torch.testing.assert_close(fall, torch.full_like(fall, 2 * math.log(shift)), atol=1e-9, rtol=0)
        torch.testing.assert_close(td.Shifted(base).alpha(TIMES), base.alpha(TIMES), atol=1e-12, rtol=0)


def test_a_shift_of_a_path_that_is_not_cut():
    for base in (td.Flow(math.inf), td.Cosine(math.inf)):
        S = td.Shifted(base, 3.0)
        assert float(S.alpha(1.0)) == 0 and float(S.sigma(1.0)) == 1


def test_grids_of_a_shift_towards_the_data():
    ts = td.grid(td.Shifted(td.EDM(), 0.3), 6, td.logsnr_uniform)
    assert ts.isfinite().all() and (ts.diff() < 0).all()
