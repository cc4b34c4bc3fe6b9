"""A classifier of noisy Fashion-MNIST, for guidance: what ships as "fashion-noisy-classifier".

As ADM's (Dhariwal and Nichol 2021, section 4): the U-Net's encoder, trained on the noisy images of the denoiser's own
schedule. What it reads of clean images says little of it: `evaluate` has its accuracy at even times.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets
from tinydiff.denoisers import NetClassifier
from tinydiff.losses import classifier_loss
from tinydiff.models import NoisyClassifier
from tinydiff.recipes.base import GPU, ON_A_GPU, Run
from tinydiff.recipes.fashion import picture  # noqa: F401, part of a recipe
from tinydiff.schedules import Cosine
from tinydiff.training import Step, fit, warmup_cosine

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Settings(Run):
    data: str = "fashion-mnist-10k"  # or fashion-mnist: all 60,000
    width: int = 16  # channels at 28 pixels
    mults: tuple[int, ...] = (1, 2, 3)  # at 28, 14 and 7 pixels
    decay: float = 0.05  # of the weights, AdamW's
    samples: int = 1000  # test images of an evaluation


SCALES = {
    "laptop": Settings(steps=300),
    "full": Settings(
        data="fashion-mnist",
        steps=6000,
        batch_size=256 if GPU else 64,
        warmup=200,
        ema=0.999,
        samples=5000,
        **ON_A_GPU,
    ),
}


def denoiser(s: Settings) -> NetClassifier:
    """Not a denoiser: the classifier, which trains and is saved as one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        attention = (False, *[True] * (len(s.mults) - 1))
        return NetClassifier(NoisyClassifier(width=s.width, mults=s.mults, attention=attention).to(s.device), Cosine())


def train(s: Settings, **options: Any) -> Iterator[Step]:
    return fit(
        denoiser(s),
        datasets.load(s.data).to(s.device),
        steps=s.steps,
        loss=classifier_loss,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        lr_schedule=warmup_cosine(s.warmup, end=0.02),
        optimizer=lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=s.decay, fused=True),
        **options,
    )


def generate(d: NetClassifier, n: int, s: Settings, seed: int = 0) -> Tensor:
    """What it has to read: n noisy test images, ten a row, from the first time of TIMES to the last."""
    test = datasets.load("fashion-mnist-10k", "test").first(n)
    eps = torch.randn(test.x0.shape, generator=torch.Generator().manual_seed(seed))
    rows = torch.linspace(TIMES[0], TIMES[-1], (n + 9) // 10).repeat_interleave(10)[:n]
    c = d.schedule(rows, like=eps)
    return c.alpha * test.x0 + c.sigma * eps


@torch.no_grad()
def evaluate(d: NetClassifier, s: Settings, seed: int = 0) -> dict[str, int | float]:
    """Share of noisy test images read as their label, and the loss in nats, at five times."""
    test = datasets.load("fashion-mnist-10k", "test").first(s.samples).to(s.device)
    found: dict[str, int | float] = {"n": s.samples}
    g = torch.Generator().manual_seed(seed)
    eps = torch.randn(test.x0.shape, generator=g).to(s.device)
    for t in TIMES:
        c = d.schedule(t, like=test.x0)
        x = c.alpha * test.x0 + c.sigma * eps
        logits = torch.cat([d.logits(part, t) for part in x.split(500)])
        found[f"accuracy_{t}"] = (logits.argmax(1) == test.y).double().mean().item()
        found[f"loss_{t}"] = torch.nn.functional.cross_entropy(logits, test.y).item()
    return found
