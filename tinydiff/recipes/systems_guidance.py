"""The systems of the ledger, notebooks 12 and 13: digits guided to their class.

As in `systems`, which has the data and notebooks 01 to 05. The distance is to all held-out digits, so what guidance
takes from the spread of a class counts against it. Calls are those of the denoiser: a classifier's gradient is not
among them, nor is the weak network, and a call for two branches at once is one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tinydiff import datasets
from tinydiff.denoisers import Denoiser, NetClassifier
from tinydiff.guidance import Guide, autoguide, bind, cfg, classifier, interval, static, thresholded
from tinydiff.losses import classifier_loss
from tinydiff.models import NoisyClassifier
from tinydiff.recipes import digits
from tinydiff.recipes.systems import DIGITS, System, last
from tinydiff.samplers import ddim, sample
from tinydiff.schedules import Cosine
from tinydiff.training import drop_labels, fit, warmup_cosine


@dataclass(frozen=True, eq=False)
class Guided(Guide):
    """A denoiser, and what guides it."""

    denoiser: Denoiser
    guide: NetClassifier | Denoiser

    def __call__(self, x: Tensor, t, **cond):
        return self.denoiser(x, t, **cond)


def dropped(seed: int, steps: int = digits.Settings.steps) -> Denoiser:
    """The digits' U-Net, with one label in ten dropped."""
    settings = replace(digits.SCALES["laptop"], seed=seed, steps=steps)
    return last(digits.train(settings, drop=drop_labels(10, 0.1)))


def noisy_classifier(seed: int, steps: int = 400) -> NetClassifier:
    """ADM's classifier on the digits, trained on noisy ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NoisyClassifier(size=8, width=16, mults=(1, 2), attention=(False, True))
    real = datasets.digits_train()
    adamw = partial(torch.optim.AdamW, weight_decay=0.05)
    options = dict(steps=steps, batch_size=64, lr=2e-3, seed=seed, ema=0.99, loss=classifier_loss)
    options |= dict(lr_schedule=warmup_cosine(50, end=0.02), optimizer=lambda params, lr: adamw(params, lr=lr))
    return last(fit(NetClassifier(net, Cosine()), dict(x0=real.x0, y=real.y), **options))


def with_classifier(seed: int) -> Guided:
    return Guided(dropped(seed), noisy_classifier(seed))


def with_weak(seed: int) -> Guided:
    """A second network, a sixth as long at school."""
    return Guided(dropped(seed), dropped(seed, steps=100))


def by(make: Callable[[Denoiser, Tensor], Denoiser], n: int = 50) -> Callable[[Denoiser, int, int], Tensor]:
    """n steps of DDIM; 0 1 2 ... 9 0 1 ... are asked for, and beliefs are clipped."""

    def draw(d: Denoiser, count: int, seed: int) -> Tensor:
        asked = thresholded(make(d, digits.labels(count)), static())
        return sample(asked, (count, 1, 8, 8), n=n, sampler=ddim, seed=seed)

    return draw


def _null(y: Tensor) -> Tensor:
    return torch.full_like(y, 10)


def _cfg(w: float | int) -> Callable[[Denoiser, Tensor], Denoiser]:
    return lambda d, y: cfg(d, w, dict(y=y), dict(y=_null(y)))


def _classifier(scale: float | int) -> Callable[[Denoiser, Tensor], Denoiser]:
    return lambda d, y: classifier(bind(d, y=_null(y)), d.guide.log_prob(y), scale)


def _interval(w: float | int) -> Callable[[Denoiser, Tensor], Denoiser]:
    return lambda d, y: interval(_cfg(w)(d, y), bind(d, y=y), 0.3, 3.0)


def _auto(w: float | int) -> Callable[[Denoiser, Tensor], Denoiser]:
    return lambda d, y: autoguide(bind(d, y=y), bind(d.guide, y=y), w)


digit_system = partial(System, data=DIGITS)
SYSTEMS = [
    digit_system("12", "ADM: no class, classifier, scale 1", train=with_classifier, draw=by(_classifier(1))),
    digit_system("12", "ADM: no class, classifier, scale 4", train=with_classifier, draw=by(_classifier(4))),
    digit_system("13", "labels dropped, w = 1: no guidance", train=dropped, draw=by(_cfg(1))),
    digit_system("13", "classifier-free guidance, w = 2", train=dropped, draw=by(_cfg(2))),
    digit_system("13", "guidance interval 0.3 to 3, w = 2", train=dropped, draw=by(_interval(2))),
    digit_system("13", "autoguidance, w = 2", train=with_weak, draw=by(_auto(2))),
]
