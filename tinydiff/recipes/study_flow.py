"""Flow matching, pairs by transport, reflow and times, by one ruler: a study over seeds for notebook 10.

    python -m tinydiff.recipes.study_flow

The swiss roll and a small network; whatever is compared differs in one thing. A network is drawn from by DDIM, which on
`Flow` is Euler's rule in t, and at full solver by Heun's rule in t. Results in data/results/10_flow.json:

    rows     every network of every seed: the distance by steps, how straight, what transport costs, how many stray,
             and the error in eps against the exact denoiser at some noise levels
    floor    what real data give, by the same ruler: the median of 20 draws, and what nine in ten stay below
    exact    the straightness of the exact flows that the networks approximate
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets, flow, metrics, targets
from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.losses import denoising_loss, logit_normal_times
from tinydiff.progress import progress
from tinydiff.recipes import dpm, swiss_roll
from tinydiff.results import provenance, save_results
from tinydiff.samplers import ddim, final, probability_flow, rk2
from tinydiff.schedules import Coefs, Cosine, Flow, Schedule, grid
from tinydiff.training import Step

FLOW, COSINE = Flow(), Cosine()
SEEDS = (0, 1, 2)
STEPS = (1, 2, 4, 8, 16, 32)
LEVELS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # sigma / alpha
GROUPS = (8, 32, 128)  # how many points are paired at a time; 1 is no pairing


@dataclass(frozen=True)
class Settings:
    points: int = 20_000
    width: int = 128
    steps: int = 600
    batch_size: int = 512
    lr: float = 2e-3
    ema: float = 0.998
    full: int = 50  # steps of Heun's rule, 99 calls: the full solver
    pairs: int = 20_000  # of reflow
    pairing: int = 10  # steps of Heun's rule that make them, 19 calls
    samples: int = 3000  # for evaluation
    seed: int = 0


# ---- training ------------------------------------------------------------------------------------


def train(s: Settings, schedule: Schedule = FLOW, target: Any = targets.velocity, data: Any = None, **options: Any):
    """A network of the swiss-roll recipe; options are fit's. Returns the last Step."""
    mine = swiss_roll.Settings(
        points=s.points, width=s.width, steps=s.steps, batch_size=s.batch_size, lr=s.lr, ema=s.ema, seed=s.seed
    )
    step: Step | None = None
    for step in swiss_roll.train(mine, swiss_roll.denoiser(mine, schedule, target), data, **options):
        pass
    return step


def transport_in_groups(size: int) -> Callable[..., Tensor]:
    """`flow.transport_loss` with the pairing within groups of the batch, so that batches of one size compare."""

    def loss(d: NetDenoiser, x0: Tensor, t: Tensor) -> Tensor:
        groups = zip(x0.split(size), torch.randn_like(x0).split(size), strict=True)
        return denoising_loss(d, x0, t, eps=torch.cat([flow.paired_by_transport(a, b) for a, b in groups]))

    return loss


def alpha_squared(c: Coefs) -> Tensor:
    """The weight that makes the loss of the velocity on `Flow` the plain loss of eps."""
    return c.alpha**2


def same_as_velocity(c: Coefs) -> Tensor:
    """The weight that makes the loss of the target v on `Flow` that of the velocity."""
    return (c.alpha**2 + c.sigma**2) ** -2


def reflow_data(d: Denoiser, s: Settings, round: int) -> dict[str, Tensor]:
    """Fresh noise and where the flow carries it: the data of the next round."""
    eps = torch.randn(s.pairs, 2, generator=torch.Generator().manual_seed(60_000 + 100 * s.seed + round))
    return flow.reflow_pairs(d, eps, grid(d.schedule, s.pairing), sampler=heun_in_t)


heun_in_t = partial(probability_flow, rule=rk2)

# ---- measuring -----------------------------------------------------------------------------------


def other_clock(n: int, schedule: Schedule) -> Tensor:
    """The grid of n steps of Flow, or of Cosine, whose noise levels are those of the other one's even grid."""
    other = COSINE if isinstance(schedule, Flow) else FLOW
    ts = grid(schedule, n)
    ts[1:-1] = schedule.time(other.logsnr(grid(other, n)[1:-1]))
    return ts


CURVE = datasets.swiss_roll(4000, noise=0.0, seed=0)


def strays(x: Tensor) -> float:
    """Share of points more than 0.2 from the curve of the roll, four standard deviations of its noise."""
    return (metrics.nearest_distance(x, CURVE) > 0.2).double().mean().item()


def eps_errors(d: Denoiser) -> list[float]:
    """Root mean square distance between the network's eps and the exact one, at each of the noise levels."""
    exact, g = dpm.exact(dpm.Settings(), d.schedule), torch.Generator().manual_seed(0)
    x0, eps, found = exact.sample(2000, g).float(), torch.randn(2000, 2, generator=g), []
    for t in d.schedule.time(-2 * torch.tensor(LEVELS, dtype=torch.float64).log()).tolist():
        c = d.schedule(t, like=x0)
        x = c.alpha * x0 + c.sigma * eps
        with torch.no_grad():
            found.append((d(x, t).eps - exact(x, t).eps).square().sum(1).mean().sqrt().item())
    return found


def evaluate(d: Denoiser, s: Settings) -> dict[str, Any]:
    fresh = datasets.swiss_roll(s.samples, seed=10_000 + s.seed)
    eps = torch.randn(s.samples, 2, generator=torch.Generator().manual_seed(s.seed))
    distance = lambda x: metrics.energy_distance(x, fresh)  # noqa: E731
    full = final(heun_in_t(d, eps, grid(d.schedule, s.full)))
    one = final(ddim(d, eps, grid(d.schedule, 1)))
    return {
        "distance": [distance(final(ddim(d, eps, grid(d.schedule, n)))) for n in STEPS],
        "full": distance(full),
        "strays": {"one": strays(one), "full": strays(full)},
        "straightness": flow.straightness(d, eps[:2000], grid(d.schedule, 100)),
        "cost": (full - eps).square().sum(1).mean().item(),
        "eps error": eps_errors(d),
        "far": (one - full).norm(dim=1).median().item(),  # what one step misses of the network's own flow
    }


def main() -> None:
    torch.set_num_threads(1)
    began, rows = time.process_time(), []
    for seed in progress(SEEDS, desc="seeds"):
        s = Settings(seed=seed)

        def row(name: str, step: Step, s: Settings = s) -> Denoiser:
            rows.append(dict(network=name, seed=s.seed, loss=step.loss) | evaluate(step.denoiser, s))
            return step.denoiser

        first = row("flow", train(s))
        cosine = row("v on cosine", train(s, COSINE, targets.v))
        fresh = datasets.swiss_roll(s.samples, seed=10_000 + seed)
        eps = torch.randn(s.samples, 2, generator=torch.Generator().manual_seed(seed))
        for name, d in (("flow", first), ("v on cosine", cosine)):
            found = [metrics.energy_distance(final(ddim(d, eps, other_clock(n, d.schedule))), fresh) for n in STEPS]
            rows.append(dict(network=f"{name}, the other's grid", seed=seed, distance=found))
        row("v on flow", train(s, FLOW, targets.v, loss=partial(denoising_loss, weight=same_as_velocity)))
        row("flow, weight of eps", train(s, loss=partial(denoising_loss, weight=alpha_squared)))
        row("logit-normal times", train(s, times=logit_normal_times()))
        for size in GROUPS:
            row(f"transport, {size}", train(s, loss=transport_in_groups(size)))
        pairs = reflow_data(first, s, 2)
        second = row("round 2", train(s, data=pairs))
        row("round 3", train(s, data=reflow_data(second, s, 3)))
        row("round 2, noise drawn again", train(s, data=pairs["x0"]))
    made = provenance("python -m tinydiff.recipes.study_flow")
    made |= {"settings": asdict(Settings()), "seeds": SEEDS, "steps": STEPS, "levels": LEVELS}
    real = torch.tensor([abs(d) for d in real_distances(Settings())])
    made |= {"floor": real.median().item(), "usual": real.quantile(0.9).item(), "real strays": real_strays(Settings())}
    eps = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    bent = {
        type(S).__name__: flow.straightness(dpm.exact(dpm.Settings(), S), eps, grid(S, 100)) for S in (FLOW, COSINE)
    }
    made |= {"exact": {"straightness": bent}}
    save_results("10_flow", made | {"seconds": round(time.process_time() - began), "rows": rows})


def real_distances(s: Settings, draws: int = 20) -> list[float]:
    draw = lambda k: datasets.swiss_roll(s.samples, seed=30_000 + k)  # noqa: E731
    return [metrics.energy_distance(draw(2 * k), draw(2 * k + 1)) for k in range(draws)]


def real_strays(s: Settings) -> float:
    return strays(datasets.swiss_roll(s.samples, seed=40_000))


if __name__ == "__main__":
    main()
