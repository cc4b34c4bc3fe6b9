"""How good are few steps, with how much fresh noise? And the way back, and between. A study over seeds for notebook 08.

    python -m tinydiff.recipes.study_ddim

Table 1 of Song et al. 2020 at small size, on the swiss roll and on the digits: DDPM's chain of 1,000 steps with linear
betas, networks that predict the noise, and DDIM's own grid. Then the round trip of real data through their codes,
and the middle between two codes. Results in data/results/08_ddim.json.

In the official code the rows of eta do not clip x0, and the row of DDPM's large variance does. So here for the digits;
the plane has no range to clip to.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, metrics, targets
from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.guidance import bind, static, thresholded
from tinydiff.models import MLP
from tinydiff.progress import progress
from tinydiff.recipes import swiss_roll
from tinydiff.results import provenance, save_results
from tinydiff.samplers import ancestral, ddim, ddim_inverse, final, large, sample, slerp
from tinydiff.schedules import DiscreteVP, grid, leading, linear_betas, quadratic, trailing
from tinydiff.training import Step, fit, warmup_cosine

SEEDS = (0, 1, 2)
SCHEDULE = DiscreteVP(linear_betas(1000))
STEPS = (5, 10, 20, 50, 100, 1000)
FEW = (5, 10, 20, 50)
ROWS: dict[str, dict[str, Any]] = {
    **{f"eta = {eta:g}": dict(sampler=ddim, eta=eta) for eta in (0.0, 0.2, 0.5, 1.0)},
    "large": dict(sampler=ancestral, var=large),
    "large, not clipped": dict(sampler=ancestral, var=large),  # the digits only
}
# grid: (rows, steps)
GRIDS = {
    "leading": (leading, tuple(ROWS), STEPS),
    "trailing": (trailing, ("eta = 0", "eta = 1", "large", "large, not clipped"), FEW),
    "quadratic": (quadratic, ("eta = 0",), FEW),
}
ROUND_TRIPS = (10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Settings:
    """The network of the digits; that of the roll is the recipe `swiss_roll`'s."""

    width: int = 256
    depth: int = 4
    steps: int = 2000
    batch_size: int = 64
    lr: float = 3e-3
    ema: float = 0.995
    seed: int = 0
    points: int = 1000  # samples of the roll
    images: int = 360  # samples of the digits, as many as are held out
    sampling_steps: int = 50  # between two codes


# ---- training ------------------------------------------------------------------------------------


def train_roll(s: Settings) -> Iterator[Step]:
    mine = swiss_roll.Settings(seed=s.seed)
    return swiss_roll.train(mine, swiss_roll.denoiser(mine, SCHEDULE, targets.eps))


def train_digits(s: Settings) -> Iterator[Step]:
    """Images as vectors of 64; the network is told the class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        net = MLP(dim=64, width=s.width, depth=s.depth, fourier=0, classes=10)
    real = datasets.digits_train()
    return fit(
        NetDenoiser(net, SCHEDULE, targets.eps),
        dict(x0=real.x0.flatten(1), y=real.y),
        steps=s.steps,
        lr=s.lr,
        batch_size=s.batch_size,
        seed=s.seed,
        ema=s.ema,
        lr_schedule=warmup_cosine(warmup=100, end=0.02),
    )


def labels(n: int) -> Tensor:
    """0 1 2 ... 9 0 1 ..."""
    return torch.arange(n) % 10


# ---- rulers --------------------------------------------------------------------------------------


def reference(data: str) -> Tensor:
    return datasets.swiss_roll(3000, seed=2) if data == "roll" else datasets.digits_test().x0.flatten(1)


def real(data: str, n: int, seed: int) -> Tensor:
    """n real ones that are not in the reference."""
    if data == "roll":
        return datasets.swiss_roll(n, seed=100 + seed)
    x0 = datasets.digits_train().x0.flatten(1)
    return x0[torch.randperm(len(x0), generator=torch.Generator().manual_seed(seed))[:n]]


def floor(data: str, n: int, draws: int = 20) -> list[float]:
    """Energy distances of real draws."""
    return [abs(metrics.energy_distance(real(data, n, seed), reference(data))) for seed in range(draws)]


def grain(data: str, x: Tensor) -> float:
    """Noise left on the samples, as a standard deviation: on blank pixels, or across the roll (real data have 0.05).

    A median over 0.6745, which a few lost samples do not move.
    """
    if data == "roll":
        away = metrics.nearest_distance(x, datasets.swiss_roll(20_000, noise=0.0, seed=3))
    else:
        blank = datasets.digits_train().x0.flatten(1).mean(0) < -0.99  # 12 pixels that hardly any digit uses
        away = (x[:, blank] + 1).abs()
    return away.median().item() / 0.6745


def spread(x: Tensor) -> float:
    """Root mean variance of the coordinates."""
    return x.var(0).mean().sqrt().item()


def measure(data: str, x: Tensor) -> dict[str, float]:
    measured = dict(energy_distance=metrics.energy_distance(x, reference(data)), grain=grain(data, x), spread=spread(x))
    if data == "digits":
        measured["accuracy"] = metrics.digit_accuracy(x.view(-1, 1, 8, 8), labels(len(x)))
    return measured


# ---- experiments ---------------------------------------------------------------------------------


def generate(data: str, d: Denoiser, row: str, ts: Tensor, s: Settings) -> Tensor:
    shape = (s.points, 2) if data == "roll" else (s.images, 64)
    if data == "digits":
        d = bind(d, y=labels(s.images))
        d = thresholded(d, static()) if row == "large" else d
    return sample(d, shape, ts=ts, seed=s.seed, **ROWS[row])


def table(data: str, d: Denoiser, s: Settings) -> Iterator[dict[str, Any]]:
    for name, (spacing, rows, steps) in GRIDS.items():
        for row in rows:
            if data == "roll" and row == "large, not clipped":
                continue
            for n in steps:
                x = generate(data, d, row, grid(SCHEDULE, n, spacing), s)
                yield dict(data=data, seed=s.seed, grid=name, row=row, steps=n) | measure(data, x)


def held_out(data: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Real data to encode, with their labels."""
    if data == "roll":
        return datasets.swiss_roll(300, seed=5), {}
    test = datasets.digits_test()
    return test.x0.flatten(1)[:100], dict(y=test.y[:100])


def round_trip(d: Denoiser, x: Tensor, n: int, ahead: bool = False) -> float:
    """Encode and decode in n steps each: root mean square over the coordinates, median over the data."""
    ts = grid(d.schedule, n)
    back = final(ddim(d, final(ddim_inverse(d, x, ts, ahead=ahead)), ts))
    return (back - x).square().mean(1).sqrt().median().item()


def round_trips(data: str, d: Denoiser, s: Settings) -> Iterator[dict[str, Any]]:
    x, cond = held_out(data)
    for ahead in (False, True):
        for n in ROUND_TRIPS:
            error = round_trip(bind(d, **cond), x, n, ahead)
            yield dict(data=data, seed=s.seed, ahead=ahead, steps=n, error=error)


def midpoints(shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """Pairs of codes: the first of each, and the middle on the arc and on the straight line."""
    g = torch.Generator().manual_seed(1000 + seed)
    a, b = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    return {"end": a, "arc": slerp(a, b, 0.5), "line": (a + b) / 2}


def between(data: str, d: Denoiser, s: Settings) -> Iterator[dict[str, Any]]:
    ts = grid(SCHEDULE, s.sampling_steps)
    shape = (s.points, 2) if data == "roll" else (s.images, 64)
    d = bind(d, y=labels(s.images)) if data == "digits" else d  # both ends are asked for the same class
    for where, z in midpoints(shape, s.seed).items():
        yield dict(data=data, seed=s.seed, where=where) | measure(data, final(ddim(d, z, ts)))


def main() -> None:
    torch.set_num_threads(1)
    began, rows, trips, middles = time.process_time(), [], [], []
    runs = [(data, seed) for seed in SEEDS for data in ("roll", "digits")]
    for data, seed in progress(runs, desc="networks"):
        s = Settings(seed=seed)
        for step in train_roll(s) if data == "roll" else train_digits(s):
            last = step
        rows += table(data, last.denoiser, s)
        trips += round_trips(data, last.denoiser, s)
        middles += between(data, last.denoiser, s)
    s = Settings()
    made = provenance("python -m tinydiff.recipes.study_ddim") | {"settings": asdict(s), "seeds": SEEDS}
    made |= {"floor": {"roll": floor("roll", s.points), "digits": floor("digits", s.images)}}
    made |= {"seconds": round(time.process_time() - began)}
    save_results("08_ddim", made | {"rows": rows, "round_trips": trips, "between": middles})


if __name__ == "__main__":
    main()
