"""Class-conditional diffusion on Fashion-MNIST, 28 x 28, by a diffusion transformer: what ships as "fashion-dit".

All but the network and its settings is `fashion`'s. Patches of 4 x 4 pixels make 49 tokens; adaLN-Zero (Peebles and Xie
2023).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tinydiff import targets
from tinydiff.denoisers import NetDenoiser
from tinydiff.models import DiT
from tinydiff.recipes import fashion
from tinydiff.recipes.base import GPU, ON_A_GPU
from tinydiff.recipes.fashion import evaluate, generate, labels, picture  # noqa: F401, parts of a recipe
from tinydiff.schedules import Cosine
from tinydiff.training import Step


@dataclass(frozen=True)
class Settings(fashion.Fashion):
    patch: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 4
    conditioning: str = "adaln-zero"


SCALES = {
    "laptop": Settings(steps=300),
    "full": Settings(
        data="fashion-mnist",
        width=128,
        depth=6,
        steps=60_000,
        batch_size=512 if GPU else 64,
        warmup=500,
        ema=0.9995,
        samples=10_000 if GPU else 2_000,  # 10,000 take an hour on two cores
        **{k: v for k, v in ON_A_GPU.items() if k != "channels_last"},
    ),
}


def denoiser(s: Settings) -> NetDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        shape = dict(size=28, patch=s.patch, width=s.width, depth=s.depth, heads=s.heads)
        net = DiT(**shape, classes=10, conditioning=s.conditioning, checkpoint=s.recompute)
    return NetDenoiser(net.to(s.device), Cosine(), targets.v)


def train(s: Settings, **options: Any) -> Iterator[Step]:
    return fashion.train(s, make=denoiser, **options)
