"""Improved DDPM on the digits: which schedule, which loss, which variance, how many steps? A study for notebook 02.

    python -m tinydiff.recipes.study_improved
    python -m tinydiff.recipes.study_improved last_steps

Nichol & Dhariwal 2021, sections 3 and 4, at 8 x 8 pixels of 17 grey levels: both schedules times their four objectives,
and L_simple with shorter and longer chains, three seeds each. data/results/02_improved.json is what the notebook draws.
The second command asks why L_vlb trains badly on the cosine schedule: because of its last steps? It caps their betas.

Bits per dimension and samples are those of the averaged weights, with x0 clipped to [-1, 1] at every step, as in the
official code. Losses in training do not clip. Gradients are not clipped either.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, metrics, targets
from tinydiff.denoisers import Denoiser, NetDenoiser, interpolated_variance
from tinydiff.denoisers import denoiser as as_denoiser
from tinydiff.guidance import static, thresholded
from tinydiff.hybrid import LossSecondMoment, hybrid_loss, vlb_loss
from tinydiff.likelihood import bound, clipped, discretised_log_likelihood, vlb_term
from tinydiff.losses import denoising_loss, step_times
from tinydiff.models import MLP
from tinydiff.progress import progress
from tinydiff.results import provenance, save_results
from tinydiff.samplers import ancestral, large, learned, sample, small
from tinydiff.schedules import DiscreteVP, cosine_betas, grid, linear_betas, strided
from tinydiff.targets import Prediction
from tinydiff.training import Step, fit, warmup_cosine

SEEDS = (0, 1, 2)
BETAS = {"linear": linear_betas, "cosine": cosine_betas}
OBJECTIVES = ("L_simple", "L_hybrid", "L_vlb", "L_vlb importance")
LENGTHS = (50, 1000)  # of other chains than Settings.chain
CAP = 0.1  # of the betas, in `last_steps`; the paper's is 0.999
FIRST_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SAMPLED = {
    "L_simple": ("small",),
    "L_hybrid": ("small", "large", "learned"),
    "L_vlb": (),
    "L_vlb importance": ("learned",),
}
VARIANCES = {"small": small, "large": large, "learned": learned}

decoder = partial(discretised_log_likelihood, half_width=1 / 16)  # 17 levels


@dataclass(frozen=True)
class Settings:
    chain: int = 200  # T
    steps: int = 2000
    batch_size: int = 64
    width: int = 256
    depth: int = 4
    lr: float = 3e-3
    ema: float = 0.995
    history: int = 10  # of each step's losses, as published
    seed: int = 0
    samples: int = 400
    sampling_steps: tuple[int, ...] = (5, 10, 20, 50, 200)
    gradients: int = 32  # batches, to measure the noise of a gradient
    measured_at: tuple[int, ...] = (300, 1000, 2000)


def digits() -> tuple[Tensor, Tensor]:
    """Train and test digits as vectors of 64."""
    return datasets.digits_train().x0.flatten(1), datasets.digits_test().x0.flatten(1)


def denoiser(s: Settings, betas: Callable[[int], Tensor]) -> NetDenoiser:
    """An untrained network of two outputs: the noise, and the interpolation of the variance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        net = MLP(dim=64, width=s.width, depth=s.depth, fourier=0, outputs=2)
    return NetDenoiser(net, DiscreteVP(betas(s.chain)), targets.eps, var=interpolated_variance)


def train(s: Settings, d: NetDenoiser, objective: str, **options: Any) -> Iterator[Step]:
    times, vlb = step_times(s.chain), partial(vlb_loss, decoder=decoder)
    by_size = LossSecondMoment(s.chain, s.history)
    loss, times = {
        "L_simple": (denoising_loss, times),
        "L_hybrid": (partial(hybrid_loss, decoder=decoder), times),
        "L_vlb": (vlb, times),
        "L_vlb importance": (by_size.weighted(vlb), by_size),
    }[objective]
    return fit(
        d,
        digits()[0],
        steps=s.steps,
        loss=loss,
        times=times,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        lr_schedule=warmup_cosine(warmup=100, end=0.02),
        clip=math.inf,
        **options,
    )


# ---- what is measured ----------------------------------------------------------------------------


def bits(d: Denoiser, x0: Tensor, names: tuple[str, ...], n: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Bits per dimension with n strided steps, for each variance: in all, of the prior, and of each step from t = 1 on.

    All variances see the same noise, so the network is asked once.
    """
    ts, clip, seen = grid(d.schedule, n, strided), thresholded(d, static()), {}

    def remembered(x: Tensor, t: Tensor) -> Prediction:
        if float(t[0]) not in seen:
            seen[float(t[0])] = clip(x, t)
        return seen[float(t[0])]

    found = {}
    for name in names:
        var, g = VARIANCES[name], torch.Generator().manual_seed(seed)
        b = bound(
            as_denoiser(remembered, d.schedule),
            x0,
            ts,
            var=var,
            decoder=decoder,
            decoder_var=_decoder_var(d, var, ts),
            generator=g,
        )
        found[name] = dict(total=b.total.mean().item(), prior=b.prior.mean().item(), terms=b.terms.mean(1).tolist())
    return found


def _decoder_var(d: Denoiser, var: Callable, ts: Tensor) -> Callable:
    """Both fixed variances decode with DDPM's choice, beta-tilde of the step before."""
    before = float(ts[-3]) if len(ts) > 2 else None
    return clipped(var if var is learned else small, d.schedule, before)


def quick_bits(d: Denoiser, x0: Tensor, var: Callable, each: int = 18) -> float:
    """An estimate of `bits` for learning curves: `each` digits at each step, the same ones and noises every time."""
    steps = d.schedule.steps
    k = torch.arange(1, steps + 1).repeat_interleave(each)
    x0 = x0[torch.arange(len(k)) % len(x0)]
    g, clip = torch.Generator().manual_seed(0), thresholded(d, static())
    with torch.no_grad():
        terms = vlb_term(
            clip,
            x0,
            k.double() / steps,
            (k - 1.0).double() / steps,
            var=var,
            decoder=decoder,
            decoder_var=_decoder_var(d, var, torch.tensor([2 / steps, 1 / steps, 0])),
            generator=g,
        )
    return steps * terms.mean().item()


def ends(d: NetDenoiser, train: Tensor, test: Tensor) -> list[dict[str, float | int]]:
    """The bits of decoding at once from step k, with the variance that fits the training digits there."""
    rows, clip, steps = [], thresholded(d, static()), d.schedule.steps
    for k in FIRST_STEPS:
        g = torch.Generator().manual_seed(k)
        c = d.schedule(k / steps, like=train)
        x = c.alpha * train + c.sigma * torch.randn(train.shape, generator=g)
        with torch.no_grad():
            mse = (clip(x, k / steps).x0 - train).square().mean()
            term = vlb_term(
                clip, test, k / steps, 0.0, decoder=decoder, decoder_var=lambda p, ct, cs, m=mse: m, generator=g
            )
        rows.append(
            dict(k=k, sigma=float(d.schedule.sigma(k / steps)), rmse=mse.sqrt().item(), bits=term.mean().item())
        )
    return rows


def quality(d: Denoiser, s: Settings, var: Callable) -> dict[str, float | None]:
    """Energy distance of samples to the test digits, for each number of strided steps; None where they are not finite.

    (Nothing keeps the interpolation of an ill-trained variance from overflowing.)
    """
    found, test, clip = {}, digits()[1], thresholded(d, static())
    for n in s.sampling_steps:
        ts = grid(d.schedule, n, strided)
        x = sample(clip, (s.samples, 64), sampler=ancestral, ts=ts, seed=1000 + s.seed, var=var)
        found[str(n)] = metrics.energy_distance(x, test) if x.isfinite().all() else None
    return found


def gradient_noise(d: NetDenoiser, s: Settings, objective: str) -> dict[str, float]:
    """`noise_of` the network's gradient as it is, for one of the losses with its own draws of the steps."""
    x, vlb = digits()[0], partial(vlb_loss, decoder=decoder)
    by_size, times = LossSecondMoment(s.chain, s.history), step_times(s.chain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        if objective == "L_vlb importance":
            k = torch.arange(1, s.chain + 1).repeat(s.history).double() / s.chain
            with torch.no_grad():
                by_size.update(k, vlb(d, x[torch.randint(len(x), k.shape)], k))
            times, loss = by_size, lambda d, x0, t: by_size.weight(t) * vlb(d, x0, t)
        else:
            loss = vlb if objective == "L_vlb" else partial(hybrid_loss, decoder=decoder)
        return noise_of(d, loss, x, times, s.batch_size, s.gradients, s.seed)


def noise_of(
    d: Any, loss: Callable, x: Tensor, times: Callable, batch_size: int, batches: int, seed: int
) -> dict[str, float]:
    """Trace of the covariance of a batch's gradient, and the square of the mean gradient, both without bias.

    Their ratio times the batch size is the simple noise scale of McCandlish et al. 2018.
    """
    total, squares = 0.0, 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(batches):
            value = loss(d, x[torch.randint(len(x), (batch_size,))], times(batch_size)).mean()
            g = torch.cat([v.flatten() for v in torch.autograd.grad(value, list(d.net.parameters()))]).double()
            total, squares = total + g, squares + g.square().sum().item()
    mean = (total / batches).square().sum().item()
    trace = (squares - batches * mean) / (batches - 1)
    return dict(trace=trace, square=mean - trace / batches)


def interpolation(d: NetDenoiser, x0: Tensor) -> list[float]:
    """The mean of f in log var = f log beta + (1 - f) log beta-tilde at each step of the chain."""
    g, steps, f = torch.Generator().manual_seed(0), d.schedule.steps, []
    for k in range(1, steps + 1):
        c = d.schedule(k / steps, like=x0)
        with torch.no_grad():
            _, var = d.output(c.alpha * x0 + c.sigma * torch.randn(x0.shape, generator=g), c)
        f.append((var.out.mean().item() + 1) / 2)
    return f


# ---- the study -----------------------------------------------------------------------------------


def member(s: Settings, schedule: str, objective: str) -> dict[str, Any]:
    """One run of the main table."""
    (real, test), d, start = digits(), denoiser(s, BETAS[schedule]), time.process_time()
    var = large if objective == "L_simple" else learned
    curve, noise = [], []
    for step in train(s, d, objective):
        if step.number % 250 == 0:
            curve.append([step.number, quick_bits(step.denoiser, test, var)])
        if objective == "L_hybrid" and step.number in s.measured_at:
            noise += [dict(step=step.number, loss=o) | gradient_noise(d, s, o) for o in OBJECTIVES[1:]]
    d, row = step.denoiser, dict(schedule=schedule, objective=objective, seed=s.seed, curve=curve)
    names = {"L_simple": ("small", "large"), "L_hybrid": ("small", "large", "learned")}.get(objective, ("learned",))
    whole, strides = bits(d, test, names, s.chain), {n: bits(d, test, names, n) for n in s.sampling_steps[:-1]}
    seen = bits(d, real[: len(test)], names, s.chain)
    row["variances"] = {
        name: dict(
            test=whole[name]["total"],
            train=seen[name]["total"],
            prior=whole[name]["prior"],
            terms=whole[name]["terms"],
            strided={str(n): strides[n][name]["total"] for n in strides},
        )
        for name in names
    }
    for name in SAMPLED[objective]:
        row["variances"][name]["quality"] = quality(d, s, VARIANCES[name])
    if objective == "L_hybrid":
        row["interpolation"] = interpolation(d, test[:64])
        row["noise"] = noise
    return row | dict(ends=ends(d, real, test), cpu_seconds=round(time.process_time() - start, 1))


def length(s: Settings, schedule: str) -> dict[str, Any]:
    """L_simple with a chain of another length."""
    d, names = denoiser(s, BETAS[schedule]), ("small", "large")
    for step in train(s, d, "L_simple"):
        pass
    found = bits(step.denoiser, digits()[1], names, s.chain)
    return dict(schedule=schedule, chain=s.chain, seed=s.seed) | {
        name: dict(test=found[name]["total"], prior=found[name]["prior"], decoder=found[name]["terms"][-1])
        for name in names
    }


def main() -> None:
    torch.set_num_threads(1)
    s, start, rows, lengths = Settings(), time.process_time(), [], []
    real, test = digits()
    for seed in progress(SEEDS, desc="seeds"):
        mine = replace(s, seed=seed)
        rows += [member(mine, schedule, objective) for schedule in BETAS for objective in OBJECTIVES]
        lengths += [length(replace(mine, chain=n), schedule) for n in LENGTHS for schedule in BETAS]
        made = provenance("python -m tinydiff.recipes.study_improved")
        made |= dict(settings=asdict(s), seeds=SEEDS[: seed + 1], seconds=round(time.process_time() - start))
        floor = metrics.energy_distance(real, test)
        save_results("02_improved", made | dict(floor=floor, rows=_rounded(rows), lengths=_rounded(lengths)))


def last_steps() -> None:
    """L_vlb with importance sampling on the cosine schedule whose betas are capped: data/results/02_last_steps.json."""
    torch.set_num_threads(1)
    s, start, rows = Settings(), time.process_time(), []
    for seed in progress(SEEDS, desc="seeds"):
        d = denoiser(replace(s, seed=seed), partial(cosine_betas, max_beta=CAP))
        for step in train(replace(s, seed=seed), d, "L_vlb importance"):
            pass
        found = bits(step.denoiser, digits()[1], ("learned",), s.chain)["learned"]
        rows.append(dict(seed=seed, test=found["total"], prior=found["prior"]))
    made = provenance("python -m tinydiff.recipes.study_improved last_steps")
    made |= dict(settings=asdict(s), seeds=SEEDS, cap=CAP, seconds=round(time.process_time() - start))
    save_results("02_last_steps", made | dict(rows=_rounded(rows)))


def _rounded(v: Any) -> Any:
    if isinstance(v, dict):
        return {name: _rounded(one) for name, one in v.items()}
    if isinstance(v, list | tuple):
        return [_rounded(one) for one in v]
    return float(f"{v:.6g}") if isinstance(v, float) else v


if __name__ == "__main__":
    (last_steps if sys.argv[1:] == ["last_steps"] else main)()
