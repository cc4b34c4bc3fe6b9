"""What do noise, predictor and corrector do, with exact and with trained scores? Studies over seeds for notebook 06.

    python -m tinydiff.recipes.study_sde

Eight modes of unequal weights on a ring, so that the exact score is known beside the trained one. Results in
data/results/06_sde.json: energy distances (below 0 is chance, as at the floor) in

    table     of Song et al. 2021, table 1, at small size: predictors and correctors at equal numbers of calls
    starts    the probability flow from N(0, sigma_max^2), and from the data with noise sigma_max on them
    ratios    predictor-corrector with other signal-to-noise ratios r of the corrector
    noise     the family of reverse processes: how much noise, and how many steps
    filling   known part put in its place at each level: Kolmogorov-Smirnov statistics against the exact conditional
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, metrics, targets
from tinydiff.denoisers import Denoiser, NetDenoiser, c_in_edm, c_in_one
from tinydiff.exact import GaussianMixture, conditional
from tinydiff.progress import progress
from tinydiff.recipes import swiss_roll
from tinydiff.results import provenance, save_results
from tinydiff.samplers import (
    ancestral_step,
    final,
    flow_step,
    predictor_corrector,
    reverse_diffusion_step,
    reverse_sde,
    sample,
)
from tinydiff.schedules import VE, VP, Coefs, Schedule, grid
from tinydiff.targets import Prediction

MEANS, STD, WEIGHTS = datasets.ring_means(), 0.1, torch.arange(1.0, 9.0)
SCHEDULES = {"VE to 5": VE(0.01, 5.0), "VE to 20": VE(0.01, 20.0), "VP": VP()}
PREDICTORS = {"ancestral": ancestral_step, "reverse diffusion": reverse_diffusion_step, "flow": flow_step}
KINDS = {"P(N)": (1, 0), "P(2N)": (2, 0), "PC(N)": (1, 1)}  # (steps / N, corrections)
LEVELS, RATIOS, LAMBDAS = (10, 30, 100), (0.05, 0.16, 0.3, 0.5, 0.8), (0.0, 0.5, 1.0, 2.0)
SEEDS = (0, 1, 2)
# a coordinate is known and the other is filled in: the mixture of notebook 05
FILL_MEANS, FILL_STD, FILL_WEIGHTS = torch.tensor([[-0.5, -1.2], [0.5, 1.2], [0.5, -0.2]]), 0.4, [0.3, 0.5, 0.2]
FILL_SCHEDULES = {"VE": VE(0.01, 10.0), "VP": VP()}
GIVEN, FILL_LEVELS, CORRECTIONS = 0.1, (25, 100, 400), (0, 1, 4)


@dataclass(frozen=True)
class Settings:
    samples: int = 4000
    points: int = 20_000  # training data
    width: int = 64
    steps: int = 800
    seed: int = 0


def exact(schedule: Schedule) -> GaussianMixture:
    return GaussianMixture(MEANS, STD, WEIGHTS, schedule)


def train(s: Settings, schedule: Schedule) -> NetDenoiser:
    """The recipe of the swiss roll on the ring; the network predicts eps, so its score is -eps / sigma."""
    roll = swiss_roll.Settings(width=s.width, steps=s.steps, seed=s.seed)
    c_in = c_in_edm(1.0) if schedule.jumps else c_in_one
    d = replace(swiss_roll.denoiser(roll, schedule, targets.eps), c_in=c_in)
    data = exact(schedule).sample(s.points, torch.Generator().manual_seed(s.seed))
    *_, last = swiss_roll.train(roll, d, data)
    return last.denoiser


def stay(p: Prediction, x: Tensor, ct: Coefs, cs: Coefs) -> tuple[Tensor, float]:
    """The predictor that does not predict: what is left is the corrector alone."""
    return x, 0.0


def draw(d: Denoiser, s: Settings, n: int, **options: Any) -> Tensor:
    return sample(d, (s.samples, 2), n=n, sampler=predictor_corrector, seed=s.seed, **options)


def distance(x: Tensor, schedule: Schedule) -> float:
    """Energy distance to fresh data, with its sign. Samples that ran away count as infinitely far."""
    fresh = exact(schedule).sample(len(x), torch.Generator().manual_seed(999))
    return metrics.energy_distance(x, fresh) if x.isfinite().all() else float("inf")


def floors(s: Settings, pairs: int = 20) -> list[float]:
    """What real draws give."""
    mixture = exact(VP())
    real = (mixture.sample(s.samples, torch.Generator().manual_seed(1000 + k)) for k in range(pairs))
    return [abs(distance(x, VP())) for x in real]


def table(d: Denoiser, s: Settings) -> Iterator[dict[str, Any]]:
    """The rows of table 1 for one denoiser: N calls for P(N), 2N for the others."""
    for n in LEVELS:
        for predictor, step in PREDICTORS.items():
            for kind, (times, corrections) in KINDS.items():
                x = draw(d, s, times * n, predictor=step, corrections=corrections)
                yield dict(N=n, predictor=predictor, kind=kind, distance=distance(x, d.schedule))
        x = draw(d, s, n, predictor=stay, corrections=2)
        yield dict(N=n, predictor="none", kind="C(2N)", distance=distance(x, d.schedule))


def starts(s: Settings, n: int = 200) -> Iterator[dict[str, Any]]:
    """The probability flow of VE to 5 from the prior, and from a draw of the law that the path really has at t = 1."""
    d, g = exact(SCHEDULES["VE to 5"]), torch.Generator().manual_seed(s.seed)
    noise = d.schedule.sigma_max * torch.randn(s.samples, 2, generator=g)
    for name, x in (("prior", noise), ("exact", d.sample(s.samples, g) + noise)):
        x = final(predictor_corrector(d, x, grid(d.schedule, n), predictor=flow_step, corrections=0))
        yield dict(start=name, N=n, distance=distance(x, d.schedule))


def ratios(s: Settings, d: Denoiser) -> Iterator[dict[str, Any]]:
    for n in LEVELS[:2]:
        for predictor, step in PREDICTORS.items():
            for r in RATIOS:
                x = draw(d, s, n, predictor=step, snr=r)
                yield dict(N=n, predictor=predictor, r=r, distance=distance(x, d.schedule))


def noise(d: Denoiser, s: Settings) -> Iterator[dict[str, Any]]:
    for n in (25, 50, 100, 200):
        for lam in LAMBDAS:
            x = sample(d, (s.samples, 2), n=n, sampler=reverse_sde, seed=s.seed, lam=lam)
            yield dict(N=n, lam=lam, distance=distance(x, d.schedule))


def filling(s: Settings) -> Iterator[dict[str, Any]]:
    known, mask = torch.tensor([GIVEN, 0.0]), torch.tensor([True, False])
    for name, schedule in FILL_SCHEDULES.items():
        mixture = GaussianMixture(FILL_MEANS, FILL_STD, FILL_WEIGHTS, schedule)
        truth = conditional(mixture, known, mask)
        for n in FILL_LEVELS:
            for k in CORRECTIONS:
                x = draw(mixture, s, n, corrections=k, known=known.expand(s.samples, 2), mask=mask)[:, 1]
                yield dict(schedule=name, N=n, corrections=k, mean=x.mean().item(), ks=ks(x, truth))


def ks(x: Tensor, mixture: GaussianMixture) -> float:
    """sqrt(n) max |F_n - F| for data in one dimension: for true draws it exceeds 1.95 once in a thousand times."""
    x = x.double().sort().values
    cdf = (
        torch.special.ndtr((x[:, None] - mixture.means.double()[:, 0]) / mixture.std.double())
        @ mixture.weights.double()
    )
    k = torch.arange(len(x) + 1).double() / len(x)
    return torch.maximum(cdf - k[:-1], k[1:] - cdf).max().item() * len(x) ** 0.5


def main() -> None:
    torch.set_num_threads(1)
    began, parts = time.process_time(), {name: [] for name in ("table", "starts", "ratios", "noise", "filling")}

    def add(part: str, rows: Iterator[dict[str, Any]], **what: Any) -> None:
        parts[part] += [what | row for row in rows]

    for seed in progress(SEEDS, desc="seeds"):
        s = Settings(seed=seed)
        for name, schedule in SCHEDULES.items():
            add("table", table(exact(schedule), s), scores="exact", schedule=name, seed=seed)
            if name == "VE to 5":
                continue
            d = train(s, schedule)
            add("table", table(d, s), scores="trained", schedule=name, seed=seed)
            if name == "VP":
                add("noise", noise(d, s), scores="trained", seed=seed)
                add("noise", noise(exact(schedule), s), scores="exact", seed=seed)
        add("starts", starts(s), seed=seed)
        add("ratios", ratios(s, exact(SCHEDULES["VE to 20"])), seed=seed)
        add("filling", filling(s), seed=seed)
    made = provenance("python -m tinydiff.recipes.study_sde")
    made |= {"settings": asdict(Settings()), "seeds": SEEDS, "floor": floors(Settings())}
    save_results("06_sde", made | {"seconds": round(time.process_time() - began)} | parts)


if __name__ == "__main__":
    main()
