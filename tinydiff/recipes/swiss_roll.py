"""Diffusion on a swiss roll: the fewest seconds to samples that cannot be told from the truth.

DDPM (Ho et al. 2020) with the cosine path and the target v (Salimans & Ho 2022), which a small network learns faster
than linear betas and eps; notebook 01 has both. `make bench` measures this recipe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, metrics, targets
from tinydiff.denoisers import NetDenoiser
from tinydiff.models import MLP
from tinydiff.samplers import ancestral, sample
from tinydiff.schedules import Cosine, Schedule
from tinydiff.targets import Target
from tinydiff.training import Step, fit, warmup_cosine

COSINE = Cosine()


@dataclass(frozen=True)
class Settings:
    points: int = 20_000  # training points
    width: int = 192
    depth: int = 3
    steps: int = 900  # the floor is reached after about 600
    batch_size: int = 512
    lr: float = 2e-3
    ema: float = 0.998
    seed: int = 0
    sampling_steps: int = 100
    samples: int = 2_000  # for evaluation
    device: str = "cpu"
    threads: int = 1  # of torch on the CPU: more cost more than they give here


SCALES = {
    "laptop": Settings(),
    "full": Settings(
        points=1_000_000,
        width=512,
        depth=5,
        steps=20_000,
        batch_size=8192,
        lr=1e-3,
        ema=0.9995,
        sampling_steps=500,
        samples=10_000,
        device="cuda" if torch.cuda.is_available() else "cpu",
    ),
}


def denoiser(s: Settings, schedule: Schedule = COSINE, target: Target = targets.v) -> NetDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        net = MLP(dim=2, width=s.width, depth=s.depth).to(s.device)
    return NetDenoiser(net, schedule, target)


def train(s: Settings, d: NetDenoiser | None = None, data: Any = None, **options: Any) -> Iterator[Step]:
    return fit(
        d or denoiser(s),
        datasets.swiss_roll(s.points, seed=s.seed) if data is None else data,
        steps=s.steps,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        lr_schedule=warmup_cosine(warmup=50, end=0.02),
        **options,
    )


def generate(d: NetDenoiser, n: int, s: Settings, seed: int = 0) -> Tensor:
    return sample(d, (n, 2), n=s.sampling_steps, sampler=ancestral, seed=seed, device=s.device).cpu()


def evaluate(d: NetDenoiser, s: Settings, seed: int = 0) -> dict[str, float]:
    """Sliced Wasserstein and energy distance to fresh data, each beside what truth against truth gives."""
    draw = lambda n, seed: datasets.swiss_roll(n, seed=10_000 + seed)  # noqa: E731  never the training draw
    x, truth = generate(d, s.samples, s, seed), draw(s.samples, seed=seed)
    absolute_energy = lambda a, b: abs(metrics.energy_distance(a, b))  # noqa: E731
    return {
        "sliced_wasserstein": metrics.sliced_wasserstein(x, truth),
        "sliced_wasserstein_floor": metrics.floor(metrics.sliced_wasserstein, draw, s.samples, seed=100),
        "energy_distance": metrics.energy_distance(x, truth),
        "energy_distance_floor": metrics.floor(absolute_energy, draw, s.samples, seed=100),
    }


def picture(samples: Tensor, path: str | Path) -> None:
    from tinydiff import plotting

    plotting.scatter(samples, title="samples").figure.savefig(path)
