"""From many steps to one on the swiss roll, against the truth: a study over seeds for notebooks 23 and 24.

    python -m tinydiff.recipes.study_few_steps                   # about 50 minutes of one core; resumes
    python -m tinydiff.recipes.study_few_steps --methods CD CT   # some methods only

The law of the roll is known in closed form, so its ODE is known too: where a path that starts at (x, t) begins is
computed to 1e-6 (`truth`), and a method's function is compared with it at every level of noise. Each method makes a
function of (x, t) that is asked once, twice, four and eight times:

    DDIM, DPM-Solver++    the teachers themselves
    PD                    progressive distillation, 64 steps to one, a student for each number of steps
    CD                    consistency distillation with 18 levels, a Heun step of the EDM teacher
    CT                    consistency training from nothing: N(k) and mu(k), squared distance
    iCT                   improved: doubling levels, lognormal times, pseudo-Huber, no average
    ECT                   easy consistency tuning of the EDM teacher
    sCD, sCT              the continuous limit on TrigFlow, from the teacher and from its weights

and PD again with other weights (SNR + 1; SNR, the even weight on eps) and with a teacher and students that predict eps.

A row holds for each seed the sliced Wasserstein distance of 2,000 samples at 1, 2, 4 and 8 calls, and its floor; the
root mean square distance to the truth by level; CPU seconds of training; and the batches that training saw, in forward
passes of one batch. Seconds and passes are of all that a method needs, its teacher too.
Results in data/results/23_few_steps.json, written after every method.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinydiff import consistency, datasets, distill, metrics, targets
from tinydiff.denoisers import ConsistencyDenoiser, Denoiser, NetDenoiser, c_in_edm, c_noise_edm
from tinydiff.losses import lognormal_times, snr, uniform_times
from tinydiff.models import MLP
from tinydiff.ode import flow_map
from tinydiff.recipes import study_solvers, swiss_roll
from tinydiff.recipes.base import last
from tinydiff.results import FOLDER, load_results, provenance, save_results
from tinydiff.samplers import consistency_multistep, ddim, dpmpp_2m, sample
from tinydiff.schedules import EDM, Coefs, Cosine, Schedule, Times
from tinydiff.targets import Prediction, Target
from tinydiff.training import fit, warmup_cosine

NAME = "23_few_steps"
SEEDS = (0, 1, 2)
CALLS = (1, 2, 4, 8)
SAMPLES = 2000
LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0)  # sigma / alpha, where the truth is looked at
TEACHER_STEPS = 1500
STEPS = {"PD": 400, "CD": 2000, "CT": 4000, "iCT": 4000, "ECT": 4000, "sCM": 3000}  # of training; of a round in PD
POINTS = 20_000


def angle(c: Coefs) -> Tensor:
    """The number that tells a TrigFlow network the time: ten times its angle.

    Lu & Song 2024 have the angle itself, and features that do not vary fast: with 1000 t, the derivative in time would
    be all that training sees.
    """
    return 5 * math.pi * c.t


def roll(seed: int) -> Tensor:
    return datasets.swiss_roll(POINTS, seed=seed)


def net(seed: int) -> MLP:
    s = swiss_roll.Settings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(dim=2, width=s.width, depth=s.depth)


def options(seed: int, steps: int, lr: float, **more: Any) -> dict[str, Any]:
    given = dict(steps=steps, batch_size=512, lr=lr, seed=seed, ema=0.998, lr_schedule=warmup_cosine(50, end=0.01))
    return given | more


# ---- teachers ------------------------------------------------------------------------------------


@functools.cache
def cosine_teacher(seed: int, target: Target = targets.v) -> NetDenoiser:
    return last(fit(NetDenoiser(net(seed), Cosine(), target), roll(seed), **options(seed, TEACHER_STEPS, 2e-3)))


@functools.cache
def trig_teacher(seed: int) -> NetDenoiser:
    d = NetDenoiser(net(seed), Cosine(), targets.v, c_noise=angle)
    return last(fit(d, roll(seed), **options(seed, TEACHER_STEPS, 2e-3)))


@functools.cache
def edm_teacher(seed: int) -> NetDenoiser:
    d = NetDenoiser(net(seed), EDM(), targets.edm(1.0), c_in_edm(1.0), c_noise_edm)
    return last(fit(d, roll(seed), **options(seed, TEACHER_STEPS, 2e-3, times=lognormal_times(EDM()))))


TEACHERS = (cosine_teacher, trig_teacher, edm_teacher)

# ---- methods: seed -> {calls: function}, and what training cost ----------------------------------


@dataclass(frozen=True)
class Trained:
    """What a method gives: for each number of calls a denoiser and its sampler; and what that cost."""

    by_calls: dict[int, tuple[Denoiser, Callable]]
    passes: int
    seconds: float = 0.0

    def __call__(self, calls: int, x: Tensor, t: Times) -> Prediction:
        """What is asked, for so many calls."""
        return self.by_calls[calls][0](x, t)


def all_calls(d: Denoiser, passes: int, sampler: Callable = consistency_multistep) -> Trained:
    return Trained({n: (d, sampler) for n in CALLS}, passes)


def function(d: NetDenoiser) -> ConsistencyDenoiser:
    """A consistency function that starts with the weights of an EDM network."""
    start = distill.student_of(d)
    return ConsistencyDenoiser(start.net, EDM(), 1.0)


def pd(
    seed: int, weight: distill.Weight = distill.truncated_snr, target: Target = targets.v, first: int = 64
) -> Trained:
    steps, teacher = STEPS["PD"], cosine_teacher(seed, target)
    given = options(seed, steps, 1e-3, lr_schedule=distill.to_zero)
    students = dict(distill.halved(teacher, roll(seed), first, weight, **given))
    return Trained({n: (students[n], ddim) for n in CALLS}, TEACHER_STEPS + 3 * steps * len(students))


def cd(seed: int, levels: int = 18) -> Trained:
    steps = STEPS["CD"]
    loss = consistency.consistency_loss(consistency.neighbours(levels), teacher=edm_teacher(seed))
    f = last(fit(function(edm_teacher(seed)), roll(seed), loss=loss, **options(seed, steps, 1e-3, times=uniform_times)))
    return all_calls(f, TEACHER_STEPS + 4 * steps)


def ct(seed: int) -> Trained:
    steps = STEPS["CT"]
    pairs = consistency.neighbours(consistency.ct_levels)
    loss = consistency.consistency_loss(pairs, decay=consistency.ct_decay)
    f = ConsistencyDenoiser(net(seed), EDM(), 1.0)
    return all_calls(last(fit(f, roll(seed), loss=loss, **options(seed, steps, 1e-3, times=uniform_times))), 2 * steps)


def ict(seed: int) -> Trained:
    steps = STEPS["iCT"]
    pairs, huber = consistency.neighbours(consistency.ict_levels), consistency.pseudo_huber()
    loss = consistency.consistency_loss(pairs, huber, weight=consistency.inverse_gap)
    f, times = ConsistencyDenoiser(net(seed), EDM(), 1.0), lognormal_times(EDM(), -1.1, 2.0)
    return all_calls(last(fit(f, roll(seed), loss=loss, **options(seed, steps, 1e-3, times=times))), 2 * steps)


def ect(seed: int) -> Trained:
    steps = STEPS["ECT"]
    loss = consistency.consistency_loss(
        consistency.ect_pairs(), consistency.pseudo_huber(), weight=consistency.inverse_gap
    )
    times = lognormal_times(EDM(), -1.1, 2.0)
    f = last(fit(function(edm_teacher(seed)), roll(seed), loss=loss, **options(seed, steps, 1e-3, times=times)))
    return all_calls(f, TEACHER_STEPS + 2 * steps)


def scm(seed: int, taught: bool) -> Trained:
    steps, teacher = STEPS["sCM"], trig_teacher(seed)
    loss = consistency.tangent_loss(teacher if taught else None)
    given = options(seed, steps, 5e-4, times=lognormal_times(Cosine(), -1.0, 1.4))
    return all_calls(
        last(fit(distill.student_of(teacher), roll(seed), loss=loss, **given)), TEACHER_STEPS + (3 + taught) * steps
    )


METHODS: dict[str, Callable[[int], Trained]] = {
    "DDIM": lambda seed: all_calls(cosine_teacher(seed), TEACHER_STEPS, ddim),
    "DPM-Solver++": lambda seed: all_calls(cosine_teacher(seed), TEACHER_STEPS, dpmpp_2m),
    "PD": pd,
    "CD": cd,
    "CT": ct,
    "iCT": ict,
    "ECT": ect,
    "sCD": lambda seed: scm(seed, True),
    "sCT": lambda seed: scm(seed, False),
    "PD, SNR + 1": lambda seed: pd(seed, distill.snr_plus_one),
    "PD, SNR": lambda seed: pd(seed, snr),
    "PD, eps": lambda seed: pd(seed, target=targets.eps),
}


@functools.cache
def trained(name: str, seed: int) -> Trained:
    """By the method of that name, its teacher trained anew, so that the seconds are of both."""
    for teacher in TEACHERS:
        teacher.cache_clear()
    start = time.process_time()
    found = METHODS[name](seed)
    return replace(found, seconds=time.process_time() - start)


# ---- the truth -----------------------------------------------------------------------------------


@functools.cache
def starts(schedule: Schedule, level: float, n: int = 200) -> tuple[float, Tensor, Tensor]:
    """(t, x, x0): points of the roll at a level of noise, and where the paths through them begin."""
    x0 = datasets.swiss_roll(n, seed=77)
    t = float(schedule.time(-2 * torch.tensor(math.log(level), dtype=torch.float64)))
    c = schedule(t, like=x0)
    x = c.alpha * x0 + c.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(78))
    exact = study_solvers.exact_roll(schedule)
    return t, x, flow_map(exact, x, t, schedule.t_min, tol=1e-6)


@torch.no_grad()
def errors(f: Denoiser) -> list[float]:
    """Root mean square distance of f(x, t) from the truth at each of LEVELS."""
    found = []
    for level in LEVELS:
        t, x, due = starts(f.schedule, level)
        found.append((f(x, t).x0 - due).square().sum(1).mean().sqrt().item())
    return found


def quality(trained: Trained, seed: int) -> dict[int, float]:
    real, found = datasets.swiss_roll(SAMPLES, seed=10_000 + seed), {}
    for calls, (d, sampler) in trained.by_calls.items():
        x = sample(d, (SAMPLES, 2), n=calls, sampler=sampler, seed=seed)
        found[calls] = metrics.sliced_wasserstein(x, real)
    return found


def floor(draws: int = 9) -> list[float]:
    """Sliced Wasserstein distances of two real draws."""
    draw = lambda seed: datasets.swiss_roll(SAMPLES, seed=seed)  # noqa: E731
    return [metrics.sliced_wasserstein(draw(20_000 + 2 * i), draw(20_001 + 2 * i)) for i in range(draws)]


def row(name: str) -> dict[str, Any]:
    said = []
    for seed in SEEDS:
        found = trained(name, seed)
        far, near = quality(found, seed), errors(found.by_calls[1][0])
        said.append(dict(quality=list(far.values()), errors=near, seconds=round(found.seconds, 1)))
    return dict(method=name, calls=CALLS, levels=LEVELS, passes=found.passes) | {
        k: [one[k] for one in said] for k in said[0]
    }


def main(methods: tuple[str, ...] = tuple(METHODS), name: str = NAME) -> None:
    """Runs what is missing of these methods."""
    torch.set_num_threads(1)
    path = FOLDER / f"{name}.json"
    made = provenance("python -m tinydiff.recipes.study_few_steps") | {"seeds": SEEDS, "floor": floor(), "rows": []}
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}; got {method!r}")
        results = load_results(name) if path.is_file() else made
        if any(r["method"] == method for r in results["rows"]):
            continue
        found = row(method)
        results = load_results(name) if path.is_file() else made
        rows = results["rows"] + [found]
        save_results(name, results | {"seconds": round(sum(sum(r["seconds"]) for r in rows), 1), "rows": rows})
        print(method, [round(v, 4) for v in found["quality"][0]], [round(v, 3) for v in found["errors"][0]], flush=True)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
