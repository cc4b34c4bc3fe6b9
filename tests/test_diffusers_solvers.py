"""Solvers, flows, predictor-corrector, inversion and multistep sampling against the schedulers of diffusers.

These keep their tables, and mostly their samples, in float32, so the agreement is to 1e-5. Each scheduler is asked for
its own list of noise levels; ours then run on the times at which our schedule has these levels.
"""

import math

import pytest
import torch

import tinydiff as td
from tinydiff import targets

diffusers = pytest.importorskip("diffusers")

# their code of Heun, Euler and DPM-Solver calls numpy in a way that it will stop taking
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

F64 = torch.float64
T = 1000
S = td.DiscreteVP(td.linear_betas(T))
MEANS = torch.tensor([[-0.5, 0.5], [0.5, 0.2], [0.1, -0.6]], dtype=F64)
STDS = torch.tensor([0.05, 0.1, 0.2], dtype=F64)
LINEAR = dict(num_train_timesteps=T, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)


def mixture(schedule):
    return td.GaussianMixture(MEANS, STDS, [0.5, 0.3, 0.2], schedule)


def normal(*shape, seed=9):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def same(a, b, tol=1e-5):
    torch.testing.assert_close(a.double(), b.double(), atol=tol, rtol=tol)


def times(indices):
    """Our times of their indices, then the data."""
    return torch.tensor([k + 1 for k in indices] + [0], dtype=F64) / T


# ---- chains --------------------------------------------------------------------------------------


def run_chain(scheduler, x):
    """Their x after each step, fed with the exact noise."""
    d = mixture(S)
    for k in scheduler.timesteps.tolist():
        x = scheduler.step(d(x.double(), (k + 1) / T).eps, k, x).prev_sample
        yield x


@pytest.mark.parametrize("n", [10, 20, 40])
@pytest.mark.parametrize("order, ours", [(1, td.ddim), (2, td.dpmpp_2m)], ids=["first order", "2M"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_dpm_solver_multistep(spacing, order, ours, n):
    scheduler = diffusers.DPMSolverMultistepScheduler(**LINEAR, solver_order=order, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    x = normal(5, 2)
    theirs = list(run_chain(scheduler, x))
    for state, x in zip(ours(mixture(S), normal(5, 2), times(scheduler.timesteps.tolist())), theirs, strict=True):
        same(state.x, x)


def test_dpm_solver_that_ends_at_the_least_noise():
    """final_sigmas_type="sigma_min": the last step ends at the noise of index 0, and is of second order (n >= 15)."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**LINEAR, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(20)
    ts = torch.cat([times(scheduler.timesteps.tolist())[:-1], torch.tensor([1 / T], dtype=F64)])
    *_, theirs = run_chain(scheduler, normal(5, 2))
    same(td.final(td.dpmpp_2m(mixture(S), normal(5, 2), ts)), theirs)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("n", [10, 50])
def test_euler_discrete(n, spacing):
    """Theirs runs in x / alpha: scaled at both ends."""
    scheduler = diffusers.EulerDiscreteScheduler(**LINEAR, timestep_spacing=spacing, steps_offset=0)
    scheduler.set_timesteps(n)
    ts, x = times([round(k) for k in scheduler.timesteps.tolist()]), normal(5, 2)
    z = (x / S.alpha(ts[0])).float()
    for state, k, t in zip(td.euler(mixture(S), x, ts), scheduler.timesteps, ts, strict=False):
        seen = scheduler.scale_model_input(z, k)  # x / sqrt(sigma^2 + 1) is x on the path that preserves variance
        z = scheduler.step(mixture(S)(seen.double(), float(t)).eps.float(), k, z).prev_sample
        same(state.x / S.alpha(state.t), z)


@pytest.mark.parametrize("karras", [False, True])
def test_heun_discrete(karras):
    """On their own levels: 18 steps, 35 calls."""
    scheduler = diffusers.HeunDiscreteScheduler(**LINEAR, use_karras_sigmas=karras, timestep_spacing="linspace")
    scheduler.set_timesteps(18)
    levels = torch.unique_consecutive(scheduler.sigmas.double())
    E = td.EDM(sigma_min=float(levels[-2]), sigma_max=float(levels[0]))
    ts = torch.cat([E.time(-2 * levels[:-1].log()), torch.zeros(1, dtype=F64)])
    d, z = mixture(E), float(levels[0]) * normal(5, 2)
    *_, last = td.heun(d, z, ts)
    z, calls = z.float(), 0
    for k, level in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        t = E.time(torch.tensor(-2 * math.log(level), dtype=F64))
        z = scheduler.step(d(z.double(), float(t)).eps.float(), k, z).prev_sample
        calls += 1
    assert calls == 35
    same(last.x, z)


# ---- EDM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, ours", [("EDMEulerScheduler", td.euler), ("EDMDPMSolverMultistepScheduler", td.dpmpp_2m)]
)
def test_edm(name, ours):
    """Fed with the raw output F of EDM's network, which the exact denoiser stands in for."""
    scheduler = getattr(diffusers, name)(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(18)
    E = td.EDM(0.002, 80.0)
    ts, x = td.grid(E, 18), 80 * normal(5, 2)
    same(E.sigma(ts[:-1]), scheduler.sigmas[:-1], 5e-6)
    z = x.float()
    for state, k, t in zip(ours(mixture(E), x, ts), scheduler.timesteps, ts, strict=False):
        p = mixture(E)(z.double(), float(t))
        z = scheduler.step(td.encode(targets.edm(0.5), E(float(t), like=z), p.x0, p.eps).float(), k, z).prev_sample
        same(state.x, z)


# ---- the SDE of exploding variance ---------------------------------------------------------------


def test_predictor_and_corrector_of_the_ve_sde():
    """ScoreSdeVeScheduler: corrector, then the reverse-diffusion predictor; the last mean has no noise."""
    n, snr = 25, 0.16
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=n, sigma_min=0.01, sigma_max=50.0, snr=snr)
    scheduler.set_timesteps(n)
    scheduler.set_sigmas(n)
    V = td.VE(0.01, 50.0)
    d, ts, x = mixture(V), td.grid(V, n), 50 * normal(6, 2)
    same(V.sigma(ts[:-1]).flip(0), scheduler.discrete_sigmas, 2e-5)
    noise = torch.Generator().manual_seed(3)
    ours = td.predictor_corrector(d, x.float(), ts, snr=snr, generator=torch.Generator().manual_seed(3))
    z = x.float()
    for state, k, t in zip(ours, scheduler.timesteps, ts, strict=False):
        score = lambda z, t=float(t): d.score(z, t)  # noqa: E731
        z = scheduler.step_correct(score(z), z, generator=noise).prev_sample
        step = scheduler.step_pred(score(z), k, z, generator=noise)
        z = step.prev_sample
        if state.t > 0:
            same(state.x, z)
    same(state.x, step.prev_sample_mean)


# ---- consistency models, flows, inversion --------------------------------------------------------


def test_multistep_consistency():
    """The two-step sampler of Song et al. 2023: levels 80 and 1.3824 of a grid of 40."""
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, clip_denoised=False)
    scheduler.set_timesteps(timesteps=[22, 0])
    E = td.EDM(0.002, 80.0)
    ts = td.grid(E, 40)[[0, 22, 40]]
    assert float(E.sigma(ts[1])) == pytest.approx(1.3824, abs=1e-4)

    class Jump:
        """c_skip x + c_out F of the paper, for some network F."""

        schedule = E

        def __call__(self, x, t):
            level = E(t, like=x).sigma
            x0 = 0.25 / ((level - 0.002) ** 2 + 0.25) * x + 0.5 * (level - 0.002) / (level**2 + 0.25).sqrt() * self.F(
                x, level
            )
            return td.Prediction(x0, (x - x0) / level)

        @staticmethod
        def F(x, level):
            return (x / (level**2 + 0.25).sqrt()).sin()

    x, z, noise = 80 * normal(5, 2), 80 * normal(5, 2).float(), torch.Generator().manual_seed(4)
    ours = td.consistency_multistep(Jump(), x.float(), ts, generator=torch.Generator().manual_seed(4))
    for state, k, t in zip(ours, scheduler.timesteps, ts, strict=False):
        out = Jump.F(z, E(float(t), like=z).sigma)
        z = scheduler.step(out, k, z, generator=noise).prev_sample
        same(state.x, z)


def test_trigflow_in_two_steps():
    """SCMScheduler on t = atan(160), 1.1, 0; model_output is sigma_data F, and x is scaled by sigma_data."""
    sd, angles = 0.5, [math.atan(160.0), 1.1, 0.0]
    scheduler = diffusers.SCMScheduler(sigma_data=sd)
    scheduler.set_timesteps(2, max_timesteps=angles[0], intermediate_timesteps=angles[1])
    C = td.Cosine()
    scaled = td.GaussianMixture(MEANS / sd, STDS / sd, [0.5, 0.3, 0.2], C)
    ts = torch.tensor(angles, dtype=F64) * 2 / math.pi
    x = normal(5, 2).float()
    z, noise = sd * x, torch.Generator().manual_seed(4)
    ours = td.consistency_multistep(scaled, x, ts, generator=torch.Generator().manual_seed(4))
    for state, k, t in zip(ours, scheduler.timesteps, ts, strict=False):
        p = scaled((z / sd).double(), float(t))
        v = td.encode(targets.v, C(float(t), like=z.double()), p.x0, p.eps)
        z = scheduler.step(sd * v.float(), k, z, generator=noise).prev_sample
        same(sd * state.x, z)


@pytest.mark.parametrize("ours", [td.euler, td.probability_flow], ids=["euler", "in t"])
def test_flow_match_euler(ours):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=torch.linspace(0.98, 0.05, 12).tolist())
    Fl = td.Flow()
    ts, x = scheduler.sigmas.double(), normal(5, 2)
    z = x.float()
    for state, k, t in zip(ours(mixture(Fl), x, ts), scheduler.timesteps, ts, strict=False):
        v = mixture(Fl)(z.double(), float(t)).velocity(Fl(float(t), like=z.double()))
        z = scheduler.step(v.float(), k, z).prev_sample
        same(state.x, z)


def test_ddim_inverse():
    """Theirs asks for the noise at the target of a step (`ahead`): 0, 20, ... 980, from the data on."""
    scheduler = diffusers.DDIMInverseScheduler(
        **LINEAR, clip_sample=False, timestep_spacing="leading", set_alpha_to_one=True
    )
    scheduler.set_timesteps(50)
    indices = scheduler.timesteps.tolist()
    assert indices == list(range(0, 1000, 20))
    x = mixture(S).sample(5, torch.Generator().manual_seed(1))
    z = x.float()
    for state, k in zip(td.ddim_inverse(mixture(S), x, times(indices[::-1]), ahead=True), indices, strict=True):
        z = scheduler.step(mixture(S)(z.double(), (k + 1) / T).eps.float(), k, z).prev_sample
        same(state.x, z)
