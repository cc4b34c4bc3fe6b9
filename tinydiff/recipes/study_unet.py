"""Which part of the U-Net does what? A study over seeds for notebook 11.

    python -m tinydiff.recipes.study_unet

The digits recipe, one part of the network exchanged or left out at a time, all else equal: the same batches, times and
noise. Judged by the validation loss of fixed noise on the 360 held-out digits, in v, at 16 times, so that a part that
matters at one noise level only is seen. Results with provenance in data/results/11_unet.json, written after each run,
so that a study cut short goes on where it was.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from tinydiff import datasets, targets
from tinydiff.denoisers import NetDenoiser
from tinydiff.losses import fixed_noise_loss
from tinydiff.models import UNet, cost
from tinydiff.progress import progress
from tinydiff.recipes import digits
from tinydiff.results import FOLDER, load_results, provenance, save_results
from tinydiff.schedules import Cosine
from tinydiff.training import Step

NAME = "11_unet"
SEEDS = (0, 1, 2)
SETTINGS = digits.Settings(steps=600)
FULL = dict(width=SETTINGS.width, features=SETTINGS.width)
VARIANTS: dict[str, dict[str, Any]] = {
    "all parts": {},
    "no skips": dict(skips=False),
    "not told the noise level": dict(condition="none"),
    "condition added": dict(condition="add"),
    "no attention": dict(attention=(False, False), middle_attention=False),
    "no normalisation": dict(groups=0),
    "branches not zero at first": dict(zero=False),
    "resampling within blocks": dict(resample="block"),
}


def denoiser(variant: str, seed: int) -> NetDenoiser:
    """Without classes, for a network that is told nothing cannot be told its class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetDenoiser(UNet(**FULL | VARIANTS[variant]), Cosine(), targets.v)


def train(variant: str, seed: int, settings: digits.Settings = SETTINGS) -> Iterator[Step]:
    return digits.train(replace(settings, seed=seed), make=lambda s: denoiser(variant, s.seed), labelled=False)


def losses(d: NetDenoiser) -> list[float]:
    """At times (k + 1/2) / 16: the mean over the held-out digits."""
    return fixed_noise_loss(d, datasets.digits_test().x0).mean(1).tolist()


def run(variant: str, seed: int, settings: digits.Settings = SETTINGS) -> dict[str, Any]:
    start = time.process_time()
    try:
        for step in train(variant, seed, settings):
            last = step
        found = losses(last.denoiser)
    except FloatingPointError as error:
        return dict(variant=variant, seed=seed, error=str(error))
    net, one = last.denoiser.net, (torch.zeros(1, 1, 8, 8), torch.zeros(1))
    row = dict(variant=variant, seed=seed, loss=found, parameters=cost.parameters(net), macs=cost.macs(net, *one))
    return row | {"cpu_seconds": round(time.process_time() - start, 1)}


def main() -> None:
    torch.set_num_threads(1)
    made = provenance("python -m tinydiff.recipes.study_unet") | {"settings": asdict(SETTINGS), "seeds": SEEDS}
    rows = load_results(NAME)["rows"] if (FOLDER / f"{NAME}.json").is_file() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    runs = [(v, seed) for seed in SEEDS for v in VARIANTS if (v, seed) not in done]
    for variant, seed in progress(runs, desc="runs"):
        rows.append(run(variant, seed))
        save(made, rows)
    save(made, rows)


def save(made: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    seconds = round(sum(row.get("cpu_seconds", 0.0) for row in rows))  # of the CPU, over all calls of this study
    save_results(NAME, made | {"seconds": seconds, "rows": rows})


if __name__ == "__main__":
    main()
