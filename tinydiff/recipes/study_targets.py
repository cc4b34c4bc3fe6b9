"""Which target and which noise schedule does a small network learn fastest? A study over seeds for notebook 01.

    python -m tinydiff.recipes.study_targets

The swiss-roll recipe, its target and schedule exchanged, all else equal; results with provenance in
data/results/01_targets.json, which the notebook draws.
"""

import dataclasses
import time

import torch

from tinydiff import datasets, metrics, targets
from tinydiff.progress import progress
from tinydiff.recipes import swiss_roll
from tinydiff.results import provenance, save_results
from tinydiff.schedules import Cosine, DiscreteVP, cosine_betas, linear_betas

SCHEDULES = {
    "linear betas": DiscreteVP(linear_betas(1000)),
    "cosine betas": DiscreteVP(cosine_betas(1000)),
    "cosine": Cosine(),
}
TARGETS = {"eps": targets.eps, "x0": targets.x0, "v": targets.v}
SEEDS = (0, 1, 2)


def main() -> None:
    torch.set_num_threads(1)
    s, start, rows = swiss_roll.Settings(), time.perf_counter(), []
    runs = [(a, b, seed) for a in SCHEDULES for b in TARGETS for seed in SEEDS]
    for schedule, target, seed in progress(runs, desc="runs"):
        mine = dataclasses.replace(s, seed=seed)
        d = swiss_roll.denoiser(mine, SCHEDULES[schedule], TARGETS[target])
        for step in swiss_roll.train(mine, d):
            last = step
        rows.append(dict(schedule=schedule, target=target, seed=seed) | swiss_roll.evaluate(last.denoiser, mine, seed))
    made = provenance("python -m tinydiff.recipes.study_targets")
    made |= {"settings": dataclasses.asdict(s), "seeds": SEEDS, "seconds": round(time.perf_counter() - start)}
    save_results("01_targets", made | {"usual": usual(s.samples), "rows": rows})


def usual(n: int, pairs: int = 40) -> float:
    """The energy distance that nine in ten pairs of real draws of n points stay below."""
    draw = lambda seed: datasets.swiss_roll(n, seed=30_000 + seed)  # noqa: E731
    real = [abs(metrics.energy_distance(draw(2 * k), draw(2 * k + 1))) for k in range(pairs)]
    return torch.tensor(real).quantile(0.9).item()


if __name__ == "__main__":
    main()
