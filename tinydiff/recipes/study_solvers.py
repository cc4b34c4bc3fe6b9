"""Solvers on a trained network, and what churn repairs: a study over seeds for notebook 09.

    python -m tinydiff.recipes.study_solvers

Networks of the recipe `swiss_roll`, trained as EDM trains and as the score SDE does. The law of the roll is known in
closed form (`recipes.dpm.exact`), so a network's own error is measured as well: how far its ODE, solved well, carries a
point from where the exact one does. Results with provenance in data/results/09_solvers.json, which the notebook draws.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from tinydiff import datasets, metrics, targets
from tinydiff.denoisers import Denoiser, NetDenoiser, c_in_edm, c_noise_edm, denoiser
from tinydiff.exact import GaussianMixture
from tinydiff.losses import lognormal_times
from tinydiff.progress import progress
from tinydiff.recipes import dpm, swiss_roll
from tinydiff.recipes.base import last
from tinydiff.results import provenance, save_results
from tinydiff.samplers import (
    Sampler,
    dpm_solver_2,
    dpmpp_2m,
    edm_stochastic,
    euler,
    final,
    heun,
    probability_flow,
    rk1,
    rk2,
)
from tinydiff.schedules import EDM, VP, Schedule, Times, grid
from tinydiff.targets import Prediction

SEEDS = (0, 1, 2)
SAMPLES = 2000
SOLVERS = {"Euler": euler, "Heun": heun, "DPM-Solver-2": dpm_solver_2, "DPM-Solver++(2M)": dpmpp_2m}
CALLS = (5, 7, 9, 11, 15, 19, 27, 39, 79)
ONCE = {"Euler", "DPM-Solver++(2M)"}  # a call a step; the others make 2 n - 1 for n steps
CHURNS = (0.0, 2.5, 5.0, 10.0, 20.0, 40.0)
CHURN_STEPS = 50
STRAY = 0.2  # from the middle of the roll: four standard deviations
EVERYWHERE = (0.0, math.inf)
FIELDS = {  # size of the error field, and the noise levels where it acts
    "exact": (0.0, EVERYWHERE),
    "wrong at all levels": (0.3, EVERYWHERE),
    "wrong above 1": (0.3, (1.0, math.inf)),
    "wrong below 1": (0.3, (0.0, 1.0)),
}

# ---- data, rulers --------------------------------------------------------------------------------


def noise(schedule: Schedule, seed: int, n: int = SAMPLES, dtype: torch.dtype = torch.float32) -> Tensor:
    return schedule.prior_std * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@functools.cache
def middle() -> Tensor:
    """Points along the middle of the roll, a standard deviation of its noise apart."""
    return dpm.exact(dpm.Settings(), EDM()).means.float()


def exact_roll(schedule: Schedule) -> GaussianMixture:
    return GaussianMixture(middle(), dpm.Settings().noise, None, schedule)


def stray(x: Tensor) -> float:
    """Share of the points further than 0.2 from the middle of the roll. Of real data it is 3 in 100,000."""
    return (torch.cdist(x, middle()).amin(1) > STRAY).float().mean().item()


def apart(x: Tensor, y: Tensor) -> float:
    """Median distance between points that started from the same noise."""
    return (x - y).norm(dim=1).median().item()


def off(x: Tensor, seed: int, draw: Callable[..., Tensor] = datasets.swiss_roll) -> float:
    return metrics.energy_distance(x, draw(3000, seed=20_000 + seed))


def floor(n: int, draw: Callable[..., Tensor] = datasets.swiss_roll, draws: int = 20) -> float:
    """Median size of the energy distance that real draws of n points give."""
    return statistics.median(abs(off(draw(n, seed=21_000 + i), i, draw)) for i in range(draws))


# ---- networks ------------------------------------------------------------------------------------


def edm_net(seed: int) -> NetDenoiser:
    """As EDM: its preconditioning for data of variance 1, its noise levels in training, and the level in c_noise."""
    s = swiss_roll.Settings(seed=seed)
    d = replace(swiss_roll.denoiser(s, EDM(), targets.edm(1.0)), c_in=c_in_edm(1.0), c_noise=c_noise_edm)
    return last(swiss_roll.train(s, d, times=lognormal_times(EDM())))


def vp_net(seed: int) -> NetDenoiser:
    """As the score SDE on its variance-preserving path: the target eps, times even in t."""
    s = swiss_roll.Settings(seed=seed)
    return last(swiss_roll.train(s, swiss_roll.denoiser(s, VP(), targets.eps)))


# ---- quality against calls -----------------------------------------------------------------------


def steps_for(name: str, calls: int) -> int:
    return calls if name in ONCE else (calls + 1) // 2


def best(d: Denoiser, x: Tensor, ts: Tensor) -> Tensor:
    """The ODE of d, solved well."""
    return final(heun(d, x, ts))


def quality(d: Denoiser, seed: int, calls: tuple[int, ...] = CALLS) -> list[dict]:
    """All solvers at all numbers of calls on EDM's grid, from the same noise; first the network's own error."""
    x = noise(d.schedule, 22_000 + seed)
    fine = grid(d.schedule, 150)
    own, true = best(d, x, fine), best(exact_roll(d.schedule), x, fine)
    rows = [dict(seed=seed, solver="own", calls=0, off=off(own, seed), stray=stray(own), apart=apart(own, true))]
    for name, solver in SOLVERS.items():
        for k in calls:
            out = final(solver(d, x, grid(d.schedule, steps_for(name, k))))
            rows.append(
                dict(seed=seed, solver=name, calls=k, off=off(out, seed), stray=stray(out), apart=apart(out, own))
            )
    return rows


# ---- the steps from the score SDE's sampler to EDM's ---------------------------------------------


def even_times(n: int) -> Tensor:
    """The grid of the score SDE: even in t from 1 to 0.001."""
    return torch.cat([torch.linspace(1, 1e-3, n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def karras_times(schedule: Schedule, n: int, low: float = 0.002) -> Tensor:
    """EDM's spacing from the largest level of another schedule to `low`."""
    high = float(schedule.sigma(schedule.t_max) / schedule.alpha(schedule.t_max))
    edm = EDM(low, high)
    levels = edm.sigma(grid(edm, n)[:-1])
    ts = schedule.time(-2 * levels.log())
    ts[0] = schedule.t_max
    return torch.cat([ts, torch.zeros(1, dtype=torch.float64)])


def table() -> dict[str, tuple[Sampler, Tensor]]:
    """Sampler and grid of each row; calls are 256, 255, 35 and 35."""
    in_t, s = (partial(probability_flow, rule=rule) for rule in (rk1, rk2)), VP()
    first, second = in_t
    return {
        "Euler in t, even times": (first, even_times(256)),
        "Heun in t, Karras' times": (second, karras_times(s, 128)),
        "Heun in sigma / alpha, Karras' times": (heun, karras_times(s, 18)),
        "Euler in t, even times, 35 calls": (first, even_times(35)),
    }


# ---- churn ---------------------------------------------------------------------------------------


def ring(schedule: Schedule) -> GaussianMixture:
    return GaussianMixture(datasets.ring_means(), 0.1, None, schedule)


def wrong(d: Denoiser, size: float, levels: tuple[float, float], seed: int) -> Denoiser:
    """d with a smooth error in its belief, at noise levels within `levels`: of this size in EDM's unit-variance output.

    The error is a sum of 64 random waves over the input at unit variance and half the logarithm of the level.
    """
    g = torch.Generator().manual_seed(seed)
    waves, phases = torch.randn(3, 64, generator=g), 2 * math.pi * torch.rand(64, generator=g)
    heights = torch.randn(64, 2, generator=g) * (2 / 64) ** 0.5

    def believe(x: Tensor, t: Times) -> Prediction:
        p, c = d(x, t), d.schedule(t, like=x)
        total = (c.sigma**2 + c.alpha**2).sqrt()
        level = c.sigma / c.alpha
        place = torch.cat([x / total, level.log() / 2], dim=1)
        inside = (level >= levels[0]) & (level <= levels[1])
        return p.with_x0(p.x0 + size * inside * c.sigma / total * ((place @ waves + phases).cos() @ heights), c)

    return denoiser(believe, d.schedule)


def churned(d: Denoiser, churn: float, seed: int, n: int = SAMPLES) -> Tensor:
    """50 steps with churn at all levels, and no inflation of the noise."""
    x, g = noise(d.schedule, 23_000 + seed, n), torch.Generator().manual_seed(24_000 + seed)
    ts = grid(d.schedule, CHURN_STEPS)
    return final(edm_stochastic(d, x, ts, churn=churn, low=0.0, high=math.inf, noise=1.0, generator=g))


def main() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    solvers, steps, churn = [], [], []
    for seed in progress(SEEDS, desc="seeds"):
        d = edm_net(seed)
        solvers += quality(d, seed)
        for c in CHURNS:
            out = churned(d, c, seed)
            churn.append(dict(seed=seed, belief="network", churn=c, off=off(out, seed), stray=stray(out)))
        d = vp_net(seed)
        x = noise(d.schedule, 22_000 + seed)
        for name, (sampler, ts) in table().items():
            out = final(sampler(d, x, ts))
            steps.append(dict(seed=seed, row=name, off=off(out, seed), stray=stray(out)))
        for name, (size, levels) in FIELDS.items():
            d = wrong(ring(EDM()), size, levels, seed)
            for c in CHURNS:
                distance = off(churned(d, c, seed, 3000), seed, datasets.gaussian_ring)
                churn.append(dict(seed=seed, belief=name, churn=c, off=distance))
    made = provenance("python -m tinydiff.recipes.study_solvers")
    made |= {"settings": asdict(swiss_roll.Settings()), "seeds": SEEDS, "samples": SAMPLES}
    made |= {"floor": floor(SAMPLES), "floor_ring": floor(3000, datasets.gaussian_ring)}
    made |= {"seconds": round(time.process_time() - start)}
    save_results("09_solvers", made | {"rows": solvers, "steps": steps, "churn": churn})


if __name__ == "__main__":
    main()
