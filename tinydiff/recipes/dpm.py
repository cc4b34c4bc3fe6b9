"""The swiss roll as in 2015: radial-basis network, a chain of 40 steps, covariance and betas learned (the bound is K).

Sohl-Dickstein et al. 2015, section 3.1.1. Not theirs: Adam in place of their optimiser, a stochastic step k for every
point, the averaged weights, and our data (noise of 0.05 at unit variance), which alone set how large K can be.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, dpm, metrics, targets
from tinydiff.datasets.toy import ROLL_MEAN, ROLL_SCALE
from tinydiff.denoisers import NetDenoiser
from tinydiff.entropy import entropy_bound, entropy_loss, null_bits
from tinydiff.exact import GaussianMixture
from tinydiff.models import RBF
from tinydiff.samplers import ancestral, learned, sample
from tinydiff.schedules import Schedule
from tinydiff.training import Step, fit, warmup_cosine


@dataclass(frozen=True)
class Settings:
    chain: int = 40  # T
    first_beta: float = 1e-3  # beta_1, which is not learned; a standard deviation of 0.03
    learn_betas: bool = True
    units: int = 16
    noise: float = 0.05  # of the data
    points: int = 20_000
    steps: int = 1000
    batch_size: int = 512
    lr: float = 3e-2
    ema: float = 0.99
    seed: int = 0
    samples: int = 4_000  # for evaluation
    device: str = "cpu"
    threads: int = 1


SCALES = {
    "laptop": Settings(),
    "full": Settings(
        points=1_000_000,
        steps=50_000,
        batch_size=16_384,
        lr=1e-2,
        ema=0.999,
        samples=10_000,
        device="cuda" if torch.cuda.is_available() else "cpu",
    ),
}


def betas(s: Settings) -> Tensor:
    """The chain as it starts: the released code's, with the first one as it stays."""
    start = dpm.harmonic_betas(s.chain)
    start[0] = s.first_beta
    return start


def exact(s: Settings, schedule: Schedule) -> GaussianMixture:
    """The law of the data in closed form: the roll as a row of Gaussians that lie a standard deviation apart.

    That is fine enough: the ripple of such a row is 2 e^(-2 pi^2), 5 in a billion."""
    length = 13.2  # of the roll, at unit variance
    n = int(length / s.noise)
    angle = 1.5 * math.pi * (1 + 2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    curve = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
    means = (curve - torch.tensor(ROLL_MEAN, dtype=torch.float64)) / ROLL_SCALE
    return GaussianMixture(means, s.noise, None, schedule)


def denoiser(s: Settings) -> NetDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        net = dpm.LearnedBetas(RBF(dim=2, units=s.units, steps=s.chain, outputs=2), betas(s)).to(s.device)
    net.logits.requires_grad_(s.learn_betas)
    return dpm.up_to_date(NetDenoiser(net, net.schedule(), targets.v, var=dpm.logit_variance))


def train(
    s: Settings, d: NetDenoiser | None = None, var: Callable[..., Tensor] = learned, **options: Any
) -> Iterator[Step]:
    """By `fit` on -K; the chain of a step's denoiser is `dpm.up_to_date(step.denoiser).schedule`."""
    loss = partial(entropy_loss, var=var)
    return fit(
        d or denoiser(s),
        datasets.swiss_roll(s.points, noise=s.noise, seed=s.seed),
        steps=s.steps,
        loss=lambda d, x0, t: loss(dpm.up_to_date(d), x0, t),
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        lr_schedule=warmup_cosine(warmup=20, end=0.02),
        **options,
    )


def generate(d: NetDenoiser, n: int, s: Settings, seed: int = 0) -> Tensor:
    d = dpm.fixed_first_step(dpm.up_to_date(d))
    return sample(d, (n, 2), n=s.chain, sampler=ancestral, seed=seed, device=s.device, var=learned).cpu()


def evaluate(d: NetDenoiser, s: Settings, seed: int = 0) -> dict[str, float]:
    """K and K - L_null in bits with the standard error of K, and the energy distance of samples with its floor."""
    draw = lambda n, seed: datasets.swiss_roll(n, noise=s.noise, seed=10_000 + seed)  # noqa: E731
    absolute_energy = lambda a, b: abs(metrics.energy_distance(a, b))  # noqa: E731
    truth, half = draw(s.samples, seed=seed), s.samples // 2
    g = torch.Generator(s.device).manual_seed(seed)
    k = entropy_bound(dpm.up_to_date(d), truth.to(s.device), generator=g)
    return {
        "K": k.mean().item(),
        "K_standard_error": (k.std() / len(k) ** 0.5).item(),
        "K_less_null": k.mean().item() - null_bits(2),
        "energy_distance": absolute_energy(generate(d, half, s, seed), truth[:half]),
        "energy_distance_floor": metrics.floor(absolute_energy, draw, half, pairs=5, seed=100),
    }


def picture(samples: Tensor, path: str | Path) -> None:
    from tinydiff import plotting

    plotting.scatter(samples, title="samples").figure.savefig(path)
