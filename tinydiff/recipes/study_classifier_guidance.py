"""Guidance by a classifier on Fashion-MNIST, as in ADM, and AdaGN on the digits: a study over seeds for notebook 12.

    python -m tinydiff.recipes.study_classifier_guidance                 # about an hour of one core; resumes
    python -m tinydiff.recipes.study_classifier_guidance --parts adagn   # one part only

The shipped `fashion-dit` is guided by the shipped classifier of noisy images, and judged by another one, of clean
images, as in `study_cfg`: the same seeds, first noise, sampler, numbers of images and rulers. Parts are lists of runs:

    conditional     the network is told the class, and guided to it
    unconditional   it is told no class, and guided to one
    naive           unconditional; the classifier is asked as if the noisy image were a clean one
    adagn           a U-Net on the digits told its class by scale and shift of the normalised features, or by a sum

A row has `guide` beside the judge's numbers: the share that the guiding classifier itself reads as the class asked for.
Results in data/results/12_guidance.json, written after every run.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import tinydiff as td
from tinydiff import datasets, metrics, targets
from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.guidance import bind, classifier, static, thresholded
from tinydiff.losses import fixed_noise_loss
from tinydiff.models import UNet
from tinydiff.progress import progress
from tinydiff.recipes import digits
from tinydiff.recipes.study_cfg import IMAGES, SEEDS, Run, floors, labels, measure
from tinydiff.results import FOLDER, load_results, provenance, save_results
from tinydiff.samplers import dpmpp_2m, sample
from tinydiff.schedules import Cosine

NAME = "12_guidance"
PARTS = ("conditional", "unconditional", "naive", "adagn")
SCALES = {"conditional": (0, 0.5, 1, 2, 4, 8), "unconditional": (0, 1, 2, 4, 8, 16), "naive": (4,)}
CLEAN = 0.02  # the time at which an image is clean, near enough

# Dhariwal and Nichol 2021, table 4: ImageNet at 256 pixels, {scale: (FID, precision, recall)}
PAPER = {
    "unconditional": {0: (26.21, 0.61, 0.63), 1: (33.03, 0.56, 0.65), 10: (12.00, 0.76, 0.44)},
    "conditional": {0: (10.94, 0.69, 0.63), 1: (4.59, 0.82, 0.52), 10: (9.11, 0.88, 0.32)},
}


def steered(base: Denoiser, scale: float | int, y: Tensor) -> Denoiser:
    """The base, and the classifier's gradient times the scale."""
    return classifier(base, td.load_pretrained("fashion-noisy-classifier").log_prob(y), scale) if scale else base


def told(d: Denoiser, scale: float | int, y: Tensor) -> Denoiser:
    """The network is told the class, and the classifier adds to it."""
    return steered(bind(d, y=y), scale, y)


def untold(d: Denoiser, scale: float | int, y: Tensor) -> Denoiser:
    """The network gets the null label: all that it hears of the class is the classifier."""
    return steered(bind(d, y=torch.full_like(y, 10)), scale, y)


def naive(d: Denoiser, scale: float | int, y: Tensor) -> Denoiser:
    """As `untold`, by a classifier that takes noisy images for clean ones."""
    log_prob = td.load_pretrained("fashion-noisy-classifier").log_prob(y)
    return classifier(bind(d, y=torch.full_like(y, 10)), lambda x, t: log_prob(x, CLEAN), scale)


@torch.no_grad()
def read_by_guide(x: Tensor) -> dict[str, float]:
    """The share of images that the guiding classifier itself reads as the classes asked for, beside the judge's."""
    guide, y = td.load_pretrained("fashion-noisy-classifier"), labels(len(x))
    logits = torch.cat([guide.logits(part, CLEAN) for part in x.split(500)])
    return {"guide": (logits.argmax(1) == y).double().mean().item()}


MAKE: dict[str, Callable] = {"conditional": told, "unconditional": untold, "naive": naive}


# ---- AdaGN ---------------------------------------------------------------------------------------


def adagn(condition: str, seed: int, steps: int = 600) -> dict[str, float]:
    """A U-Net told noise level and class by `condition`: its loss on held-out digits, and how good its samples are."""

    def make(s: digits.Settings) -> NetDenoiser:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            return NetDenoiser(UNet(width=s.width, classes=10, condition=condition), Cosine(), targets.v)

    for step in digits.train(replace(digits.SCALES["laptop"], seed=seed, steps=steps), make=make):  # noqa: B007
        pass
    d, (x0, label), y = step.denoiser, datasets.digits_test(), torch.arange(600) % 10
    x = sample(thresholded(bind(d, y=y), static()), (600, 1, 8, 8), 20, dpmpp_2m, seed=seed)
    return {
        "loss": fixed_noise_loss(d, x0, y=label).mean().item(),
        "energy": metrics.energy_distance(x, x0),
        "accuracy": metrics.digit_accuracy(x, y),
        "parameters": sum(p.numel() for p in d.net.parameters()),
    }


def adagn_row(condition: str) -> dict[str, Any]:
    start = time.process_time()
    said = [adagn(condition, seed) for seed in SEEDS]
    row = dict(part="adagn", name=condition, w=0, steps=20) | {k: [one[k] for one in said] for k in said[0]}
    return row | dict(seconds=round(time.process_time() - start, 1))


# ---- the study -----------------------------------------------------------------------------------


def main(parts: tuple[str, ...] = PARTS, name: str = NAME) -> None:
    """Runs what is missing of these parts: conditional, unconditional, naive, adagn."""
    torch.set_num_threads(1)
    made = provenance("python -m tinydiff.recipes.study_classifier_guidance")
    made |= {"seeds": list(SEEDS), "images": IMAGES, "floors": floors()}
    rows: list[dict[str, Any]] = load_results(name)["rows"] if (FOLDER / f"{name}.json").is_file() else []
    todo: list[tuple[list, Callable[[], dict[str, Any]]]] = []
    for part in parts:
        if part == "adagn":
            todo += [([part, c, 0, 20], lambda c=c: adagn_row(c)) for c in ("scale-shift", "add")]
        else:
            mine = [Run(part, "classifier", scale, MAKE[part]) for scale in SCALES[part]]
            todo += [(run.key, lambda run=run: measure(run, read_by_guide)) for run in mine]
    for key, work in progress(todo, desc="runs"):
        if key not in [[row[k] for k in ("part", "name", "w", "steps")] for row in rows]:
            rows.append(work())
            save_results(name, made | {"seconds": round(sum(row["seconds"] for row in rows)), "rows": rows})


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
