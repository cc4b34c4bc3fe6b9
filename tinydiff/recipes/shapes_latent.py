"""Text-to-image latent diffusion on captioned shapes (Rombach et al. 2022): for "shapes32-latent", "shapes64-latent".

The shipped first stage (`shapes_autoencoder`; of "shapes64-latent" it is "shapes64-absolute") is frozen, and pictures
are encoded once. The U-Net hears the caption through cross-attention, and the text encoder is trained with it; one
caption in ten is dropped, for guidance.

With `stage="none"` it is diffusion of pixels: f = 1, the identity in place of a first stage, and all else the same. The
number of resolutions follows the side of the latents, as in the paper's table of networks, where all end at one side:

    side of latents   mults            attention
    4                 2                there
    8                 1, 2             at 8 and in the middle
    16                1, 2, 2          at 8 and in the middle
    32                1, 1, 2, 2       at 8 and in the middle
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinydiff import targets
from tinydiff.checkpoints import load_network, shipped
from tinydiff.datasets import captions, shapes
from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.guidance import cfg
from tinydiff.models import Codec, Identity, TextEncoder, UNet, WithText, calibrate
from tinydiff.recipes import shapes_autoencoder
from tinydiff.recipes import shapes_classifier as judge
from tinydiff.recipes.base import GPU, ON_A_GPU, Run
from tinydiff.samplers import dpmpp_2m, sample
from tinydiff.schedules import Cosine
from tinydiff.training import Step, drop_captions, fit, warmup_cosine

MULTS = {4: (2,), 8: (1, 2), 16: (1, 2, 2), 32: (1, 1, 2, 2), 64: (1, 1, 1, 2, 2)}  # by the side of the latents


@dataclass(frozen=True)
class Settings(Run):
    data: str = "shapes32-2"  # or shapes64-2t, with textures
    size: int = 32  # pixels
    stage: str = "shapes32-autoencoder"  # a shipped first stage, or none: pixels
    pictures: int = 2000  # of training
    width: int = 32  # channels at the top resolution
    text: int = 64  # width of the text encoder
    drop: float = 0.1  # share of captions that are dropped
    guidance: float = 2.0
    sampling_steps: int = 25  # of DPM-Solver++(2M)
    samples: int = 200  # of an evaluation


SCALES = {
    "laptop": Settings(steps=300, batch_size=32),
    "full": Settings(
        pictures=200_000 if GPU else 50_000,
        width=48,
        steps=40_000 if GPU else 8000,
        batch_size=512 if GPU else 32,
        warmup=500,
        ema=0.9995 if GPU else 0.999,
        samples=5000 if GPU else 1000,
        **ON_A_GPU,
    ),
}


def first_stage(s: Settings) -> Codec:
    """The shipped one; for pixels the identity, with the scale and shift of 2,000 pictures as any other."""
    if s.stage != "none":
        return Codec(load_network(shipped(s.stage)))
    return calibrate(Identity(3), shapes(s.data, "train", 2000, s.size).tensors()["x0"])


def net(channels: int, side: int, s: Settings) -> WithText:
    """The network for latents of that many channels and that side."""
    if side not in MULTS:
        raise ValueError(f"side of the latents must be one of {', '.join(map(str, MULTS))}; got {side}")
    attention = tuple(side >> level == min(side, 8) for level in range(len(MULTS[side])))
    shape = dict(in_channels=channels, width=s.width, mults=MULTS[side], attention=attention, middle_attention=True)
    unet = UNet(**shape, context=s.text, checkpoint=s.recompute)
    return WithText(unet, TextEncoder(len(captions.VOCABULARY), captions.LENGTH, s.text))


def denoiser(s: Settings, codec: Codec | None = None) -> NetDenoiser:
    with torch.random.fork_rng(devices=[]):  # a network that is rebuilt draws random weights first
        codec = first_stage(s) if codec is None else codec
        codec.autoencoder.to(s.device)
        _, channels, side, _ = codec.shape(1, s.size)
        torch.manual_seed(s.seed)
        return NetDenoiser(net(channels, side, s).to(s.device), Cosine(), targets.v, codec=codec)


def pictures(s: Settings) -> dict[str, Tensor]:
    """x0 as uint8, and tokens."""
    return shapes(s.data, "train", s.pictures, s.size, conditions=("tokens",)).tensors(dtype=torch.uint8)


def train(
    s: Settings, d: NetDenoiser | None = None, data: dict[str, Tensor] | None = None, **options: Any
) -> Iterator[Step]:
    """d and data, the latents, are made by the settings unless they are given."""
    d = denoiser(s) if d is None else d
    data = shapes_autoencoder.encoded(d.codec, pictures(s)) if data is None else data
    given = dict(steps=s.steps, lr=s.lr, batch_size=s.batch_size, seed=s.seed, ema=s.ema)
    return fit(
        d, data, **given | dict(lr_schedule=warmup_cosine(s.warmup, end=0.02), drop=drop_captions(s.drop)) | options
    )


def guided(d: Denoiser, tokens: Tensor, w: float | int) -> Denoiser:
    """Classifier-free guidance to the captions."""
    return cfg(d, w, dict(tokens=tokens), dict(tokens=torch.zeros_like(tokens)))


def generate(
    d: NetDenoiser, n: int, s: Settings, seed: int = 0, batch: int = 250, tokens: Tensor | None = None
) -> Tensor:
    """n pictures for the captions tokens (n, 20), or for those of the split "test-iid", in [-1, 1]."""
    tokens = judge.asked(s.data, "test-iid", n)["tokens"] if tokens is None else tokens
    parts = []
    d.codec.autoencoder.to(s.device)
    for i, part in enumerate(tokens.split(batch)):
        options = dict(n=s.sampling_steps, sampler=dpmpp_2m, seed=1000 * seed + i, device=s.device, decode=d.codec)
        asked = guided(d, part.to(s.device), s.guidance)
        parts.append(sample(asked, d.codec.shape(len(part), s.size), **options).clamp(-1, 1).cpu())
    return torch.cat(parts)


def picture(samples: Tensor, path: str | Path) -> None:
    """A grid with ten columns."""
    from tinydiff import plotting

    plotting.image_grid(samples[:100]).figure.savefig(path)


def evaluate(d: NetDenoiser, s: Settings, seed: int = 0, split: str = "test-iid") -> dict[str, int | float]:
    """What the judge, and for 200 pictures the oracle, read in pictures for the captions of a split."""
    of = judge.asked(s.data, split, s.samples)
    return judge.judged(generate(d, s.samples, s, seed, tokens=of["tokens"]), of, s.data, min(s.samples, 200))
