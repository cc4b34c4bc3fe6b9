"""Does EDM's preconditioning help a small network? A study over seeds for notebook 09.

    python -m tinydiff.recipes.study_preconditioning

The same network on the same noise levels, and what goes in and what it is asked for exchanged. The exact belief D* of
the roll is known, so the error is measured at each level alone: lambda E|D - D*|^2, which is the error of EDM's output
F, whose target has variance 1 for each coordinate. Results with provenance in data/results/09_preconditioning.json.
"""

import time
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from tinydiff import datasets, targets
from tinydiff.denoisers import Denoiser, NetDenoiser, c_in_edm, c_in_one, c_noise_edm
from tinydiff.losses import denoising_loss, lognormal_times
from tinydiff.progress import progress
from tinydiff.recipes import swiss_roll
from tinydiff.recipes.study_solvers import exact_roll, floor, last, noise, off, stray
from tinydiff.results import provenance, save_results
from tinydiff.samplers import dpmpp_2m, final
from tinydiff.schedules import EDM, Coefs, grid

S = EDM()
SEEDS = (0, 1, 2)
LEVELS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 80.0)
SETTINGS = swiss_roll.Settings(steps=450, width=128)


def edm_weight(c: Coefs) -> Tensor:
    """lambda: on the error of x0 it is the weight 1 on the error of F (Karras et al. 2022, eq. 8), sigma_data = 1."""
    return (c.sigma**2 + c.alpha**2) / c.sigma**2


WAYS: dict[str, tuple] = {  # what the network predicts, what its input is multiplied by, the loss's weight
    "EDM": (targets.edm(1.0), c_in_edm(1.0), None),
    "x0, input as it is": (targets.x0, c_in_one, None),
    "eps, input as it is": (targets.eps, c_in_one, None),
    "x0, scaled input": (targets.x0, c_in_edm(1.0), None),
    "eps, scaled input": (targets.eps, c_in_edm(1.0), None),
    "x0, EDM's weight": (targets.x0, c_in_edm(1.0), edm_weight),
    "EDM, input as it is": (targets.edm(1.0), c_in_one, None),
}


def train(way: str, seed: int, settings: swiss_roll.Settings = SETTINGS) -> NetDenoiser:
    """By the squared error of what is predicted: for EDM's output F, unweighted, it is lambda's on the denoiser."""
    s, (target, c_in, weight) = replace(settings, seed=seed), WAYS[way]
    d = replace(swiss_roll.denoiser(s, S, target), c_in=c_in, c_noise=c_noise_edm)
    return last(swiss_roll.train(s, d, times=lognormal_times(S), loss=partial(denoising_loss, weight=weight)))


@torch.no_grad()
def errors(d: Denoiser, seed: int, n: int = 3000) -> list[float]:
    """lambda E|D - D*|^2 / 2 at each level: 0 is exact, and what predicts nothing useful has about 1."""
    x0, g = datasets.swiss_roll(n, seed=25_000 + seed), torch.Generator().manual_seed(seed)
    out = []
    for level in LEVELS:
        t = float(S.time(-2 * torch.tensor(level, dtype=torch.float64).log()))
        x = x0 + level * torch.randn(x0.shape, generator=g)
        error = (d(x, t).x0 - exact_roll(S)(x, t).x0).square().mean().item()
        out.append(error * (level**2 + 1) / level**2)
    return out


def main() -> None:
    torch.set_num_threads(1)
    start, rows = time.process_time(), []
    for way, seed in progress([(way, seed) for way in WAYS for seed in SEEDS], desc="runs"):
        d = train(way, seed)
        x = final(dpmpp_2m(d, noise(S, 22_000 + seed), grid(S, 40)))
        rows.append(dict(way=way, seed=seed, off=off(x, seed), stray=stray(x), errors=errors(d, seed)))
    made = provenance("python -m tinydiff.recipes.study_preconditioning")
    made |= {"settings": asdict(SETTINGS), "seeds": SEEDS, "levels": LEVELS, "floor": floor(2000)}
    save_results("09_preconditioning", made | {"seconds": round(time.process_time() - start), "rows": rows})


if __name__ == "__main__":
    main()
