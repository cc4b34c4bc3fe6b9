"""The systems of the ledger, notebooks 06 to 10: SDEs and ODEs, their solvers, and flows; all on the swiss roll.

As in `systems`, which has the data and notebooks 01 to 05. All networks are those of the recipe `swiss_roll`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, flow, ode, targets
from tinydiff.denoisers import Denoiser, c_in_edm, c_in_one
from tinydiff.losses import logit_normal_times, lognormal_times
from tinydiff.recipes import swiss_roll
from tinydiff.recipes.systems import DDPM, SWISS_ROLL, System, last
from tinydiff.samplers import (
    ancestral,
    ddim,
    ddim_inverse,
    dpm_solver_2,
    dpmpp_2m,
    edm_stochastic,
    euler,
    final,
    heun,
    large,
    predictor_corrector,
    probability_flow,
    reverse_sde,
    rk2,
    sample,
)
from tinydiff.schedules import EDM, VE, VP, Flow, Schedule, grid, logsnr_uniform
from tinydiff.targets import Target

Train = Callable[[int], Denoiser]
Draw = Callable[[Denoiser, int, int], Tensor]


def trained(schedule: Schedule, target: Target, c_in: Any = c_in_one, batch_size: int = 512, **options: Any) -> Train:
    """The recipe with another schedule and target; options are fit's."""

    def train(seed: int) -> Denoiser:
        s = swiss_roll.Settings(seed=seed, batch_size=batch_size)
        return last(swiss_roll.train(s, replace(swiss_roll.denoiser(s, schedule, target), c_in=c_in), **options))

    return train


def by(sampler: Callable, n: int, **options: Any) -> Draw:
    """n steps of a sampler on the schedule's even grid."""
    return lambda d, count, seed: sample(d, (count, 2), n=n, sampler=sampler, seed=seed, **options)


def by_logsnr(sampler: Callable, n: int) -> Draw:
    """n steps, the last of them from t_min into the data, on a grid even in log-SNR."""

    def draw(d: Denoiser, count: int, seed: int) -> Tensor:
        return sample(d, (count, 2), sampler=sampler, seed=seed, ts=grid(d.schedule, n, logsnr_uniform))

    return draw


# 07, 08


def by_rk45(d: Denoiser, n: int, seed: int) -> Tensor:
    """The ODE to its end at the paper's tolerance."""
    x = d.schedule.prior_std * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return ode.flow_map(d, x, d.schedule.t_max, d.schedule.t_min)


def round_trip(n_steps: int) -> Draw:
    """Fresh data to noise and back, so the distance has both errors."""

    def draw(d: Denoiser, n: int, seed: int) -> Tensor:
        ts = grid(d.schedule, n_steps)
        return final(ddim(d, final(ddim_inverse(d, datasets.swiss_roll(n, seed=seed), ts)), ts))

    return draw


# 10


def reflowed(seed: int) -> Denoiser:
    """A flow matched to the data, and a second one to the pairs that the first makes of fresh noise."""
    s = swiss_roll.Settings(seed=seed)
    first = FLOW(seed)
    noise = torch.randn(s.points, 2, generator=torch.Generator().manual_seed(50_000 + seed))
    pairs = flow.reflow_pairs(first, noise, grid(first.schedule, 50), partial(probability_flow, rule=rk2))
    return last(swiss_roll.train(s, swiss_roll.denoiser(s, first.schedule, targets.velocity), pairs))


SDE, EDM_NET = trained(VP(), targets.eps), trained(EDM(), targets.edm(1.0), c_in_edm(1.0), times=lognormal_times(EDM()))
FLOW = trained(Flow(), targets.velocity)
TRANSPORT = trained(Flow(), targets.velocity, batch_size=256, loss=flow.transport_loss)  # its solver is cubic
SYSTEMS = [
    System("06", "Score SDE, VP; reverse SDE", SWISS_ROLL, SDE, by(reverse_sde, 500)),
    System("06", "Score SDE, VP; predictor-corrector", SWISS_ROLL, SDE, by(predictor_corrector, 250)),
    System(
        "06",
        "Score SDE, VE; predictor-corrector",
        SWISS_ROLL,
        trained(VE(0.01, 20.0), targets.eps, c_in_edm(1.0)),
        by(predictor_corrector, 250),
    ),
    System("07", "Score SDE, VP; probability-flow ODE by RK45", SWISS_ROLL, SDE, by_rk45),
    System("08", "DDIM, linear betas", SWISS_ROLL, DDPM, by(ddim, 20)),
    System("08", "DDIM, linear betas, eta = 1", SWISS_ROLL, DDPM, by(ddim, 20, eta=1.0)),
    System("08", "DDPM's large variance", SWISS_ROLL, DDPM, by(ancestral, 20, var=large)),
    System("08", "DDIM inversion of real data, and back", SWISS_ROLL, DDPM, round_trip(100)),
    System("09", "EDM; Euler", SWISS_ROLL, EDM_NET, by(euler, 35)),
    System("09", "EDM; Heun", SWISS_ROLL, EDM_NET, by(heun, 18)),
    System("09", "EDM; stochastic", SWISS_ROLL, EDM_NET, by(edm_stochastic, 40)),
    System("09", "DDPM, linear betas; DPM-Solver-2", SWISS_ROLL, DDPM, by_logsnr(dpm_solver_2, 10)),
    System("09", "DDPM, linear betas; DPM-Solver++(2M)", SWISS_ROLL, DDPM, by_logsnr(dpmpp_2m, 10)),
    System("10", "flow matching", SWISS_ROLL, FLOW, by(euler, 20)),
    System(
        "10",
        "flow matching, logit-normal times",
        SWISS_ROLL,
        trained(Flow(), targets.velocity, times=logit_normal_times()),
        by(euler, 20),
    ),
    System("10", "flow matching, transport in batches of 256", SWISS_ROLL, TRANSPORT, by(euler, 20)),
    System("10", "flow matching, one step", SWISS_ROLL, FLOW, by(euler, 1)),
    System("10", "rectified flow, second round, one step", SWISS_ROLL, reflowed, by(euler, 1)),
]
