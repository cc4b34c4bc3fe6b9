"""Class-conditional diffusion on Fashion-MNIST, 28 x 28, by a U-Net: what ships as "fashion-unet".

Target v on the cosine path (Salimans and Ho 2022), with one label in ten dropped, so that one network serves with and
without guidance. The laptop's scale trains on the 10,000 images that ship, only to show that it learns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff import datasets, targets
from tinydiff.denoisers import NetDenoiser
from tinydiff.guidance import bind, static, thresholded
from tinydiff.models import UNet
from tinydiff.recipes.base import GPU, ON_A_GPU, Run
from tinydiff.samplers import dpmpp_2m, sample
from tinydiff.schedules import Cosine
from tinydiff.training import Step, drop_labels, fit, warmup_cosine


@dataclass(frozen=True)
class Fashion(Run):
    """What any network on these images is trained and judged by."""

    data: str = "fashion-mnist-10k"  # or fashion-mnist: all 60,000
    drop: float = 0.1  # share of labels that are dropped
    sampling_steps: int = 25  # of DPM-Solver++(2M)
    samples: int = 500  # for evaluation


@dataclass(frozen=True)
class Settings(Fashion):
    width: int = 16  # channels at 28 pixels
    mults: tuple[int, ...] = (1, 2, 4)  # at 28, 14 and 7 pixels
    blocks: int = 1
    dropout: float = 0.0


SCALES = {
    "laptop": Settings(steps=300),
    "full": Settings(
        data="fashion-mnist",
        width=32,
        mults=(1, 2, 3),
        steps=15_000,  # ten minutes of an H200
        batch_size=512 if GPU else 64,
        lr=1e-3,
        warmup=500,
        ema=0.9995,
        samples=10_000 if GPU else 2_000,  # 10,000 take an hour on two cores
        **ON_A_GPU,
    ),
}


def net(s: Settings) -> nn.Module:
    attention = (False, *[True] * (len(s.mults) - 1))  # at 14 and 7 pixels
    settings = dict(width=s.width, mults=s.mults, blocks=s.blocks, attention=attention, features=s.width)
    return UNet(**settings, classes=10, dropout=s.dropout, checkpoint=s.recompute)


def denoiser(s: Settings) -> NetDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        return NetDenoiser(net(s).to(s.device), Cosine(), targets.v)


def train(s: Fashion, make=denoiser, data: Any = None, **options: Any) -> Iterator[Step]:
    return fit(
        make(s),
        datasets.load(s.data).to(s.device) if data is None else data,
        steps=s.steps,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        lr_schedule=warmup_cosine(s.warmup, end=0.02),
        drop=drop_labels(classes=10, share=s.drop),
        **options,
    )


def labels(n: int) -> Tensor:
    """0 1 2 ... 9 0 1 ...: the classes that `generate` asks for."""
    return torch.arange(n) % 10


def generate(d: NetDenoiser, n: int, s: Fashion, seed: int = 0, batch: int = 500) -> Tensor:
    """n images of the classes `labels(n)`, without guidance, by DPM-Solver++(2M)."""
    parts = []
    for i, y in enumerate(labels(n).split(batch)):
        asked = thresholded(bind(d, y=y.to(s.device)), static())
        shape = (len(y), 1, 28, 28)
        parts.append(sample(asked, shape, n=s.sampling_steps, sampler=dpmpp_2m, seed=seed + i, device=s.device).cpu())
    return torch.cat(parts)


def picture(samples: Tensor, path: str | Path) -> None:
    """A grid with ten columns, one for each class."""
    from tinydiff import plotting

    plotting.image_grid(samples[:100]).figure.savefig(path)


def evaluate(d: NetDenoiser, s: Fashion, seed: int = 0) -> dict[str, int | float]:
    """Fréchet distance and its kin in the features of the shipped classifier, each beside its floor."""
    from tinydiff.recipes import fashion_classifier as judge

    test = None if s.samples <= 5000 else datasets.load("fashion-mnist", "test")
    return judge.judged(generate(d, s.samples, s, seed), labels(s.samples), test)
