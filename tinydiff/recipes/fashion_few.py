"""Few steps on Fashion-MNIST, in latent space: students of "fashion-latent", each with a sampler of few calls.

    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few guided    # "fashion-guided"
    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few pd        # "fashion-pd-8", "-4", "-2" and "-1"
    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few cd        # "fashion-cd"
    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_few ect       # "fashion-ect"

`guided` is the first stage of Meng et al. 2022: one pass of the student gives what guidance needs two passes for. `pd`
halves that student's 64 DDIM steps to one (Salimans & Ho 2022), `cd` distils it into a consistency function (Song et
al. 2023), and `ect` tunes the teacher into one from data alone (Geng et al. 2024), so that it has no guidance.

All have the teacher's own form, target v on the cosine path. That is TrigFlow: x0 = alpha x - sigma v is x at t = 0,
so that the boundary of a consistency function holds for any weights.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tinydiff import autoencoding, consistency, datasets, distill
from tinydiff.checkpoints import DATA, load_checkpoint, load_pretrained, save_checkpoint
from tinydiff.denoisers import NetDenoiser
from tinydiff.guidance import bind, cfg
from tinydiff.losses import lognormal_times, step_times, uniform_times
from tinydiff.notebook import scale
from tinydiff.recipes import fashion_autoencoder
from tinydiff.recipes import fashion_classifier as judge
from tinydiff.recipes.base import GPU, describe_hardware
from tinydiff.recipes.fashion import labels, picture
from tinydiff.results import provenance
from tinydiff.samplers import consistency_multistep, ddim, dpmpp_2m, sample
from tinydiff.training import fit, warmup_cosine

TEACHER, SIDE, CLASSES = "fashion-latent", 28, 10
CALLS = (1, 2, 4, 8)
PICTURES = DATA.parent.parent / "docs" / "checkpoints"


@dataclass(frozen=True)
class Settings:
    data: str = "fashion-mnist-10k"  # or fashion-mnist: all 60,000
    guidance: float = 2.0  # of the teacher that `guided` imitates
    first: int = 64  # steps of pd's first teacher
    levels: int = 18  # of cd
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


def last(steps: Any) -> NetDenoiser:
    for step in steps:  # noqa: B007
        pass
    return step.denoiser


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


# ---- methods: (settings, teacher, latents) -> {name: student} ------------------------------------


def guided(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> dict[str, NetDenoiser]:
    def asked(y: Tensor) -> Any:
        return cfg(teacher, s.guidance, dict(y=y), dict(y=torch.full_like(y, CLASSES)))

    student, loss = distill.student_of(teacher), distill.match_loss(asked)
    return {"fashion-guided": last(fit(student, data, loss=loss, **options(s)))}


def pd(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> dict[str, NetDenoiser]:
    students, n = {}, s.first // 2
    while n >= 1:
        student, given = distill.student_of(teacher), options(s, times=step_times(n), lr_schedule=distill.to_zero)
        for _ in fit(student, data, loss=distill.progressive_loss(teacher, n), **given):
            pass
        teacher = students[n] = student
        n //= 2
    return {f"fashion-pd-{n}": students[n] for n in CALLS if n in students}


def cd(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> dict[str, NetDenoiser]:
    loss = consistency.consistency_loss(consistency.neighbours(s.levels), distance(s, teacher), teacher)
    return {"fashion-cd": last(fit(distill.student_of(teacher), data, loss=loss, **options(s, times=uniform_times)))}


def ect(s: Settings, teacher: NetDenoiser, data: dict[str, Tensor]) -> dict[str, NetDenoiser]:
    loss = consistency.consistency_loss(consistency.ect_pairs(), distance(s, teacher), weight=consistency.inverse_gap)
    given = options(s, times=lognormal_times(teacher.schedule, -1.1, 2.0))
    return {"fashion-ect": last(fit(distill.student_of(teacher), data, loss=loss, **given))}


METHODS: dict[str, Callable] = {"guided": guided, "pd": pd, "cd": cd, "ect": ect}
TEACHERS = {"guided": TEACHER, "pd": "fashion-guided", "cd": "fashion-guided", "ect": TEACHER}
SAMPLERS: dict[str, Callable] = {"guided": dpmpp_2m, "pd": ddim} | dict.fromkeys(("cd", "ect"), consistency_multistep)


def train(method: str, s: Settings, teacher: NetDenoiser | None = None) -> dict[str, NetDenoiser]:
    """The students of a method, by the names under which they ship. teacher: by default the shipped one.

    Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    teacher = load_pretrained(TEACHERS[method]) if teacher is None else teacher
    teacher.net.to(s.device).requires_grad_(False)
    teacher.codec.autoencoder.to(s.device).requires_grad_(False)
    return METHODS[method](s, teacher, latents(s, teacher))


# ---- how good they are ---------------------------------------------------------------------------


def generate(
    d: NetDenoiser, n: int, calls: int, sampler: Callable, seed: int = 0, device: str = "cpu", batch: int = 500
) -> Tensor:
    """n images of the classes `labels(n)`, with so many calls of d each."""
    parts = []
    for i, y in enumerate(labels(n).split(batch)):
        given = dict(n=calls, sampler=sampler, seed=1000 * seed + i, device=device, decode=d.codec)
        parts.append(sample(bind(d, y=y.to(device)), d.codec.shape(len(y), SIDE), **given).clamp(-1, 1).cpu())
    return torch.cat(parts)


def evaluate(
    d: NetDenoiser, s: Settings, sampler: Callable, calls: tuple[int, ...] = CALLS, seed: int = 0
) -> dict[str, int | float]:
    """Fréchet distance, recall and share read as the class asked for, at each number of calls."""
    said: dict[str, int | float] = {"n": s.samples}
    for n in calls:
        of = judge.judged(generate(d, s.samples, n, sampler, seed, s.device), labels(s.samples))
        said |= {f"{name}_at_{n}": of[name] for name in ("fd", "recall", "accuracy")} | {"fd_floor": of["fd_floor"]}
    return said


def draw(d: NetDenoiser, name: str, method: str) -> None:
    """A picture for the page of what ships: 100 images in as many calls as the name says, else in two."""
    calls = int(name[-1]) if method == "pd" else 2
    images = generate(d, 100, calls, SAMPLERS[method], device=next(d.net.parameters()).device.type)
    picture(images, PICTURES / f"{name}.png")


def main(method: str) -> None:
    """Trains the students of a method at the chosen scale and writes them where they ship, with card and picture."""
    s = SCALES[scale()][method] if method in METHODS else None
    start = time.perf_counter()
    torch.set_num_threads(s.threads if s else 1)
    students = train(method, s)
    made = provenance(f"TINYDIFF_SCALE={scale()} python -m tinydiff.recipes.fashion_few {method}")
    made |= {"settings": asdict(s), "hardware": describe_hardware(s.device, s.threads)}
    made |= {"seconds": round(time.perf_counter() - start)}
    for name, d in students.items():
        path = DATA / f"{name}.safetensors"
        d.net.cpu().half()
        d.codec.autoencoder.cpu().half()
        save_checkpoint(path, d)
        back = load_checkpoint(path)  # what users get is judged: weights that were rounded
        back.net.to(s.device)
        back.codec.autoencoder.to(s.device)
        made["metrics"] = evaluate(back, s, SAMPLERS[method], (int(name[-1]),) if method == "pd" else CALLS)
        save_checkpoint(path, d, made)
        draw(back, name, method)
        print(name, json.dumps(made["metrics"], indent=2), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
