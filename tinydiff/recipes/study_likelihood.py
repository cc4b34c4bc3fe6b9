"""How likely are held-out data under the ODE of a trained network? A study over seeds for notebook 07.

    python -m tinydiff.recipes.study_likelihood

The swiss roll, whose truth is known, with VP and sub-VP and two targets (Song et al. 2021 report lower bits for
sub-VP); and the digits with the network of notebook 02's study, in bits per dimension with uniform dequantisation, and
beside them the bound of the same network. data/results/07_likelihood.json is what the notebook draws.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, ode, targets
from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.guidance import static, thresholded
from tinydiff.likelihood import bound, clipped, discretised_log_likelihood
from tinydiff.losses import denoising_loss
from tinydiff.models import MLP
from tinydiff.progress import progress
from tinydiff.recipes import dpm, swiss_roll
from tinydiff.results import provenance, save_results
from tinydiff.samplers import large, small
from tinydiff.schedules import VP, Cosine, Flow, Schedule, SubVP, grid, logsnr_uniform
from tinydiff.targets import Target
from tinydiff.training import Step, fit, warmup_cosine

SEEDS = (0, 1, 2)
BIN = 1 / 8  # of the 17 levels between -1 and 1
SCHEDULES = {"VP": VP(), "sub-VP": SubVP(), "cosine": Cosine(), "straight": Flow()}
TARGETS = {"v": targets.v, "eps": targets.eps, "velocity": targets.velocity}
ROLLS = [("VP", "v"), ("sub-VP", "v"), ("VP", "eps"), ("sub-VP", "eps")]
# schedule, target, what the network is trained on
DIGITS = [(name, "v", "dequantised") for name in ("VP", "sub-VP", "cosine")]
DIGITS += [("straight", "velocity", "dequantised"), ("VP", "eps", "dequantised")]
DIGITS += [("VP", "v", "levels"), ("straight", "velocity", "levels")]

decoder = partial(discretised_log_likelihood, half_width=BIN / 2)


@dataclass(frozen=True)
class Settings:
    """Of the digits; the roll has those of its own recipe."""

    width: int = 256
    depth: int = 4
    steps: int = 2000
    batch_size: int = 64
    lr: float = 3e-3
    ema: float = 0.995
    seed: int = 0
    tol: float = 1e-3
    chain: int = 200  # steps of the bound


# ---- the digits ----------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    """Train and test digits as vectors of 64."""
    return datasets.digits_train().x0.flatten(1), datasets.digits_test().x0.flatten(1)


def dequantise(x0: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Noise uniform on a bin, so that levels become a density."""
    return x0 + BIN * (torch.rand(x0.shape, generator=generator) - 0.5)


def dequantised_loss(d: Denoiser, x0: Tensor, t: Tensor) -> Tensor:
    """The plain loss, with fresh noise on the levels at every step."""
    return denoising_loss(d, dequantise(x0), t)


def denoiser(s: Settings, schedule: Schedule, target: Target) -> NetDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        return NetDenoiser(MLP(dim=64, width=s.width, depth=s.depth, fourier=0), schedule, target)


def train(s: Settings, d: NetDenoiser, on: str = "dequantised", **options: Any) -> Iterator[Step]:
    return fit(
        d,
        digits()[0],
        steps=s.steps,
        loss=dequantised_loss if on == "dequantised" else denoising_loss,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        lr_schedule=warmup_cosine(warmup=100, end=0.02),
        **options,
    )


def bits(
    d: Denoiser, x0: Tensor, tol: float = 1e-3, seed: int = 0, noise: Callable[..., Tensor] = dequantise
) -> Tensor:
    """Bits per dimension of each digit, at one draw of the dequantisation and one probe; (n,)."""
    g = torch.Generator().manual_seed(seed)
    x = noise(x0, generator=g)
    probes = ode.hutchinson(ode.rademacher(x, generator=g))
    return ode.bits_per_dim(ode.ode_log_likelihood(d, x, divergence=probes, tol=tol), x.shape[1], BIN)


def bound_bits(d: Denoiser, x0: Tensor, steps: int, var: Callable[..., Tensor], seed: int = 0) -> Tensor:
    """The bound of a chain of the same network in bits per dimension, x0 clipped as in notebook 02; (n,)."""
    g = torch.Generator().manual_seed(seed)
    options = dict(var=var, decoder=decoder, decoder_var=clipped(small, d.schedule), generator=g)
    return bound(thresholded(d, static()), x0, grid(d.schedule, steps), **options).total


def digit_row(s: Settings, schedule: str, target: str, on: str) -> dict[str, Any]:
    test = digits()[1]
    for step in train(s, denoiser(s, SCHEDULES[schedule], TARGETS[target]), on):
        pass
    d = step.denoiser
    b = bits(d, test, s.tol)
    return dict(
        schedule=schedule,
        target=target,
        trained_on=on,
        seed=s.seed,
        bits=b.mean().item(),
        standard_error=(b.std() / len(b) ** 0.5).item(),
        median=b.median().item(),
        largest=b.max().item(),
        above_chance=(b > math.log2(17)).sum().item(),
        without_noise=bits(d, test, s.tol, noise=lambda x, generator: x).mean().item(),
        bound={v.__name__: bound_bits(d, test, s.chain, v).mean().item() for v in (small, large)},
        largest_bound=bound_bits(d, test, s.chain, large).max().item(),
    )


# ---- the roll ------------------------------------------------------------------------------------


def roll_row(s: swiss_roll.Settings, schedule: str, target: str) -> dict[str, Any]:
    """Mean log-density of 1,000 new points in nats, and by how much it is behind the truth; that of a chain as well."""
    S, x = SCHEDULES[schedule], datasets.swiss_roll(1000, seed=1)
    for step in swiss_roll.train(s, swiss_roll.denoiser(s, S, TARGETS[target])):
        pass
    law = dpm.exact(dpm.Settings(), S)
    log_p = ode.ode_log_likelihood(step.denoiser, x, tol=1e-4)
    lost = law.log_prob(x.double(), S.t_min) - log_p
    by_chain = chain_nats(law, x) - chain_nats(step.denoiser, x)
    return dict(
        schedule=schedule,
        target=target,
        seed=s.seed,
        log_p=log_p.mean().item(),
        lost=lost.mean().item(),
        standard_error=(lost.std() / len(lost) ** 0.5).item(),
        lost_by_chain=by_chain.mean().item(),
        standard_error_by_chain=(by_chain.std() / len(by_chain) ** 0.5).item(),
    )


def chain_nats(d: Denoiser, x0: Tensor, steps: int = 300, seed: int = 0) -> Tensor:
    """The bound with the variance beta on a grid even in log-SNR, in nats: with one seed, of one noise; (n,)."""
    g = torch.Generator().manual_seed(seed)
    ts = grid(d.schedule, steps, logsnr_uniform)
    return -bound(d, x0, ts, var=large, decoder_var=large, generator=g).total * x0.shape[1] * math.log(2)


def main() -> None:
    torch.set_num_threads(1)
    s, roll, start, rows, rolls = Settings(), swiss_roll.Settings(), time.process_time(), [], []
    runs = [(row, seed) for row in ROLLS for seed in SEEDS]
    for row, seed in progress(runs, desc="roll"):
        rolls.append(roll_row(replace(roll, seed=seed), *row))
    runs = [(row, seed) for row in DIGITS for seed in SEEDS]
    for row, seed in progress(runs, desc="digits"):
        rows.append(digit_row(replace(s, seed=seed), *row))
    made = provenance("python -m tinydiff.recipes.study_likelihood")
    made |= dict(settings=dict(digits=asdict(s), roll=asdict(roll)), seeds=SEEDS)
    made |= dict(seconds=round(time.process_time() - start))
    save_results("07_likelihood", made | dict(rows=_rounded(rows), roll=_rounded(rolls)))


def _rounded(v: Any) -> Any:
    if isinstance(v, dict):
        return {name: _rounded(one) for name, one in v.items()}
    if isinstance(v, list):
        return [_rounded(one) for one in v]
    return float(f"{v:.6g}") if isinstance(v, float) else v


if __name__ == "__main__":
    main()
