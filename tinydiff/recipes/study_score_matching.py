"""What do the four ways to match a score cost, and what do they give? A study over seeds for notebook 04.

    python -m tinydiff.recipes.study_score_matching

Six parts, each a list of rows in data/results/04_score_matching.json, which the notebook draws: `fits` (one network,
one mixture in the plane, every loss), `relu` (the same network with kinks), `finite` (64 data, seen again and again),
`dims` (fits of a correlated Gaussian in up to 32 dimensions), `noise` (variance of each loss's gradient at the same
parameters) and `seconds_per_step` (CPU time of a loss and its gradient).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tinydiff import metrics
from tinydiff import score_matching as sm
from tinydiff.exact import GaussianMixture
from tinydiff.models import MLP
from tinydiff.progress import progress
from tinydiff.results import provenance, save_results
from tinydiff.samplers import langevin
from tinydiff.schedules import VE

SEEDS = (0, 1, 2)
SIGMAS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5)
DIMS = (2, 4, 8, 16, 32, 64)
Loss = Callable[[sm.Score, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Settings:
    steps: int = 800
    batch_size: int = 256
    lr: float = 3e-3  # falls to 0 along a cosine
    width: int = 64
    depth: int = 2
    points: int = 20_000  # to measure a fit at
    samples: int = 2000  # Langevin chains
    langevin_steps: int = 500
    langevin_eps: float = 0.02
    finite: int = 64  # data of the part `finite`
    finite_steps: int = 2000


# ---- the data: two laws whose score is known -------------------------------------------------------


def mixture() -> GaussianMixture:
    """Three unequal modes in the plane, near enough to each other for plain Langevin dynamics to travel."""
    means = torch.tensor([[0.0, 1.1], [-0.95, -0.55], [0.95, -0.55]])
    return GaussianMixture(means, 0.4, [0.5, 0.3, 0.2], VE())


def gaussian_factor(dim: int, seed: int) -> Tensor:
    """A with covariance A A^T: standard deviations from 1/2 to 1, along axes turned at random."""
    g = torch.Generator().manual_seed(1000 + seed)
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=g))
    return turn * torch.logspace(-1, 0, dim, base=2)


# ---- the losses --------------------------------------------------------------------------------------


def losses(true_score: sm.Score) -> dict[str, Loss]:
    """Every loss as a function (score, x, generator), by name; those with noise are `denoising` and `denoising_cv`."""
    return {
        "explicit": lambda s, x, g: sm.explicit_loss(s, x, true_score),
        "implicit": lambda s, x, g: sm.implicit_loss(s, x),
        "sliced": lambda s, x, g: sm.sliced_loss(s, x, generator=g),
        "sliced, Gaussian": lambda s, x, g: sm.sliced_loss(s, x, sm.gaussian, generator=g),
        "sliced VR": lambda s, x, g: sm.sliced_loss_vr(s, x, generator=g),
    }


def denoising(sigma: float) -> Loss:
    return lambda s, x, g: sm.denoising_score_loss(s, x, sigma, g)


def denoising_cv(sigma: float) -> Loss:
    return lambda s, x, g: sm.denoising_score_loss_cv(s, x, sigma, g)


# ---- one fit -----------------------------------------------------------------------------------------


def network(settings: Settings, dim: int = 2, activation: Callable[[], nn.Module] = nn.SiLU, fourier: int = 0) -> MLP:
    net = MLP(dim=dim, width=settings.width, depth=settings.depth, fourier=fourier)
    net.act = activation()
    return net


def score_of(net: nn.Module) -> sm.Score:
    """A network that takes a noise level, told always the same one."""
    return lambda x: net(x, torch.zeros(len(x), device=x.device))


def fit(
    net: nn.Module,
    loss: Loss,
    draw: Callable[[int, torch.Generator], Tensor],
    settings: Settings,
    seed: int = 0,
) -> Iterator[int]:
    """Adam on the mean of `loss` over fresh batches draw(n, generator); yields k after step k = 1, 2, ..."""
    g = torch.Generator().manual_seed(10_000 + seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for k in range(settings.steps):
        value = loss(score_of(net), draw(settings.batch_size, g), g).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        yield k + 1


@torch.no_grad()
def error(score: sm.Score, true_score: sm.Score, x: Tensor) -> float:
    """Share of 1/2 E||s*||^2 that is left at x: 0 for the truth, 1 for the score 0."""
    none = lambda x: torch.zeros_like(x)  # noqa: E731
    return (sm.explicit_loss(score, x, true_score).mean() / sm.explicit_loss(none, x, true_score).mean()).item()


def walk(score: sm.Score, settings: Settings, seed: int) -> Tensor:
    """Where Langevin chains from a standard normal are after `langevin_steps`."""
    g = torch.Generator().manual_seed(20_000 + seed)
    x, steps = torch.randn(settings.samples, 2, generator=g), [settings.langevin_eps] * settings.langevin_steps
    with torch.no_grad():
        for chain in langevin(score, x, steps, g):
            x = chain.x
    return x


def off(x: Tensor, n: int = 4000) -> float:
    """Energy distance to fresh data."""
    return abs(metrics.energy_distance(x, mixture().sample(n, torch.Generator().manual_seed(1))))


# ---- the parts ---------------------------------------------------------------------------------------


def fits(s: Settings) -> list[dict]:
    data, rows = mixture(), []
    true = partial(data.score, t=0.0)
    x = data.sample(s.points, torch.Generator().manual_seed(1))
    runs = [(name, None, loss) for name, loss in losses(true).items()]
    runs += [("denoising", sigma, denoising(sigma)) for sigma in SIGMAS]
    runs += [("denoising_cv", sigma, denoising_cv(sigma)) for sigma in SIGMAS]
    for (name, sigma, loss), seed in progress([(r, k) for r in runs for k in SEEDS], desc="fits"):
        torch.manual_seed(seed)
        net = network(s)
        for _ in fit(net, loss, data.sample, s, seed):
            pass
        score = score_of(net)
        row = dict(loss=name, sigma=sigma, seed=seed, error=error(score, true, x), distance=off(walk(score, s, seed)))
        if sigma is not None:  # the score of the noised data is what it learns; at the noised points
            noised = partial(GaussianMixture(data.means, math.hypot(0.4, sigma), data.weights, VE()).score, t=0.0)
            z = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
            row |= dict(error_noised=error(score, noised, x + sigma * z), bias=error(noised, true, x))
        rows.append(row)
    rows += [dict(loss="truth", seed=seed, distance=off(walk(true, s, seed))) for seed in SEEDS]
    return rows


def relu(s: Settings) -> list[dict]:
    data, rows = mixture(), []
    true = partial(data.score, t=0.0)
    x = data.sample(s.points, torch.Generator().manual_seed(1))
    runs = {k: v for k, v in losses(true).items() if k in ("explicit", "implicit", "sliced VR")}
    runs |= {"denoising_cv": denoising_cv(0.1)}
    for name, loss in progress(runs.items(), desc="relu"):
        for activation in (nn.SiLU, nn.ReLU):
            for seed in SEEDS:
                torch.manual_seed(seed)
                net = network(s, activation=activation)
                for _ in fit(net, loss, data.sample, s, seed):
                    pass
                found = error(score_of(net), true, x)
                rows.append(dict(loss=name, activation=activation.__name__, seed=seed, error=found))
    return rows


def finite(s: Settings, seed: int, loss: Loss, marks: int = 10) -> list[dict]:
    """The losses on the data and the error on fresh ones, along the training on few data."""
    data, rows, every = mixture(), [], s.finite_steps // marks
    true = partial(data.score, t=0.0)
    train = data.sample(s.finite, torch.Generator().manual_seed(30_000 + seed))
    x = data.sample(s.points // 4, torch.Generator().manual_seed(1))
    torch.manual_seed(seed)
    net = network(s, fourier=32)
    draw = lambda n, g: train[torch.randint(len(train), (n,), generator=g)]  # noqa: E731
    for k in fit(net, loss, draw, dataclasses.replace(s, steps=s.finite_steps, batch_size=s.finite), seed):
        if k % every == 0:
            with torch.no_grad():
                on_data = sm.implicit_loss(score_of(net), train).mean().item()
                fresh = sm.implicit_loss(score_of(net), x).mean().item()
            rows.append(dict(seed=seed, step=k, train=on_data, fresh=fresh, error=error(score_of(net), true, x)))
    return rows


def correlated(dim: int, seed: int) -> tuple[Callable[[int, torch.Generator], Tensor], sm.Score]:
    """Draws of the correlated Gaussian, and its score."""
    factor = gaussian_factor(dim, seed)
    precision = torch.linalg.inv(factor @ factor.T)
    return (lambda n, g: torch.randn(n, dim, generator=g) @ factor.T), (lambda x: -x @ precision)


def dims(s: Settings) -> list[dict]:
    rows, s = [], dataclasses.replace(s, steps=s.steps // 2)
    for dim, seed in progress([(d, k) for d in (2, 8, 32) for k in SEEDS], desc="dims"):
        draw, true = correlated(dim, seed)
        x = draw(s.points // 4, torch.Generator().manual_seed(1))
        for name, loss in (losses(true) | {"denoising": denoising(0.1), "denoising_cv": denoising_cv(0.1)}).items():
            torch.manual_seed(seed)
            net = network(s, dim)
            for _ in fit(net, loss, draw, s, seed):
                pass
            rows.append(dict(dim=dim, loss=name, seed=seed, error=error(score_of(net), true, x)))
    return rows


def gradient_noise(net: nn.Module, loss: Loss, draw: Callable, batches: int = 48, batch_size: int = 16) -> float:
    """Trace of the covariance of one datum's gradient: batch_size times that of the gradients of batches."""
    g, gradients = torch.Generator().manual_seed(3), []
    for _ in range(batches):
        value = loss(score_of(net), draw(batch_size, g), g).mean()
        parts = torch.autograd.grad(value, list(net.parameters()), materialize_grads=True)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return batch_size * torch.stack(gradients).var(0).sum().item()


def noise(s: Settings) -> list[dict]:
    rows, s = [], dataclasses.replace(s, steps=s.steps // 4)
    for dim, seed in progress([(d, k) for d in DIMS for k in SEEDS], desc="noise"):
        draw, true = correlated(dim, seed)
        every = losses(true)
        torch.manual_seed(seed)
        net = network(s, dim)
        for _ in fit(net, every["explicit"], draw, s, seed):
            pass
        every |= {f"denoising {sigma}": denoising(sigma) for sigma in (0.03, 0.1, 0.3)}
        every |= {"denoising_cv 0.03": denoising_cv(0.03)}
        for name, loss in every.items():
            rows.append(dict(dim=dim, loss=name, seed=seed, noise=gradient_noise(net, loss, draw)))
    return rows


def seconds(s: Settings, repeats: int = 9) -> list[dict]:
    """The median CPU time of a loss and its gradient, on one thread."""
    rows = []
    for dim in progress(DIMS, desc="seconds"):
        draw, true = correlated(dim, 0)
        torch.manual_seed(0)
        net, g = network(s, dim), torch.Generator().manual_seed(0)
        x = draw(s.batch_size, g)
        for name, loss in (losses(true) | {"denoising": denoising(0.1)}).items():
            times = []
            for _ in range(repeats):
                start = time.process_time()
                loss(score_of(net), x, g).mean().backward()
                times.append(time.process_time() - start)
            rows.append(dict(dim=dim, loss=name, seconds=sorted(times)[repeats // 2]))
    return rows


def floor(s: Settings) -> float:
    """Energy distance of as many real draws as there are chains, the median of 20."""
    draws = [mixture().sample(s.samples, torch.Generator().manual_seed(40_000 + i)) for i in range(20)]
    return torch.tensor([off(x) for x in draws]).median().item()


def main() -> None:
    torch.set_num_threads(1)
    s, start = Settings(), time.perf_counter()
    few = [("implicit", losses(lambda x: x)["implicit"]), ("denoising", denoising(0.3))]
    found = {
        "seconds_per_step": seconds(s),
        "noise": noise(s),
        "fits": fits(s),
        "relu": relu(s),
        "finite": [dict(loss=name) | row for name, loss in few for seed in SEEDS for row in finite(s, seed, loss)],
        "dims": dims(s),
    }
    made = provenance("python -m tinydiff.recipes.study_score_matching")
    made |= {"settings": dataclasses.asdict(s), "seeds": SEEDS, "seconds": round(time.perf_counter() - start)}
    save_results("04_score_matching", made | {"distance_floor": floor(s)} | found)


if __name__ == "__main__":
    main()
