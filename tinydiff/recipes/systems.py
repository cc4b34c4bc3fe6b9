"""The systems of the ledger, notebook by notebook: what they imitate, how they are trained, how they draw.

`ledger` measures them. A new row is one more System at the end of its notebook's.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, dpm, metrics, targets
from tinydiff.exact import GaussianMixture
from tinydiff.guidance import bind, static, thresholded
from tinydiff.recipes import (
    digits,
    study_improved,
    study_ncsn,
    study_ncsn_toy,
    study_score_matching,
    study_sgld,
    swiss_roll,
)
from tinydiff.recipes import dpm as dpm_recipe
from tinydiff.recipes.base import last
from tinydiff.samplers import (
    ancestral,
    annealed_langevin,
    ddim,
    final,
    langevin,
    learned,
    mala,
    sample,
    sgld_constants,
    sgld_steps,
    stochastic_score,
)
from tinydiff.schedules import VE, DiscreteVP, grid, linear_betas, strided

# ---- data: (n, seed) -> n fresh draws ------------------------------------------------------------


def mixture(schedule: Any = None) -> GaussianMixture:
    """0.8 and 0.2 of the mass at (5, 5) and (-5, -5), unit covariance (Song & Ermon 2019, section 3.2.2)."""
    return GaussianMixture(torch.tensor([[5.0, 5.0], [-5.0, -5.0]]), 1.0, [0.8, 0.2], schedule or VE(1.0, 20.0))


def _draw_mixture(n: int, seed: int) -> Tensor:
    return mixture().sample(n, torch.Generator().manual_seed(seed))


def _draw_digits(n: int, seed: int) -> Tensor:
    real = datasets.digits_train().x0
    return real[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:n]]


@dataclass(frozen=True)
class Data:
    """What a system is to imitate.

    Attributes:
        draw: (n, seed=...) -> (n, ...) real data.
        n: how many samples are compared, with as many real ones.
        held_out: what samples are compared with, if real data are few; else a fresh draw.
    """

    name: str
    draw: Callable[..., Tensor]
    n: int = 2000
    held_out: Callable[[], Tensor] | None = None

    def reference(self, seed: int) -> Tensor:
        return self.draw(self.n, seed=20_000 + seed) if self.held_out is None else self.held_out()

    def floor(self, pairs: int = 9) -> float:
        """The median distance of real draws to the reference."""
        far = [distance(self.draw(self.n, seed=30_000 + k), self.reference(100 + k)) for k in range(pairs)]
        return statistics.median(far)


def distance(x: Tensor, y: Tensor) -> float:
    return abs(metrics.energy_distance(x, y))


def _draw_near(n: int, seed: int) -> Tensor:
    return study_score_matching.mixture().sample(n, torch.Generator().manual_seed(seed))


def _draw_posterior(n: int, seed: int) -> Tensor:
    return study_sgld.posterior_draws(study_sgld.draw_data(), n, seed)


SWISS_ROLL = Data("swiss roll", datasets.swiss_roll)
MIXTURE = Data("two far modes, 0.8 and 0.2", _draw_mixture)
NEAR = Data("three near modes", _draw_near)
POSTERIOR = Data("posterior of two means", _draw_posterior)
DIGITS = Data("digits, 8x8", _draw_digits, 360, lambda: datasets.digits_test().x0)


# ---- systems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """One row.

    Attributes:
        notebook: "01".
        train: seed -> what is asked for each step: a denoiser, a score, a log-density.
        draw: (that, counted; n, seed) -> n samples.
    """

    notebook: str
    name: str
    data: Data
    train: Callable[[int], Callable]
    draw: Callable[[Callable, int, int], Tensor]


# 01


def _swiss_roll(**options: Any) -> Callable[[int], Callable]:
    def train(seed: int) -> Callable:
        s = swiss_roll.Settings(seed=seed)
        return last(swiss_roll.train(s, swiss_roll.denoiser(s, **options)))

    return train


def _steps(n: int, **options: Any) -> Callable[[Callable, int, int], Tensor]:
    return lambda d, count, seed: sample(d, (count, 2), n=n, sampler=ancestral, seed=seed, **options)


def _digits(seed: int) -> Callable:
    return last(digits.train(digits.Settings(seed=seed)))


def _draw_labelled(d: Callable, n: int, seed: int) -> Tensor:
    asked = thresholded(bind(d, y=digits.labels(n)), static())
    return sample(asked, (n, 1, 8, 8), n=50, sampler=ddim, seed=seed)


# 02


def _dpm(seed: int) -> Callable:
    return dpm.fixed_first_step(dpm.up_to_date(last(dpm_recipe.train(dpm_recipe.Settings(seed=seed)))))


def _hybrid(seed: int) -> Callable:
    s = study_improved.Settings(seed=seed)
    return last(study_improved.train(s, study_improved.denoiser(s, study_improved.BETAS["cosine"]), "L_hybrid"))


def _draw_strided(steps: int) -> Callable[[Callable, int, int], Tensor]:
    def draw(d: Callable, n: int, seed: int) -> Tensor:
        d, ts = thresholded(d, static()), grid(d.schedule, steps, strided)
        return sample(d, (n, 64), sampler=ancestral, ts=ts, seed=seed, var=learned).view(n, 1, 8, 8)

    return draw


# 03


def _exact_score(seed: int) -> Callable:
    return lambda x: mixture().score(x, 0.0)


def _exact_log_prob(seed: int) -> Callable:
    return lambda x: mixture().log_prob(x, 0.0)


def _walk(sampler: Callable) -> Callable[[Callable, int, int], Tensor]:
    """1,000 Langevin steps of size 0.1 from the uniform square [-8, 8]^2 (Song & Ermon 2019, section 3.2.2)."""

    def draw(fn: Callable, n: int, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return final(sampler(fn, 16 * torch.rand(n, 2, generator=g) - 8, [0.1] * 1000, generator=g))

    return draw


def _one_datum(seed: int) -> Callable:
    g = torch.Generator().manual_seed(seed)
    return stochastic_score(study_sgld.log_prior, study_sgld.log_likelihood, study_sgld.draw_data(), 1, g)


def _draw_sgld(fn: Callable, n: int, seed: int) -> Tensor:
    """The last states of n chains of 10,000 steps, from the prior."""
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(n, 2, generator=g, dtype=torch.float64) * torch.tensor(study_sgld.PRIOR).sqrt()
    steps = sgld_steps(*sgld_constants(1e-2, 1e-4, 0.55, 10_000), 0.55, 10_000)
    return final(langevin(fn, start, steps.tolist(), g))


# 04


def _matched(name: str) -> Callable[[int], Callable]:
    data, s = study_score_matching.mixture(), study_score_matching.Settings()
    every = study_score_matching.losses(lambda x: data.score(x, 0.0))
    every |= {"denoising": study_score_matching.denoising(0.3)}

    def train(seed: int) -> Callable:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = study_score_matching.network(s)
        for _ in study_score_matching.fit(net, every[name], data.sample, s, seed):
            pass
        return study_score_matching.score_of(net)

    return train


def _draw_near_walk(score: Callable, n: int, seed: int) -> Tensor:
    return study_score_matching.walk(score, study_score_matching.Settings(samples=n), seed)


# 05


def _toy(seed: int) -> Callable:
    return last(study_ncsn_toy.train(study_ncsn_toy.Settings(seed=seed)))


def _draw_toy(d: Callable, n: int, seed: int) -> Tensor:
    return study_ncsn_toy.annealed(d, study_ncsn_toy.Settings(chains=n, seed=seed))


def _ncsn(name: str) -> tuple[Callable, Callable]:
    """The digits by one of the settings of notebook 05, brought from its [0, 1] to [-1, 1]."""

    def train(seed: int) -> Callable:
        s = replace(study_ncsn.SETS[name], seed=seed)
        d = study_ncsn.denoiser(s)
        averaged = last(study_ncsn.train(s, d))
        return averaged if s.averaged else replace(d, net=d.net.eval())

    def draw(d: Callable, n: int, seed: int) -> Tensor:
        s = study_ncsn.SETS[name]
        _, ts, each, a = study_ncsn.ladder(s)
        g = torch.Generator().manual_seed(seed)
        x = torch.rand(n, 1, 8, 8, generator=g)
        return 2 * final(annealed_langevin(d, x, ts, each, 2 * a, g, denoise=s.denoise)) - 1

    return train, draw


LINEAR = DiscreteVP(linear_betas(1000))
DDPM = _swiss_roll(schedule=LINEAR, target=targets.eps)
SYSTEMS = [
    System("01", "DDPM, eps, linear betas", SWISS_ROLL, DDPM, _steps(1000)),
    System("01", "DDPM, v, cosine", SWISS_ROLL, _swiss_roll(), _steps(100)),
    System("01", "DDPM, v, cosine; U-Net told the class; DDIM", DIGITS, _digits, _draw_labelled),
    System("02", "Sohl-Dickstein 2015, radial basis functions", SWISS_ROLL, _dpm, _steps(40, var=learned)),
    System("02", "Improved DDPM, hybrid loss, all 200 steps", DIGITS, _hybrid, _draw_strided(200)),
    System("02", "Improved DDPM, hybrid loss, 20 steps", DIGITS, _hybrid, _draw_strided(20)),
    System("03", "Langevin, exact score", MIXTURE, _exact_score, _walk(langevin)),
    System("03", "MALA, exact density", MIXTURE, _exact_log_prob, _walk(mala)),
    System("03", "SGLD, one datum a step", POSTERIOR, _one_datum, _draw_sgld),
    System("04", "implicit score matching; Langevin", NEAR, _matched("implicit"), _draw_near_walk),
    System("04", "sliced score matching VR; Langevin", NEAR, _matched("sliced VR"), _draw_near_walk),
    System("04", "denoising score matching, sigma = 0.3; Langevin", NEAR, _matched("denoising"), _draw_near_walk),
    System("05", "annealed Langevin, exact scores", MIXTURE, lambda seed: study_ncsn_toy.EXACT, _draw_toy),
    System("05", "NCSN", MIXTURE, _toy, _draw_toy),
    System("05", "NCSN; U-Net", DIGITS, *_ncsn("NCSN")),
    System("05", "NCSNv2, all five techniques; U-Net", DIGITS, *_ncsn("all five")),
]
