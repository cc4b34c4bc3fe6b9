"""Few steps on Fashion-MNIST, in latent space: students of "fashion-latent", each with a sampler of few calls.

    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few guided    # "fashion-guided"
    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few pd        # "fashion-pd-8", "-4", "-2" and "-1"
    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few cd        # "fashion-cd"
    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few ect       # "fashion-ect"

`guided` is the first stage of Meng et al. 2022: one pass of the student gives what guidance needs two passes for. `pd`
halves that student's 64 DDIM steps to one (Salimans & Ho 2022), `cd` distils it into a consistency function (Song et
al. 2023), and `ect` tunes the teacher into one from data alone (Geng et al. 2024), so that it has no guidance.

All have the teacher's own form, target v on the cosine path. That is TrigFlow: x0 = alpha x - sigma v is x at t = 0,
so that the boundary of a consistency function holds for any weights. An error of v is sigma times as large in x0, and
`cd` weighs by 1 / sigma where its paper has 1: see `study_fashion_compute`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinydiff import autoencoding, consistency, datasets, distill
from tinydiff.checkpoints import DATA, load_checkpoint, load_pretrained, save_checkpoint
from tinydiff.denoisers import NetDenoiser
from tinydiff.losses import lognormal_times, uniform_times
from tinydiff.notebook import scale
from tinydiff.recipes import fashion_autoencoder, study_cfg
from tinydiff.recipes import fashion_classifier as judge
from tinydiff.recipes.base import GPU, card, last
from tinydiff.recipes.fashion import labels, picture
from tinydiff.recipes.fashion_latent import drawn as generate
from tinydiff.samplers import consistency_multistep, ddim, dpmpp_2m
from tinydiff.training import Step, fit, warmup_cosine

TEACHER = "fashion-latent"
CALLS = (1, 2, 4, 8)
PICTURES = DATA.parent.parent / "docs" / "checkpoints"


@dataclass(frozen=True)
class Settings:
    data: str = "fashion-mnist-10k"  # or fashion-mnist: all 60,000
    guidance: float = 2.0  # of the teacher that `guided` imitates
    first: int = 64  # steps of pd's first teacher
    levels: int = 18  # of cd
    weight: str = "inverse_sigma"  # of cd; or one, as in its paper
    distance: str = "huber"  # of cd and ect; or squared, or features, of decoded images
    steps: int = 100  # of training; in pd, of a round
    batch_size: int = 32
    lr: float = 5e-4
    seed: int = 0
    samples: int = 500  # of an evaluation
    device: str = "cuda" if GPU else "cpu"
    threads: int = 1


STEPS = {"guided": 1500, "pd": 400, "cd": 1500, "ect": 3000}  # at full size, on a CPU
SCALES = {
    "laptop": {method: Settings() for method in STEPS},
    "full": {
        method: Settings(
            data="fashion-mnist",
            steps=10 * steps if GPU else steps,
            batch_size=256 if GPU else 32,
            samples=2000,
        )
        for method, steps in STEPS.items()
    },
}


def latents(s: Settings, d: NetDenoiser) -> dict[str, Tensor]:
    return fashion_autoencoder.encoded(d.codec, datasets.load(s.data).to(s.device))


def options(s: Settings, **more: Any) -> dict[str, Any]:
    given = dict(steps=s.steps, batch_size=s.batch_size, lr=s.lr, seed=s.seed, ema=0.999)
    return given | dict(lr_schedule=warmup_cosine(min(100, s.steps // 4), end=0.02)) | more


def distance(s: Settings, d: NetDenoiser) -> consistency.Distance:
    """Of two batches of latents; "features" is what the judge sees in their images. Raises ValueError for another."""
    features, a = autoencoding.FeatureDistance(judge.judge()).to(s.device), d.codec.autoencoder
    images = lambda z: a.decode(z / a.scale + a.shift)  # noqa: E731, with gradients, which a codec has not
    known = {"squared": consistency.squared, "huber": consistency.pseudo_huber()}
    known |= {"features": lambda x, y: features(images(x), images(y))}
    if s.distance not in known:
        raise ValueError(f"distance must be one of {', '.join(known)}; got {s.distance!r}")
    return known[s.distance]


WEIGHTS: dict[str, Callable | None] = {"inverse_sigma": consistency.inverse_sigma, "one": None}


# ---- methods: (settings, teacher, latents) -> what `fit` yields; of pd, (n, student) ----------------


def guided(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> Iterator[Step]:
    loss = distill.match_loss(lambda y: study_cfg.guided(teacher, s.guidance, y))
    return fit(distill.student_of(teacher), data, loss=loss, **options(s))


def pd(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> Iterator[tuple[int, NetDenoiser]]:
    return distill.halved(teacher, data, s.first, **options(s, lr_schedule=distill.to_zero))


def cd(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> Iterator[Step]:
    if s.weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}; got {s.weight!r}")
    pairs = consistency.neighbours(s.levels)
    loss = consistency.consistency_loss(pairs, distance(s, teacher), teacher, WEIGHTS[s.weight])
    return fit(distill.student_of(teacher), data, loss=loss, **options(s, times=uniform_times))


def ect(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> Iterator[Step]:
    loss = consistency.consistency_loss(consistency.ect_pairs(), distance(s, teacher), weight=consistency.inverse_gap)
    given = options(s, times=lognormal_times(teacher.schedule, -1.1, 2.0))
    return fit(distill.student_of(teacher), data, loss=loss, **given)


METHODS: dict[str, Callable] = {"guided": guided, "pd": pd, "cd": cd, "ect": ect}
TEACHERS = {"guided": TEACHER, "pd": "fashion-guided", "cd": "fashion-guided", "ect": TEACHER}
SAMPLERS: dict[str, Callable] = {"guided": dpmpp_2m, "pd": ddim} | dict.fromkeys(("cd", "ect"), consistency_multistep)


def settings(method: str) -> Settings:
    """Of a method at the chosen scale. Raises ValueError for an unknown one."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    return SCALES[scale()][method]


def taught(method: str, s: Settings, teacher: NetDenoiser | None = None) -> Iterator:
    """What a method yields while it trains. teacher: by default the shipped one."""
    teacher = load_pretrained(TEACHERS[method]) if teacher is None else teacher
    teacher.net.to(s.device).requires_grad_(False)
    teacher.codec.autoencoder.to(s.device).requires_grad_(False)
    return METHODS[method](s, teacher, latents(s, teacher))


def train(method: str, s: Settings, teacher: NetDenoiser | None = None) -> dict[str, NetDenoiser]:
    """The students of a method, by the names under which they ship."""
    steps = taught(method, s, teacher)
    if method == "pd":
        return {f"fashion-pd-{n}": student for n, student in steps if n in CALLS}
    return {f"fashion-{method}": last(steps)}


# ---- how good they are ---------------------------------------------------------------------------


def calls_of(name: str) -> tuple[int, ...]:
    """The numbers of calls that a student is made for: of progressive distillation the one in its name."""
    return (int(name.split("-")[-1]),) if name.startswith("fashion-pd-") else CALLS


def evaluate(
    d: NetDenoiser, s: Settings, sampler: Callable, calls: tuple[int, ...] = CALLS, seed: int = 0
) -> dict[str, int | float]:
    """Fréchet distance, recall and share read as the class asked for, at each number of calls."""
    said: dict[str, int | float] = {"n": s.samples}
    for n in calls:
        of = judge.judged(generate(d, s.samples, n, sampler, seed, s.device), labels(s.samples))
        said |= {f"{name}_at_{n}": of[name] for name in ("fd", "recall", "accuracy")} | {"fd_floor": of["fd_floor"]}
    return said


def main(method: str) -> None:
    """Trains the students of a method at the chosen scale and writes them where they ship, with card and picture."""
    s, sampler, start = settings(method), SAMPLERS[method], time.perf_counter()
    torch.set_num_threads(s.threads)
    students = train(method, s)
    made = card(f"fashion_few {method}", s, start)
    for name, d in students.items():
        path, calls = DATA / f"{name}.safetensors", calls_of(name)
        d.net.cpu().half()
        d.codec.autoencoder.cpu().half()
        save_checkpoint(path, d)
        back = load_checkpoint(path)  # what users get is judged: weights that were rounded
        back.net.to(s.device)
        metrics = evaluate(back, s, sampler, calls)
        save_checkpoint(path, d, made | {"metrics": metrics})
        picture(generate(back, 100, calls[len(calls) > 1], sampler, device=s.device), PICTURES / f"{name}.png")
        print(name, json.dumps(metrics, indent=2), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
