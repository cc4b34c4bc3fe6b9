"""What does each technique of NCSNv2 do for 8x8 digits? A study over seeds for notebook 05.

    python -m tinydiff.recipes.study_ncsn

From NCSN's settings to NCSNv2's, one technique at a time taken out of the whole (Song & Ermon 2020), at the same number
of network calls; results with provenance in data/results/05_ncsn.json, which the notebook draws. Pixels are in [0, 1],
as in both papers, so that sigma_L = 0.01 means the same.
"""

import copy
import functools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from tinydiff import datasets, metrics, ncsn, targets
from tinydiff.denoisers import NetDenoiser
from tinydiff.losses import denoising_loss
from tinydiff.models import UNet
from tinydiff.progress import progress
from tinydiff.results import provenance, save_results
from tinydiff.samplers import annealed_langevin
from tinydiff.schedules import VE, grid
from tinydiff.training import Step, fit

SEEDS = (0, 1, 2)
LAST = 0.01  # sigma_L
CALLS = 210  # of the network, for a sample
SAMPLES = 150
RATIO = ncsn.ladder_ratio(64)  # gamma by technique 2, for 8 x 8 pixels


@dataclass(frozen=True)
class Settings:
    """NCSNv2's choices for the digits; `SETS` has the others."""

    first: float | None = None  # sigma_1; None: technique 1
    levels: int | None = None  # L; None: technique 2
    told: bool = False  # a row of weights for each level, and the output is the score; else technique 3
    step: float | None = None  # a at the last level; None: technique 4
    averaged: bool = True  # technique 5
    denoise: bool = True
    width: int = 12  # of the U-Net: 0.1 M parameters
    steps: int = 300
    batch_size: int = 64
    lr: float = 4e-3  # constant, as in the papers
    ema: float = 0.99  # 0.999 in the paper, which trains 1,000 times as long
    seed: int = 0


WHOLE = Settings()
SETS = {
    "all five": WHOLE,
    "without 1": replace(WHOLE, first=1.0),
    "without 2": replace(WHOLE, levels=10),
    "without 3": replace(WHOLE, told=True),
    "NCSN": Settings(first=1.0, levels=10, told=True, step=2e-5, averaged=False, denoise=False),
}


@functools.cache
def pixels() -> tuple[Tensor, Tensor]:
    """Training and test digits (n, 1, 8, 8), in [0, 1]."""
    return tuple((part.x0 + 1) / 2 for part in (datasets.digits_train(), datasets.digits_test()))


def ladder(s: Settings) -> tuple[VE, Tensor, int, float]:
    """(schedule, times, steps a level, step size a) of these settings."""
    first = s.first or ncsn.largest_distance(pixels()[0])
    levels = s.levels or ncsn.ladder_length(first, LAST, RATIO)
    gamma, each = (first / LAST) ** (1 / (levels - 1)), round(CALLS / levels)
    schedule = VE(LAST, first)
    return schedule, grid(schedule, levels), each, s.step or ncsn.best_step(LAST, gamma, each)


def denoiser(s: Settings) -> NetDenoiser:
    schedule, ts, _, _ = ladder(s)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        net = UNet(width=s.width, attention=(False, False), classes=len(ts) - 1 if s.told else None)
    if s.told:
        return NetDenoiser(ncsn.ByLevel(net), schedule, targets.score, c_noise=ncsn.level_number(ts))
    return NetDenoiser(net, schedule, targets.eps, c_noise=ncsn.untold)


def loss(d: NetDenoiser, x0: Tensor, t: Tensor) -> Tensor:
    """NCSN's loss, whatever the target: the weight sigma^2 on the error of the score is the weight 1 on that of eps."""
    return denoising_loss(d, x0, t, weight=ncsn.sigma_squared if d.target is targets.score else None)


def train(s: Settings, d: NetDenoiser) -> Iterator[Step]:
    return fit(
        d,
        pixels()[0],
        loss=loss,
        steps=s.steps,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        times=ncsn.level_times(ladder(s)[1]),
    )


def generate(d: NetDenoiser, s: Settings, n: int = SAMPLES, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """(the last noisy x, its x0), from uniform noise as in the papers; the step size times `factor`."""
    _, ts, each, a = ladder(s)
    g = torch.Generator().manual_seed(s.seed)
    x = torch.rand(n, 1, 8, 8, generator=g)
    for state in annealed_langevin(d, x, ts, each, 2 * a * factor, g):
        noisy, x = x, state.x
    return noisy, x


def measure(x: Tensor) -> dict[str, float]:
    """Energy distance to the test digits, memorisation, and `grain`: how noisy the pixels are that should be blank.

    Blank are the pixels whose mean over the training digits is below 0.001. Grain is the median of their size, over
    that of a standard normal: the standard deviation of noise on them, whatever the few that hold ink.
    """
    real, test = pixels()
    blank = real.mean(0) < 1e-3
    return {
        "energy_distance": metrics.energy_distance(x, test),
        "memorisation": metrics.memorisation(x, real, test),
        "grain": x[:, blank].abs().median().item() / 0.6745,
    }


def floor(n: int = SAMPLES, draws: int = 20) -> list[float]:
    """Energy distance of `draws` draws of n training digits to the test digits."""
    real, test = pixels()
    g = torch.Generator().manual_seed(0)
    return [abs(metrics.energy_distance(real[torch.randperm(len(real), generator=g)[:n]], test)) for _ in range(draws)]


def run(name: str, seed: int) -> list[dict]:
    """One network, and all that is measured of it."""
    s = replace(SETS[name], seed=seed)
    d, rows = denoiser(s), []

    def add(what: str, d: NetDenoiser, both: bool = False, **options: float) -> None:
        noisy, clean = generate(d, s, **options)
        rows.append(dict(set=what, seed=seed) | measure(clean if s.denoise else noisy))
        if both:
            rows.append(dict(set=f"{what}, no denoising", seed=seed) | measure(noisy))

    for step in train(s, d):
        if name == "all five" and step.number > s.steps - 60 and step.number % 20 == 0:
            raw = replace(step.denoiser, net=copy.deepcopy(d.net).eval())
            for what, which in (("averaged", step.denoiser), ("raw", raw)):
                rows.append(dict(set=what, seed=seed, step=step.number) | measure(generate(which, s, 100)[1]))
    last = step.denoiser if s.averaged else replace(d, net=d.net.eval())
    add(name, last, both=name == "all five")
    if name == "all five":
        for factor in (0.25, 4.0):
            add(f"step x {factor:g}", last, factor=factor)
        add("without 5", replace(d, net=d.net.eval()))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    start, rows = time.process_time(), []
    for name, seed in progress([(name, seed) for seed in SEEDS for name in SETS], desc="networks"):
        rows += run(name, seed)
    made = provenance("python -m tinydiff.recipes.study_ncsn")
    made |= {"settings": {name: asdict(s) for name, s in SETS.items()}, "seeds": SEEDS}
    made |= {"ladders": {name: dict(zip(("each", "a"), ladder(s)[2:], strict=True)) for name, s in SETS.items()}}
    save_results("05_ncsn", made | {"seconds": round(time.process_time() - start), "floor": floor(), "rows": rows})


if __name__ == "__main__":
    main()
