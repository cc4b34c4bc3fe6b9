"""DDPM and DDIM step by step against the schedulers of diffusers, in float64 and with the same noise.

diffusers counts its steps from 0, and its step k is our time (k + 1) / T. It builds its tables in float32: they are
replaced here by the same numbers in float64.
"""

import pytest
import torch

import tinydiff as td
from tinydiff.samplers import large, learned, small

diffusers = pytest.importorskip("diffusers")

F64 = torch.float64
T = 1000
BETAS = td.linear_betas(T)
S = td.DiscreteVP(BETAS)
DATA = td.GaussianMixture(
    torch.tensor([[-0.5, 0.5], [0.5, 0.2], [0.1, -0.6]], dtype=F64),
    torch.tensor([0.05, 0.1, 0.2], dtype=F64),
    [0.5, 0.3, 0.2],
    S,
)


def scheduler(kind, **options):
    s = kind(num_train_timesteps=T, beta_schedule="linear", clip_sample=False, **options)
    s.betas, s.alphas = BETAS, 1 - BETAS
    s.alphas_cumprod = s.alphas.cumprod(0)
    s.one = s.final_alpha_cumprod = torch.tensor(1.0, dtype=F64)
    return s


def noise(seed):
    return torch.Generator().manual_seed(seed)


def start(n=5):
    return torch.randn(n, 2, generator=noise(9), dtype=F64)


def eps(x, index):
    return DATA(x, (int(index) + 1) / T).eps


def same(states, s, x, indices, output=eps, **options):
    """Both runs side by side; each starts every step from its own x, so that errors would add up."""
    ours = list(states)
    assert len(ours) == len(indices)
    for state, k in zip(ours, indices, strict=True):
        step = s.step(output(x, k), k, x, **options)
        torch.testing.assert_close(state.x0, step.pred_original_sample, atol=1e-10, rtol=1e-10)
        x = step.prev_sample
        torch.testing.assert_close(state.x, x, atol=1e-12, rtol=1e-12)


def ddpm(kind, n=None):
    s = scheduler(diffusers.DDPMScheduler, variance_type=kind, timestep_spacing="leading", steps_offset=0)
    if n:
        s.set_timesteps(n)
    return s


@pytest.mark.parametrize("kind, var", [("fixed_small", small), ("fixed_large", large)])
@pytest.mark.parametrize("first", [1000, 510, 20], ids=["start", "middle", "end"])
def test_ddpm_on_the_whole_chain(kind, var, first):
    """Twenty steps of the full chain; at the end, the step into the data."""
    indices = list(range(first - 1, first - 21, -1))
    ts = torch.tensor([k + 1 for k in indices] + [first - 20], dtype=F64) / T
    x = start()
    ours = td.ancestral(DATA, x, ts, var=var, generator=noise(1))
    same(ours, ddpm(kind), x, indices, generator=noise(1))


@pytest.mark.parametrize("kind, var", [("fixed_small", small), ("fixed_large", large)])
@pytest.mark.parametrize("n", [10, 50, 30])
def test_ddpm_on_a_part_of_the_chain(kind, var, n):
    x, s = start(), ddpm(kind, n)
    ours = td.ancestral(DATA, x, td.grid(S, n, td.leading), var=var, generator=noise(2))
    same(ours, s, x, s.timesteps.tolist(), generator=noise(2))


class Wide(torch.nn.Module):
    """The exact noise, and a variance between the small and the large and somewhat beyond."""

    def forward(self, x, noise_level):
        t = noise_level / 1000
        return torch.cat([DATA(x, t).eps, 1.3 * (3 * x).sin()], 1)


@pytest.mark.parametrize("n", [10, 50])
def test_ddpm_with_a_learned_range(n):
    d = td.NetDenoiser(Wide(), S, td.targets.eps, var=td.denoisers.interpolated_variance)
    x, s = start(), ddpm("learned_range", n)
    ours = td.ancestral(d, x, td.grid(S, n, td.leading), var=learned, generator=noise(3))

    def output(x, k):
        return d.net(x, torch.full((len(x),), k + 1.0, dtype=F64))

    same(ours, s, x, s.timesteps.tolist(), output, generator=noise(3))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("name", ["leading", "trailing"])
def test_ddim(name, n, eta):
    s = scheduler(diffusers.DDIMScheduler, timestep_spacing=name, steps_offset=0, set_alpha_to_one=True)
    s.set_timesteps(n)
    x = start()
    ours = td.ddim(DATA, x, td.grid(S, n, getattr(td, name)), eta=eta, generator=noise(4))
    same(ours, s, x, s.timesteps.tolist(), eta=eta, generator=noise(4))


@pytest.mark.parametrize("n", [10, 50, 1000])
def test_the_indices_of_diffusers_are_our_times(n):
    for name in ("leading", "trailing"):
        s = scheduler(diffusers.DDIMScheduler, timestep_spacing=name, steps_offset=0)
        s.set_timesteps(n)
        assert [round(float(t) * T) - 1 for t in td.grid(S, n, getattr(td, name))[:-1]] == s.timesteps.tolist()


@pytest.mark.parametrize("name", ["sample", "v_prediction"])
def test_other_targets(name):
    target = {"sample": td.targets.x0, "v_prediction": td.targets.v}[name]
    s = scheduler(diffusers.DDIMScheduler, timestep_spacing="leading", steps_offset=0, prediction_type=name)
    s.set_timesteps(20)
    x = start()

    def output(x, k):
        t = (k + 1) / T
        p = DATA(x, t)
        return td.encode(target, S(t, like=x), p.x0, p.eps)

    same(td.ddim(DATA, x, td.grid(S, 20, td.leading)), s, x, s.timesteps.tolist(), output)


def test_the_tables_of_betas():
    for ours, name in ((BETAS, "linear"), (td.cosine_betas(T), "squaredcos_cap_v2")):
        theirs = diffusers.DDPMScheduler(num_train_timesteps=T, beta_schedule=name).betas
        torch.testing.assert_close(ours.float(), theirs, atol=1e-7, rtol=2e-4)  # theirs are computed in float32
    stable = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, **stable).betas
    torch.testing.assert_close(td.scaled_linear_betas(T).float(), theirs, atol=1e-8, rtol=1e-5)


def test_noising():
    s, t = scheduler(diffusers.DDPMScheduler), torch.tensor([0, 300, 999])
    x0, e = DATA.sample(3, noise(0)), start(3)
    c = S((t + 1).double() / T, like=x0)
    torch.testing.assert_close(c.alpha * x0 + c.sigma * e, s.add_noise(x0, e, t), atol=1e-13, rtol=0)
