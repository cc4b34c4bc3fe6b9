"""How tight is the bound of 2015? Steps, betas, covariance and noise of the data: a study over seeds for notebook 02.

    python -m tinydiff.recipes.study_dpm

The swiss-roll recipe `dpm` with one thing exchanged at a time, the heartbeat, and products; results with provenance in
data/results/02_dpm.json, which the notebook draws. K is in bits, on points that no training has seen; beside it the
best K that any network of this form could have on the same chain, and what no model can pass, E log2 p.
"""

import dataclasses
import itertools
import math
import time

import torch
from torch import Tensor

from tinydiff import binomial, dpm
from tinydiff.binomial import bernoulli_kl, step_back
from tinydiff.datasets import ring_means, swiss_roll
from tinydiff.entropy import entropy_bound
from tinydiff.exact import GaussianMixture, times_gaussian
from tinydiff.metrics import energy_distance, floor
from tinydiff.models import MLP
from tinydiff.progress import progress
from tinydiff.recipes import dpm as recipe
from tinydiff.results import provenance, save_results
from tinydiff.samplers import fading_power, final, gaussian_tilt, large, learned, product, small
from tinydiff.schedules import Coefs, DiscreteVP, grid, linear_betas

SEEDS = (0, 1, 2)
CHAINS = (10, 20, 40, 80)
CHAIN_STEPS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # of the heartbeat


def arms() -> list[tuple[str, recipe.Settings, object]]:
    """(name, settings, variance) of each run, seeds aside."""
    s, all_arms = recipe.Settings(), []
    for chain in CHAINS:
        # the released code's beta_1 is 1 / T + 0.001; the others keep it at 0.001
        code = dataclasses.replace(s, chain=chain, learn_betas=False, first_beta=dpm.harmonic_betas(chain)[0].item())
        fixed = dataclasses.replace(s, chain=chain, learn_betas=False)
        all_arms += [("code", code, learned), ("fixed", fixed, learned)]
        all_arms += [("learned", dataclasses.replace(s, chain=chain), learned)]
    fixed = dataclasses.replace(s, learn_betas=False)
    all_arms += [("large variance", fixed, large), ("small variance", fixed, small)]
    all_arms += [("64 units", dataclasses.replace(s, units=64), learned)]
    # five times less noise, with a first step that is as small beside it
    all_arms += [("less noise", dataclasses.replace(s, noise=s.noise / 5, first_beta=s.first_beta / 25), learned)]
    return all_arms


def run(name: str, s: recipe.Settings, var: object, points: int = 600) -> dict:
    """One training: K, the best K on its chain (of the first `points` points), and E log2 p of the data."""
    for step in recipe.train(s, var=var):
        last = step
    d = dpm.up_to_date(last.denoiser)
    mixture = recipe.exact(s, DiscreteVP(d.schedule.betas.detach()))
    x0 = swiss_roll(s.samples, noise=s.noise, seed=10_000 + s.seed)
    generator = lambda: torch.Generator().manual_seed(s.seed)  # noqa: E731
    k = entropy_bound(d, x0, var=var, generator=generator())
    best = entropy_bound(dpm.best_step(mixture), x0[:points].double(), generator=generator())
    return {
        "arm": name,
        "chain": s.chain,
        "noise": s.noise,
        "seed": s.seed,
        "K": k.mean().item(),
        "K_standard_error": _error(k),
        "best_K": best.mean().item(),
        "best_K_standard_error": _error(best),
        "log2_p": mixture.log_prob(x0.double(), 0.0).mean().item() / math.log(2),
        "betas": [round(b, 6) for b in d.schedule.betas.tolist()],
    }


# ---- the heartbeat -------------------------------------------------------------------------------


def exact_heartbeat(steps: int, length: int = 20, period: int = 5) -> float:
    """K of the best reverse step that treats bits apart, in bits, without drawing anything.

    What x_t says of the phase is how many of the bits of each phase are 1, so the mean over all 2^20 states is one
    over (length / period + 1)^period counts; by symmetry the true phase may be the first.
    """
    n = length // period
    counts = torch.cartesian_prod(*[torch.arange(n + 1)] * period).double()
    ways = torch.tensor([math.comb(n, k) for k in range(n + 1)], dtype=torch.float64)[counts.long()]
    truth = torch.zeros_like(counts)
    truth[:, 0] = 1
    kl = 0.0
    for k in range(steps, 1, -1):
        t, s = k / steps, (k - 1) / steps
        one = binomial.chance_of_one(truth, t)
        probability = (ways * one**counts * (1 - one) ** (n - counts)).prod(1)
        belief = (2 * counts * math.log((2 - t) / t)).softmax(1)  # of each phase, so of each of its bits
        for value, number in ((1.0, counts), (0.0, n - counts)):
            x = torch.full_like(counts, value)
            each = bernoulli_kl(step_back(truth, x, t, s), step_back(belief, x, t, s))
            kl += (probability * (number * each).sum(1)).sum().item()
    p = 1 - 1 / (2 * steps)
    return length * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) - kl


def train_bits(seed: int, steps: int = 1500, batch_size: int = 256, width: int = 128) -> binomial.NetBelief:
    """A network's belief of the heartbeat's bits, by cross-entropy at uniform times."""
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        d = binomial.NetBelief(MLP(dim=20, width=width, depth=3, fourier=0))
    beats = binomial.heartbeat().float()
    opt = torch.optim.Adam(d.parameters(), lr=3e-3, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in progress(range(steps), desc="bits"):
        x0 = beats[torch.randint(5, (batch_size,), generator=g)]
        t = 1 - torch.rand(batch_size, generator=g)
        loss = binomial.belief_loss(d, x0, t, generator=g).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        decay.step()
    return d.eval()


def even(steps: int) -> list[float]:
    return [k / steps for k in range(steps, -1, -1)]


def heartbeats(seed: int, draws: int = 400) -> list[dict]:
    d = train_bits(seed)
    g = torch.Generator().manual_seed(100 + seed)
    x0 = binomial.heartbeat().float().repeat(draws // 5, 1)
    rows = []
    for steps in (20, 200, 2000):
        k = binomial.bit_bound(d, x0, even(steps), generator=g).total
        rows.append({"steps": steps, "seed": seed, "K": k.mean().item(), "K_standard_error": _error(k)})
    samples = binomial.sample_bits(d, (2000, 20), even(200), generator=g)[-1]
    beats = binomial.heartbeat().float()
    rows[-1]["right"] = (samples[:, None] == beats).all(-1).any(-1).double().mean().item()
    return rows


# ---- products ------------------------------------------------------------------------------------


def products(seed: int, n: int = 2000) -> list[dict]:
    """Eight modes on a ring times N(x; y, std^2), by three tilts of each step: energy distance to the product."""
    y, found = torch.tensor([1.0, 0.5]), []
    absolute = lambda a, b: abs(energy_distance(a, b))  # noqa: E731
    for steps, std in itertools.product((20, 200), (0.2, 0.5, 1.0)):
        schedule = DiscreteVP(linear_betas(steps))
        ring = GaussianMixture(ring_means(), 0.1, None, schedule)
        truth = times_gaussian(ring, y, std)
        draw = lambda n, seed, truth=truth: truth.sample(n, torch.Generator().manual_seed(seed))  # noqa: E731
        row = {"steps": steps, "std": std, "seed": seed, "floor": floor(absolute, draw, n, pairs=5, seed=100)}

        def exact(mean: Tensor, var: Tensor, cs: Coefs, truth=truth, ring=ring) -> tuple[Tensor, Tensor]:
            return mean + var * (truth.score(mean, cs.t) - ring.score(mean, cs.t)), var

        tilts = {"constant": gaussian_tilt(y, std), "fading": gaussian_tilt(y, std, fading_power), "exact": exact}
        for name, tilt in tilts.items():
            g = torch.Generator().manual_seed(seed)
            x = torch.randn(n, 2, generator=g)
            x = final(product(ring, x, grid(schedule, steps), tilt, var=large, generator=g))
            row[name] = absolute(x, draw(n, 1000 + seed))
        found.append(row)
    return found


def _error(k: Tensor) -> float:
    return (k.std() / len(k) ** 0.5).item()


def main() -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    runs = [(name, dataclasses.replace(s, seed=seed), var) for name, s, var in arms() for seed in SEEDS]
    rows = [run(*r) for r in progress(runs, desc="runs")]
    bits = {"exact": {str(n): exact_heartbeat(n) for n in CHAIN_STEPS}}
    bits["net"] = [row for seed in SEEDS for row in heartbeats(seed)]
    tilted = [row for seed in SEEDS for row in products(seed)]
    made = provenance("python -m tinydiff.recipes.study_dpm")
    made |= {"settings": dataclasses.asdict(recipe.Settings()), "seeds": SEEDS}
    made |= {"seconds": round(time.perf_counter() - start)}
    save_results("02_dpm", made | {"rows": rows, "heartbeat": bits, "products": tilted})


if __name__ == "__main__":
    main()
