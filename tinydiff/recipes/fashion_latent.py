"""Class-conditional latent diffusion on Fashion-MNIST (Rombach et al. 2022): for "fashion-latent".

The shipped first stage, `fashion_autoencoder`, is frozen; a diffusion transformer with patches of one works on its
7 x 7 latents, which are encoded once. All else is `fashion`'s, so that pixels and latents compare.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, targets
from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.guidance import bind
from tinydiff.models import DiT
from tinydiff.recipes import fashion, fashion_autoencoder
from tinydiff.recipes import fashion_classifier as judge
from tinydiff.recipes.base import GPU, ON_A_GPU
from tinydiff.recipes.fashion import labels, picture  # noqa: F401, parts of a recipe
from tinydiff.samplers import dpmpp_2m, sample
from tinydiff.schedules import Cosine
from tinydiff.training import Step

SIDE = 28  # pixels


@dataclass(frozen=True)
class Settings(fashion.Fashion):
    patch: int = 1
    width: int = 64
    depth: int = 4
    heads: int = 4


SCALES = {
    "laptop": Settings(steps=300),
    "full": Settings(
        data="fashion-mnist",
        width=128,
        depth=6,
        steps=40_000 if GPU else 13_000,
        batch_size=512 if GPU else 64,
        warmup=500,
        ema=0.9995,
        samples=10_000 if GPU else 2_000,
        **{k: v for k, v in ON_A_GPU.items() if k != "channels_last"},
    ),
}


def denoiser(s: Settings) -> NetDenoiser:
    with torch.random.fork_rng(devices=[]):  # a network that is rebuilt draws random weights first
        codec = fashion_autoencoder.pretrained()
        codec.autoencoder.to(s.device)
        _, channels, side, _ = codec.shape(1, SIDE)
        torch.manual_seed(s.seed)
        shape = dict(in_channels=channels, size=side, patch=s.patch, width=s.width, depth=s.depth, heads=s.heads)
        net = DiT(**shape, classes=10, checkpoint=s.recompute)
    return NetDenoiser(net.to(s.device), Cosine(), targets.v, codec=codec)


def train(s: Settings, **options: Any) -> Iterator[Step]:
    d = denoiser(s)
    latents = fashion_autoencoder.encoded(d.codec, datasets.load(s.data).to(s.device))
    return fashion.train(s, make=lambda s: d, data=latents, **options)


def drawn(
    d: NetDenoiser,
    n: int,
    steps: int,
    sampler: Callable = dpmpp_2m,
    seed: int = 0,
    device: str = "cpu",
    batch: int = 500,
    ask: Callable[..., Denoiser] = bind,
) -> Tensor:
    """n images of the classes `labels(n)`. ask: (d, y=y) -> what is sampled. Latents have no range to clip to."""
    parts = []
    d.codec.autoencoder.to(device)
    for i, y in enumerate(labels(n).split(batch)):
        options = dict(n=steps, sampler=sampler, seed=1000 * seed + i, device=device, decode=d.codec)
        parts.append(sample(ask(d, y=y.to(device)), d.codec.shape(len(y), SIDE), **options).clamp(-1, 1).cpu())
    return torch.cat(parts)


def generate(d: NetDenoiser, n: int, s: Settings, seed: int = 0, batch: int = 500) -> Tensor:
    """The same without guidance, by DPM-Solver++(2M)."""
    return drawn(d, n, s.sampling_steps, seed=seed, device=s.device, batch=batch)


def evaluate(d: NetDenoiser, s: Settings, seed: int = 0) -> dict[str, int | float]:
    """As `fashion`'s, of decoded images."""
    test = None if s.samples <= 5000 else datasets.load("fashion-mnist", "test")
    return judge.judged(generate(d, s.samples, s, seed), labels(s.samples), test)
