"""Do annealed chains find the weights of two modes, with a trained network as well? A study over seeds for notebook 05.

    python -m tinydiff.recipes.study_ncsn_toy

The toy of Song & Ermon 2019, section 3.2.2 and figure 3: modes of weights 0.8 and 0.2 at (5, 5) and (-5, -5), with unit
covariance. Level sigma is the standard deviation of the modes, as in the paper's code, so that the data are two points
and the density that we want is theirs at the last level, 1. Results in data/results/05_ncsn_toy.json.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from tinydiff import metrics, ncsn, targets
from tinydiff.denoisers import Denoiser, NetDenoiser, c_in_edm
from tinydiff.exact import GaussianMixture
from tinydiff.models import MLP
from tinydiff.progress import progress
from tinydiff.results import provenance, save_results
from tinydiff.samplers import annealed_langevin, final, langevin
from tinydiff.schedules import VE, grid
from tinydiff.training import Step, fit, warmup_cosine

MEANS, WEIGHTS = torch.tensor([[5.0, 5.0], [-5.0, -5.0]]), [0.8, 0.2]
SCHEDULE = VE(1.0, 20.0)
EXACT = GaussianMixture(MEANS, 0.0, WEIGHTS, SCHEDULE)
SEEDS = (0, 1, 2)
LONG_SEEDS = (0, 1, 2, 3)  # of 20,000 chains with exact scores, on ladders of 10 and of 20 levels


@dataclass(frozen=True)
class Settings:
    levels: int = 20  # the paper's code has 10: then 0.8 comes out as 0.78, with exact scores
    each: int = 100  # steps at each level
    eps: float = 0.1  # step size at the last level
    chains: int = 2000
    plain: int = 500  # steps without a ladder
    width: int = 64
    steps: int = 600
    batch_size: int = 512
    lr: float = 2e-3
    ema: float = 0.99
    seed: int = 0


def train(s: Settings) -> Iterator[Step]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        net = MLP(dim=2, width=s.width)
    d = NetDenoiser(net, SCHEDULE, targets.eps, c_in=c_in_edm(5.0))
    times = ncsn.level_times(grid(SCHEDULE, s.levels))
    data = EXACT.sample(20_000, torch.Generator().manual_seed(s.seed))
    rates = warmup_cosine(warmup=50, end=0.02)
    return fit(
        d,
        data,
        steps=s.steps,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        times=times,
        lr_schedule=rates,
    )


def start(s: Settings) -> Tensor:
    """Uniform on [-8, 8]^2, as in the paper."""
    return 16 * torch.rand(s.chains, 2, generator=torch.Generator().manual_seed(s.seed)) - 8


def plain(d: Denoiser, s: Settings) -> Tensor:
    """Langevin dynamics with the score of the last level and nothing else."""

    def score(x: Tensor) -> Tensor:
        return d(x, SCHEDULE.t_min).score(SCHEDULE(SCHEDULE.t_min, like=x))

    return final(langevin(score, start(s), [s.eps] * s.plain, torch.Generator().manual_seed(s.seed + 100)))


def annealed(d: Denoiser, s: Settings) -> Tensor:
    ts, g = grid(SCHEDULE, s.levels), torch.Generator().manual_seed(s.seed + 200)
    return final(annealed_langevin(d, start(s), ts, s.each, s.eps, g, denoise=False))


def weight(x: Tensor) -> float:
    """Share of the points nearest to the mode of weight 0.8."""
    return metrics.mode_weights(x, MEANS)[0].item()


def main() -> None:
    torch.set_num_threads(1)
    began, rows = time.process_time(), []
    for seed in progress(SEEDS, desc="networks"):
        s = Settings(seed=seed)
        *_, last = train(s)
        for scores, d in (("exact", EXACT), ("trained", last.denoiser)):
            for sampler in (plain, annealed):
                rows.append(dict(seed=seed, scores=scores, sampler=sampler.__name__, weight=weight(sampler(d, s))))
    ladders = []
    for levels in (10, 20):
        for seed in LONG_SEEDS:
            s = replace(Settings(), levels=levels, chains=20_000, seed=seed)
            ladders.append(dict(levels=levels, chains=s.chains, seed=seed, weight=weight(annealed(EXACT, s))))
    made = provenance("python -m tinydiff.recipes.study_ncsn_toy")
    made |= {"settings": asdict(Settings()), "seeds": SEEDS, "seconds": round(time.process_time() - began)}
    save_results("05_ncsn_toy", made | {"rows": rows, "ladders": ladders})


if __name__ == "__main__":
    main()
