"""The systems of the ledger, notebook 16: the digits in latent space.

As in `systems`, which has the data and notebooks 01 to 05. Digits of 8 x 8 are small already, so this shows that all
works and what it loses, not what it saves: first stages of 2 x 4 x 4, half the numbers, and the digits' own U-Net.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tinydiff import datasets, targets
from tinydiff.autoencoding import fit_autoencoder
from tinydiff.denoisers import NetDenoiser
from tinydiff.guidance import bind
from tinydiff.models import KLAutoencoder, UNet, VQAutoencoder, calibrate
from tinydiff.recipes import digits
from tinydiff.recipes.systems import DIGITS, System, last
from tinydiff.samplers import dpmpp_2m, sample
from tinydiff.schedules import Cosine
from tinydiff.training import fit, warmup_cosine


def latent(kind: Callable, seed: int, first: int = 800, steps: int = digits.Settings.steps) -> NetDenoiser:
    """Both stages: `first` steps of the autoencoder, then as many of the U-Net as the digits' recipe has."""
    real, s = datasets.digits_train(), digits.Settings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        a, net = kind(1, 2, 16, (1, 2)), UNet(in_channels=2, width=s.width, classes=10)
    options = dict(steps=first, batch_size=64, lr=2e-3, seed=seed, lr_schedule=warmup_cosine(50, end=0.05))
    for _ in fit_autoencoder(a, real.x0, **options):
        pass
    codec = calibrate(a.eval(), real.x0)
    d = NetDenoiser(net, Cosine(), targets.v, codec=codec)
    options = dict(steps=steps, lr=s.lr, batch_size=s.batch_size, seed=seed, ema=s.ema)
    return last(fit(d, dict(x0=codec.encode(real.x0), y=real.y), lr_schedule=warmup_cosine(50, end=0.02), **options))


def draw(d: NetDenoiser, count: int, seed: int) -> Tensor:
    """15 steps of DPM-Solver++(2M); 0 1 2 ... 9 0 1 ... are asked for."""
    asked = bind(d, y=digits.labels(count))
    return sample(asked, d.codec.shape(count, 8), n=15, sampler=dpmpp_2m, seed=seed, decode=d.codec).clamp(-1, 1)


digit_system = partial(System, data=DIGITS, draw=draw)
SYSTEMS = [
    digit_system("16", "latent diffusion, KL, f = 2; DPM-Solver++(2M)", train=partial(latent, KLAutoencoder)),
    digit_system("16", "latent diffusion, VQ, f = 2; DPM-Solver++(2M)", train=partial(latent, VQAutoencoder)),
]
