"""The study of Improved DDPM measures what it says: against the library's bound, and against exact gradients."""

import json
import math
from dataclasses import replace

import pytest
import torch

import tinydiff as td
from tinydiff import likelihood, metrics
from tinydiff.denoisers import denoiser as as_denoiser
from tinydiff.recipes import study_improved as study
from tinydiff.samplers import large, learned, small

S = replace(study.Settings(), chain=40, width=16, depth=2, steps=3, samples=20, sampling_steps=(4, 40), gradients=6)
DIGITS = study.digits()[1][:6]


def untrained(betas=td.linear_betas, seed=0):
    """A network whose last layer is not 0, so that belief and variance depend on x."""
    d = study.denoiser(S, betas)
    torch.nn.init.normal_(d.net.last.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return d


def test_digits_are_rows_of_17_levels():
    real, test = study.digits()
    assert real.shape == (1437, 64) and test.shape == (360, 64)
    assert set(((real + 1) * 8).flatten().tolist()) == set(range(17))


@pytest.mark.parametrize("betas", [td.linear_betas, td.cosine_betas])
@pytest.mark.parametrize("n", [5, 40])
def test_bits_are_those_of_the_bound_one_variance_at_a_time(betas, n):
    """The network is asked once for all variances; the result is what three separate calls give."""
    d = untrained(betas)
    found = study.bits(d, DIGITS, ("small", "large", "learned"), n, seed=3)
    ts, clip = td.grid(d.schedule, n, td.strided), td.thresholded(d, td.static())
    before = float(ts[-3])
    for name, var in (("small", small), ("large", large), ("learned", learned)):
        decoder_var = likelihood.clipped(learned if name == "learned" else small, d.schedule, before)
        b = likelihood.bound(
            clip,
            DIGITS,
            ts,
            var=var,
            decoder=study.decoder,
            decoder_var=decoder_var,
            generator=torch.Generator().manual_seed(3),
        )
        assert found[name]["total"] == pytest.approx(b.total.mean().item(), rel=1e-5)
        assert found[name]["prior"] == pytest.approx(b.prior.mean().item(), rel=1e-5)
        assert found[name]["terms"] == pytest.approx(b.terms.mean(1).tolist(), rel=1e-4, abs=1e-6)
    assert len({round(f["total"], 3) for f in found.values()}) == 3


def test_x0_is_clipped_in_bits():
    """A belief far outside [-1, 1] counts as one at the edge."""
    wild = as_denoiser(lambda x, t: td.Prediction(x + 50, x, None), td.DiscreteVP(td.linear_betas(10)))
    edge = as_denoiser(lambda x, t: td.Prediction(torch.ones_like(x), x, None), wild.schedule)
    a, b = (study.bits(d, DIGITS, ("large",), 10)["large"]["total"] for d in (wild, edge))
    assert a == pytest.approx(b, rel=1e-6)


def test_quick_bits_estimate_the_terms():
    """Without the prior, which is 0.002 or less here. 18 digits a step: within 0.1 of 360 (measured 0.02 to 0.05)."""
    for betas in (td.linear_betas, td.cosine_betas):
        d, test = study.denoiser(S, betas), study.digits()[1]
        whole = study.bits(d, test, ("large",), S.chain)["large"]
        assert study.quick_bits(d, test, large) == pytest.approx(whole["total"] - whole["prior"], rel=0.03)


def test_the_early_ends_decode_with_the_error_of_the_training_digits():
    real, test = study.digits()
    d = study.denoiser(S, td.linear_betas)  # believes in no noise: x0 = x / alpha, clipped
    rows = study.ends(d, real, test[:100])
    assert [r["k"] for r in rows] == list(study.FIRST_STEPS)
    for r in rows[::3]:
        c = d.schedule(r["k"] / S.chain, like=real)
        g = torch.Generator().manual_seed(9)
        guess = (real + c.sigma / c.alpha * torch.randn(real.shape, generator=g)).clamp(-1, 1)
        rmse = (guess - real).square().mean().sqrt().item()
        assert r["rmse"] == pytest.approx(rmse, rel=0.02)
        assert r["sigma"] == pytest.approx(float(c.sigma[0]), rel=1e-6)
        # at x0_hat = x0 the decoder gives no less than this
        mass = math.erf(1 / 16 / rmse / 2**0.5)
        assert r["bits"] > 0 and r["bits"] > -0.5 * math.log2(mass)


def test_gradient_noise_is_without_bias():
    """One weight w, losses (w - z)^2 / 2 with z = +-1: the gradient of a batch of n has variance 1 / n."""

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5))

    def loss(d, x, t):
        return (d.net.w - x[:, 0].sign()) ** 2 / 2

    d = type("D", (), {"net": One()})()
    x = torch.cat([torch.ones(500, 1), -torch.ones(500, 1)])
    found = [study.noise_of(d, loss, x, lambda n: torch.zeros(n), 4, 3, seed) for seed in range(1000)]
    trace = torch.tensor([f["trace"] for f in found]).mean().item()
    square = torch.tensor([f["square"] for f in found]).mean().item()
    # 3 batches of 4, 1,000 times: standard errors of 0.008 and 0.009; without its correction each is 0.08 off
    assert trace == pytest.approx(1 / 4, abs=0.04)
    assert square == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("objective", study.OBJECTIVES[1:])
def test_gradient_noise_runs_for_each_loss(objective):
    d = untrained()
    before = torch.get_rng_state()
    a, b = (study.gradient_noise(d, S, objective) for _ in range(2))
    assert a == b and a["trace"] > 0 and torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in d.net.parameters())


@pytest.mark.parametrize("objective", study.OBJECTIVES)
def test_each_objective_trains(objective):
    d = study.denoiser(S, td.linear_betas)
    before = [p.clone() for p in d.net.parameters()]
    steps = list(study.train(S, d, objective))
    assert len(steps) == 3 and math.isfinite(steps[-1].loss)
    moved = [not torch.equal(p, q) for p, q in zip(before, d.net.parameters(), strict=True)]
    assert moved[-1]  # of the last layer
    variance = d.net.last.bias[64:].detach()
    assert (variance == 0).all() == (objective == "L_simple")


def test_quality_is_of_the_samples_of_the_strided_chain():
    d = study.denoiser(S, td.cosine_betas)
    got = study.quality(d, S, small)
    assert set(got) == {"4", "40"}
    x = td.sample(
        td.thresholded(d, td.static()),
        (20, 64),
        sampler=td.ancestral,
        ts=td.grid(d.schedule, 4, td.strided),
        seed=1000,
        var=small,
    )
    assert got["4"] == metrics.energy_distance(x, study.digits()[1])
    assert study.quality(d, S, lambda p, ct, cs: ct.sigma * math.inf)["4"] is None


def test_interpolation_is_that_of_the_second_half():
    d = study.denoiser(S, td.linear_betas)
    with torch.no_grad():
        d.net.last.bias[64:] = 0.5
        d.net.last.bias[:64] = -7.0
    assert study.interpolation(d, DIGITS) == pytest.approx([0.75] * S.chain)


def test_a_member_of_the_study_is_json_with_all_its_measures():
    row = study.member(replace(S, steps=2, measured_at=(2,), sampling_steps=(4, 40), gradients=2), "cosine", "L_hybrid")
    row = json.loads(json.dumps(study._rounded(row), allow_nan=False))
    assert set(row["variances"]) == {"small", "large", "learned"}
    for one in row["variances"].values():
        assert len(one["terms"]) == 40 and one["test"] == pytest.approx(one["prior"] + sum(one["terms"]), rel=1e-4)
        assert set(one["strided"]) == {"4"} and set(one["quality"]) == {"4", "40"}
    assert [n["loss"] for n in row["noise"]] == list(study.OBJECTIVES[1:]) and len(row["ends"]) == 10
    other = study.length(replace(S, steps=2, chain=5), "linear")
    assert other["chain"] == 5 and other["large"]["test"] > 0
