"""Stochastic gradient Langevin dynamics on the posterior of Welling & Teh 2011, section 5.1. A study for notebook 03.

    python -m tinydiff.recipes.study_sgld

The model, with variances in place of standard deviations:

    theta_1 ~ N(0, 10),  theta_2 ~ N(0, 1),  x_i ~ 1/2 N(theta_1, 2) + 1/2 N(theta_1 + theta_2, 2),  i = 1 ... 100

and data that are drawn with theta = (0, 1). Its posterior has two hills, because (theta_1 + theta_2, -theta_2) explains
the data as well as (theta_1, theta_2). One datum a step, 10,000 sweeps (a million steps), sizes from 1e-2 to 1e-4 with
gamma = 0.55, for three data sets and 16 chains each, in three arms that share their noise: a datum drawn afresh for
each step, the data in a new order in each sweep, and all data in every step. Results in data/results/03_sgld.json.
"""

import dataclasses
import time
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinydiff import metrics
from tinydiff.progress import progress
from tinydiff.results import provenance, save_results
from tinydiff.samplers import langevin, sgld_constants, sgld_steps

PRIOR = (10.0, 1.0)  # variances of theta_1 and theta_2
NOISE = 2.0  # variance of a component of the likelihood
ARMS = ("fresh", "sweeps", "all")


@dataclasses.dataclass(frozen=True)
class Settings:
    data: int = 100
    sweeps: int = 10_000
    first: float = 1e-2  # the first step size
    last: float = 1e-4  # and the last
    gamma: float = 0.55
    chains: int = 16  # for each data set
    data_seeds: tuple[int, ...] = (0, 1, 2)
    every: int = 20  # steps between the states that are kept
    points: int = 1000  # of a chain, and of the truth, for the energy distance


# ---- the model -----------------------------------------------------------------------------------


def draw_data(n: int = 100, seed: int = 1) -> Float[Tensor, " {n}"]:
    """x_1 ... x_n from 1/2 N(0, 2) + 1/2 N(1, 2), float64."""
    g = torch.Generator().manual_seed(seed)
    upper = torch.rand(n, generator=g, dtype=torch.float64) < 0.5
    return upper + NOISE**0.5 * torch.randn(n, generator=g, dtype=torch.float64)


def log_prior(theta: Float[Tensor, "b 2"]) -> Float[Tensor, " b"]:
    """Up to a constant."""
    return -(theta**2 / (2 * torch.tensor(PRIOR, dtype=theta.dtype))).sum(1)


def log_likelihood(theta: Float[Tensor, "b 2"], x: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """log p(x | theta) of each datum, up to a constant."""
    one, two = theta[:, :1], theta.sum(1, keepdim=True)  # the means of the two components
    return torch.logaddexp(-((x - one) ** 2) / (2 * NOISE), -((x - two) ** 2) / (2 * NOISE))


def log_posterior(theta: Float[Tensor, "b 2"], x: Float[Tensor, " n"]) -> Float[Tensor, " b"]:
    """Up to a constant, from all the data x."""
    return log_prior(theta) + log_likelihood(theta, x.expand(len(theta), -1)).sum(1)


def estimate(theta: Float[Tensor, "b 2"], x: Float[Tensor, "b n"], total: int) -> Float[Tensor, "b 2"]:
    """grad [log prior + total / n sum_i log p(x_i | theta)] by hand, ten times as fast as by autograd.

    `samplers.stochastic_score` gives the same; a test holds the two together.
    """
    one, two = theta[:, :1], theta[:, 1:]
    off = x - one
    second = torch.sigmoid(two * (2 * off - two) / (2 * NOISE))  # probability that x came from the second component
    scale = total / x.shape[1] / NOISE
    first = scale * (off - second * two).sum(1, keepdim=True) - one / PRIOR[0]
    return torch.cat([first, scale * (second * (off - two)).sum(1, keepdim=True) - two / PRIOR[1]], 1)


def posterior_grid(
    x: Float[Tensor, " n"], cells: int = 240
) -> tuple[Float[Tensor, "cells2 2"], Float[Tensor, " cells2"]]:
    """The exact posterior: centres of cells x cells rectangles over [-3, 4] x [-4, 4], and the share of each.

    theta_2 changes fastest, so `share.reshape(cells, cells)` has theta_1 along its rows.
    """
    axes = [low + (high - low) * (torch.arange(cells, dtype=x.dtype) + 0.5) / cells for low, high in ((-3, 4), (-4, 4))]
    theta = torch.cartesian_prod(*axes)
    return theta, torch.cat([log_posterior(rows, x) for rows in theta.split(10_000)]).softmax(0)


def posterior_draws(x: Float[Tensor, " n"], n: int, seed: int = 0, cells: int = 240) -> Float[Tensor, "{n} 2"]:
    """Independent draws from the posterior: a cell of `posterior_grid`, and a uniform point in it."""
    return _draw(*posterior_grid(x, cells), n, seed, cells)


def _draw(theta: Tensor, share: Tensor, n: int, seed: int, cells: int = 240) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    side = torch.tensor([7.0, 8.0], dtype=theta.dtype) / cells
    at = theta[share.multinomial(n, True, generator=g)]
    return at + side * (torch.rand(n, 2, generator=g, dtype=theta.dtype) - 0.5)


# ---- the chains ----------------------------------------------------------------------------------


def orders(arm: str, sweeps: int, data: int, chains: int, seed: int) -> Iterator[Int[Tensor, "chains n"]]:
    """Which data each chain sees in each step: arm "fresh", "sweeps" or "all"."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(sweeps):
        if arm == "all":
            yield from torch.arange(data).expand(data, chains, data)
        elif arm == "fresh":
            yield from torch.randint(data, (data, chains, 1), generator=g)
        else:
            yield from torch.rand(data, chains, generator=g).argsort(0)[:, :, None]  # (steps of a sweep, chains, 1)


def step_sizes(s: Settings) -> Float[Tensor, " steps"]:
    n = s.sweeps * s.data
    return sgld_steps(*sgld_constants(s.first, s.last, s.gamma, n), s.gamma, n)


def run(arm: str, s: Settings, seed: int = 0) -> Float[Tensor, "kept sets chains 2"]:
    """The states of all chains after every s.every steps, float32; row k belongs to step s.every (k + 1) - 1."""
    x = torch.stack([draw_data(s.data, seed) for seed in s.data_seeds]).repeat_interleave(s.chains, 0)
    which = orders(arm, s.sweeps, s.data, len(x), seed)
    g = torch.Generator().manual_seed(1000 + seed)
    start = torch.randn(len(x), 2, generator=g, dtype=x.dtype) * torch.tensor(PRIOR, dtype=x.dtype).sqrt()
    score = lambda theta: estimate(theta, x.gather(1, next(which)), s.data)  # noqa: E731
    kept = []
    for k, chain in enumerate(progress(langevin(score, start, step_sizes(s).tolist(), g), desc=arm), 1):
        if k % s.every == 0:
            kept.append(chain.x.float())
    return torch.stack(kept).reshape(len(kept), len(s.data_seeds), s.chains, 2)


# ---- what is measured ----------------------------------------------------------------------------


def gradient_noise(theta: Float[Tensor, "b 2"], x: Float[Tensor, " n"]) -> Float[Tensor, "b 2"]:
    """V, the variance of `estimate` with one datum drawn at random, at each theta."""
    each = torch.stack([estimate(theta, x[i].expand(len(theta), 1), len(x)) for i in range(len(x))])
    return each.var(0, correction=0)


def rejection(
    theta: Float[Tensor, "b 2"], x: Float[Tensor, " n"], eps: float, which: Int[Tensor, "b m"], seed: int = 0
) -> float:
    """How often a Metropolis-Hastings test would refuse a step of size eps from theta, on average.

    The gradient is that of the data `which`, for the step and for the way back; the test itself uses all the data.
    """
    z = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed), dtype=theta.dtype)
    batch = x[which]
    mean = theta + eps / 2 * estimate(theta, batch, len(x))
    new = mean + eps**0.5 * z
    back = new + eps / 2 * estimate(new, batch, len(x))
    log_ratio = log_posterior(new, x) - log_posterior(theta, x)
    log_ratio = log_ratio + (((new - mean) ** 2).sum(1) - ((theta - back) ** 2).sum(1)) / (2 * eps)
    return 1 - log_ratio.exp().clamp(max=1).mean().item()


def moments(theta: Float[Tensor, "n 2"], weights: Float[Tensor, " n"]) -> dict:
    """Weighted mean and variance of both coordinates, and the mass of the hill with theta_2 > 0."""
    w = (weights / weights.sum())[:, None]
    mean = (w * theta).sum(0)
    var = (w * (theta - mean) ** 2).sum(0)
    return dict(mean=mean.tolist(), var=var.tolist(), upper=(w * (theta[:, 1:] > 0)).sum().item())


def resample(theta: Float[Tensor, "m 2"], weights: Float[Tensor, " m"], n: int, seed: int) -> Float[Tensor, "{n} 2"]:
    """n of the states, each as often as its weight says: one in every n-th part of the total weight."""
    offset = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = (torch.arange(n, dtype=torch.float64) + offset) / n
    total = weights.double().cumsum(0)
    return theta[torch.searchsorted(total / total[-1], at).clamp(max=len(theta) - 1)]


def floors(x: Float[Tensor, " n"], n: int, pairs: int = 20) -> tuple[float, float]:
    """Median and nine-in-ten bound of |energy distance| between two independent sets of n draws from the posterior."""
    grid = posterior_grid(x)
    real = [_distance(_draw(*grid, n, 2 * k + 1), _draw(*grid, n, 2 * k)) for k in range(pairs)]
    real = torch.tensor(real)
    return real.median().item(), real.quantile(0.9).item()


def _distance(x: Tensor, y: Tensor) -> float:
    return abs(metrics.energy_distance(x, y))


def summary(states: Float[Tensor, "kept chains 2"], sizes: Float[Tensor, " kept"], x: Tensor, s: Settings) -> dict:
    """All chains of one arm on one data set, weighted by their step sizes and not: each chain, and all together."""
    truth, found = posterior_draws(x, 4 * s.points, seed=99), {}  # independent draws: any n of them are draws, too
    for name, w in (("weighted", sizes), ("plain", torch.ones_like(sizes))):
        each = states.unbind(1)
        distance = [_distance(resample(c, w, s.points, k), truth[: s.points]) for k, c in enumerate(each)]
        pooled = states.transpose(0, 1).flatten(0, 1)
        together = moments(pooled.double(), w.repeat(len(each)))
        parts = [resample(c, w, 4 * s.points // len(each), k) for k, c in enumerate(each)]
        together |= {"distance": _distance(torch.cat(parts), truth)}
        found[name] = {
            "upper": [moments(c.double(), w)["upper"] for c in each],
            "distance": distance,
            "together": together,
        }
    return found


def noise_and_rejection(states: Float[Tensor, "kept chains 2"], sizes: Float[Tensor, " kept"], x: Tensor) -> list[dict]:
    """Figure 2 of the paper at 25 step sizes: the gradient's noise in a step (that of z is eps), and the rejections.

    "rejected" is of steps with one datum's gradient, "rejected_all" of steps with the gradient of all data.
    """
    rows, g = [], torch.Generator().manual_seed(7)
    for at in torch.linspace(0, 1, 25):
        eps = sizes[0] * (sizes[-1] / sizes[0]) ** at
        k = int((sizes - eps).abs().argmin().clamp(4, len(sizes) - 6))
        eps = sizes[k].item()
        theta = states[k - 4 : k + 6].flatten(0, 1).double()  # ten states in a row of each chain
        one = torch.randint(len(x), (len(theta), 1), generator=g)
        rows.append(
            dict(
                kept=k,
                eps=eps,
                gradient=(eps**2 / 4 * gradient_noise(theta, x).mean(0)).tolist(),
                rejected=rejection(theta, x, eps, one),
                rejected_all=rejection(theta, x, eps, torch.arange(len(x)).expand(len(theta), -1)),
            )
        )
    return rows


def main(s: Settings = Settings()) -> None:  # noqa: B008 (frozen)
    torch.set_num_threads(1)
    start, sizes = time.perf_counter(), step_sizes(s)[s.every - 1 :: s.every]
    states = {arm: run(arm, s) for arm in ARMS}
    rows = []
    for i, seed in enumerate(s.data_seeds):
        x = draw_data(s.data, seed)
        theta, share = posterior_grid(x)
        (near, usual), (near4, usual4) = floors(x, s.points), floors(x, 4 * s.points, 10)
        rows.append(
            dict(
                data_seed=seed,
                truth=moments(theta, share),
                floor=dict(chain=near, usual_chain=usual, together=near4, usual_together=usual4),
                arms={arm: summary(states[arm][:, i], sizes, x, s) for arm in ARMS},
                steps=noise_and_rejection(states["fresh"][:, i], sizes, x),
            )
        )
    made = provenance("python -m tinydiff.recipes.study_sgld")
    made |= {"settings": dataclasses.asdict(s), "seeds": s.data_seeds, "seconds": round(time.perf_counter() - start)}
    apart = max(1, len(sizes) // 1000)
    shown = states["fresh"][::apart, s.data_seeds.index(1), 0]  # one chain, for figure 1
    one = {"data_seed": 1, "theta": [[round(v, 3) for v in row] for row in shown.tolist()]}
    one |= {"eps": [float(f"{v:.4g}") for v in sizes[::apart].tolist()]}
    save_results("03_sgld", made | {"rows": _rounded(rows), "chain": one})


def _rounded(value):
    """Five significant digits, all the way down."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
