"""What guidance buys and costs on Fashion-MNIST and on the digits: a study over seeds for notebook 13.

    python -m tinydiff.recipes.study_cfg                 # about an hour and a half of one core; resumes
    python -m tinydiff.recipes.study_cfg --parts drop    # one part only

Shipped networks are asked for images of even classes by DPM-Solver++(2M), each seed with the same first noise in every
run, so that runs compare pair by pair. Each part is a list of runs:

    scale      classifier-free guidance of `fashion-dit` over the scale
    interval   the same, at some noise levels only
    auto       autoguidance by `fashion-dit-weak`
    calls      plain, guided, interval and autoguidance at equal numbers of network calls for an image
    unet       classifier-free guidance of the better network, `fashion-unet`, in fewer steps
    drop       U-Nets on the 8x8 digits, trained with four shares of labels dropped, one network for each seed

A row holds for each seed what the judge says of 500 images: Fréchet distance to the 60,000 training images, precision,
recall, accuracy (read as the class asked for), diversity (the spread within classes over that of real ones), and the
share of pixels that are white. `pooled` is the distance of all seeds' images together. Results in
data/results/13_cfg.json, written after every run.
"""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tinydiff as td
from tinydiff import datasets, metrics
from tinydiff.denoisers import Denoiser
from tinydiff.guidance import autoguide, bind, cfg, counted, interval, static, thresholded
from tinydiff.progress import progress
from tinydiff.recipes import digits
from tinydiff.recipes import fashion_classifier as judge
from tinydiff.results import FOLDER, load_results, provenance, save_results
from tinydiff.samplers import dpmpp_2m, sample
from tinydiff.schedules import grid
from tinydiff.training import drop_labels

NAME = "13_cfg"
SEEDS = (0, 1, 2)
IMAGES = 500  # of a seed
STEPS = 25
PARTS = ("scale", "interval", "auto", "drop", "calls", "unet")
SCALES = (0, 1, 1.25, 1.5, 2, 3, 5)
MIDDLE = (0.3, 3.0)  # noise levels sigma / alpha
SHARES = (0.0, 0.1, 0.2, 0.5)

# Ho and Salimans 2022, table 1: ImageNet at 64 pixels, {our scale: FID} for shares of dropped labels
PAPER = {
    0.1: {1: 1.80, 1.1: 1.55, 1.3: 3.03, 2: 12.6, 5: 26.22},
    0.2: {1: 1.80, 1.1: 1.62, 1.3: 2.93, 2: 11.21, 5: 23.84},
    0.5: {1: 2.21, 1.1: 1.91, 1.3: 2.65, 2: 9.13, 5: 21.48},
}


# ---- who is asked --------------------------------------------------------------------------------


def labels(n: int = IMAGES) -> Tensor:
    """0 1 2 ... 9 0 1 ...: the classes asked for."""
    return torch.arange(n) % 10


def guided(d: Denoiser, w: float | int, y: Tensor) -> Denoiser:
    """Classifier-free guidance to the classes y, of a network whose null label is 10."""
    return cfg(d, w, dict(y=y), dict(y=torch.full_like(y, 10)))


def within(d: Denoiser, w: float | int, y: Tensor, levels: tuple[float, float] = MIDDLE) -> Denoiser:
    """The same at these noise levels only."""
    return interval(guided(d, w, y), bind(d, y=y), *levels)


def away(d: Denoiser, w: float | int, y: Tensor, bad: str = "fashion-dit-weak") -> Denoiser:
    """Autoguidance: away from the weak network, which is told the classes too."""
    return autoguide(bind(d, y=y), bind(td.load_pretrained(bad), y=y), w)


# ---- one run -------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One row: a network, what is made of it, and in how many steps it is asked."""

    part: str
    name: str
    w: float | int
    make: Callable[[Denoiser, float, Tensor], Denoiser]
    steps: int = STEPS
    net: str = "fashion-dit"
    extra: tuple = ()  # further arguments of `make`

    @property
    def key(self) -> list:
        return [self.part, self.name, self.w, self.steps]


def generate(run: Run, seed: int, n: int = IMAGES) -> tuple[Tensor, float]:
    """n images (n, 1, 28, 28), and how many calls of a network each one cost."""
    net = counted(td.load_pretrained(run.net))
    y, parts, bad = labels(n), [], 0
    for i, part in enumerate(y.split(250)):
        d = run.make(net, run.w, part, *run.extra)
        if isinstance(d, autoguide):
            bad += run.steps * len(part)
        first = sample(thresholded(d, static()), (len(part), 1, 28, 28), run.steps, dpmpp_2m, seed=1000 * seed + i)
        parts.append(first)
    return torch.cat(parts), (net.rows + bad) / n


def diversity(f: Tensor, y: Tensor, real: Tensor, real_y: Tensor) -> float:
    """Root mean square spread of features about their class's mean, over that of real ones."""

    def spread(f: Tensor, y: Tensor) -> Tensor:
        return torch.stack([f[y == k].var(0).sum() for k in y.unique()]).mean().sqrt()

    return (spread(f, y) / spread(real, real_y)).item()


def judged(x: Tensor) -> dict[str, float]:
    """What the judge says of images of the classes `labels`."""
    y, test = labels(len(x)), datasets.load("fashion-mnist-10k", "test")
    said = judge.judged(x, y)
    kept = {k: said[k] for k in ("fd", "precision", "recall", "accuracy")}
    kept |= {"diversity": diversity(judge.features(x), y, judge.test_features(), test.y)}
    return kept | {"white": (x > 0.99).double().mean().item()}


def measure(run: Run, more: Callable[[Tensor], dict[str, float]] = lambda x: {}) -> dict[str, Any]:
    """A row: each of the judge's numbers, and what else `more` says of the images, as a list over SEEDS."""
    start, said, images = time.process_time(), [], []
    for seed in SEEDS:
        x, calls = generate(run, seed)
        said.append(judged(x) | more(x))
        images.append(x)
    row = dict(part=run.part, name=run.name, w=run.w, steps=run.steps, net=run.net, calls=round(calls, 2))
    row |= {k: [one[k] for one in said] for k in said[0]}
    row |= dict(pooled=metrics.frechet_distance(judge.features(torch.cat(images)), judge.reference()))
    return row | dict(seconds=round(time.process_time() - start, 1))


def floors() -> dict[str, Any]:
    """What real images get: for each seed that of IMAGES test images of even classes, no image in two of them."""
    test, f = datasets.load("fashion-mnist-10k", "test"), judge.test_features()
    chosen = judge.alike(labels(len(SEEDS) * IMAGES), test.y)
    parts = [chosen[i :: len(SEEDS)] for i in range(len(SEEDS))]
    return {
        "fd": [metrics.frechet_distance(f[part], judge.reference()) for part in parts],
        "pooled": metrics.frechet_distance(f[chosen], judge.reference()),
        "white": (test.x0 > 0.99).double().mean().item(),
    }


# ---- equal calls ---------------------------------------------------------------------------------


def steps_for(calls: int, levels: tuple[float, float] = MIDDLE) -> int:
    """The most steps of `within` that cost no more than this many calls for an image."""
    schedule = td.load_pretrained("fashion-dit").schedule

    def cost(n: int) -> int:
        level = torch.exp(-schedule.logsnr(grid(schedule, n)[:-1]) / 2)
        return n + int(((levels[0] <= level) & (level <= levels[1])).sum())

    return max(n for n in range(1, calls + 1) if cost(n) <= calls)


def plain(d: Denoiser, w: float | int, y: Tensor) -> Denoiser:
    return bind(d, y=y)


def runs(part: str) -> list[Run]:
    """The runs on Fashion-MNIST of a part."""
    if part == "scale":
        return [Run(part, "cfg", w, guided) for w in SCALES]
    if part == "interval":
        cut = {"middle": MIDDLE, "not the noisiest": (0.0, MIDDLE[1]), "not the cleanest": (MIDDLE[0], 1e9)}
        mine = [Run(part, "middle", w, within, extra=(MIDDLE,)) for w in (1.5, 2, 5)]
        return mine + [Run(part, name, 3, within, extra=(levels,)) for name, levels in cut.items()]
    if part == "auto":
        return [Run(part, "auto", w, away) for w in (1.25, 1.5, 2, 3)]
    if part == "unet":
        return [Run(part, "cfg", w, guided, 12, "fashion-unet") for w in (1, 1.25, 1.5)]
    equal = []
    for calls in (12, 24, 50):
        equal += [Run(part, f"{calls} plain", 1, plain, calls), Run(part, f"{calls} cfg", 2, guided, calls // 2)]
        equal += [Run(part, f"{calls} interval", 2, within, steps_for(calls), extra=(MIDDLE,))]
        equal += [Run(part, f"{calls} auto", 2, away, calls // 2)]
    return equal


# ---- dropping labels, on the digits --------------------------------------------------------------


@cache
def dropped(share: float, seed: int) -> Denoiser:
    """The digits' recipe with this share of labels dropped."""
    drop = drop_labels(10, share) if share else None
    for step in digits.train(digits.Settings(seed=seed, steps=400), **({"drop": drop} if drop else {})):  # noqa: B007
        pass
    return step.denoiser


def digits_judged(d: Denoiser, w: float | int, seed: int, n: int = 600) -> dict[str, float]:
    """Accuracy by an SVM, distances in pixels, and diversity, of n guided digits."""
    y, real, test = labels(n), datasets.digits_train(), datasets.digits_test()
    x = sample(thresholded(guided(d, w, y), static()), (n, 1, 8, 8), 20, dpmpp_2m, seed=seed)
    pixels = lambda v: v.flatten(1)  # noqa: E731
    pr = metrics.precision_recall(pixels(x)[: len(test.x0)], pixels(test.x0))
    return {
        "accuracy": metrics.digit_accuracy(x, y),
        "fd": metrics.frechet_distance(pixels(x), pixels(real.x0)),
        "energy": metrics.energy_distance(x, test.x0),
        "precision": pr.precision,
        "recall": pr.recall,
        "diversity": diversity(pixels(x), y, pixels(real.x0), real.y),
    }


def drop_rows(share: float) -> Iterator[dict[str, Any]]:
    """A row for each scale, each number a list over SEEDS, of networks trained with this share dropped."""
    for w in SCALES:
        start = time.process_time()
        said = [digits_judged(dropped(share, seed), w, seed) for seed in SEEDS]
        row = dict(part="drop", name=f"share {share}", w=w, steps=20) | {k: [one[k] for one in said] for k in said[0]}
        yield row | dict(seconds=round(time.process_time() - start, 1))


def digits_floors() -> dict[str, float]:
    """What held-out digits give: their Fréchet distance in pixels, and the SVM's accuracy on them."""
    real, test = datasets.digits_train(), datasets.digits_test()
    fd = metrics.frechet_distance(test.x0.flatten(1), real.x0.flatten(1))
    return {"fd": fd, "accuracy": metrics.digit_accuracy(test.x0, test.y)}


# ---- the study -----------------------------------------------------------------------------------


def row_of(results: dict[str, Any], part: str, name: str, w: float | int, steps: int | None = None) -> dict[str, Any]:
    """The one row of a run. Raises ValueError if there is none, or more than one."""
    found = [r for r in results["rows"] if (r["part"], r["name"], r["w"]) == (part, name, w)]
    found = [r for r in found if steps is None or r["steps"] == steps]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of part {part!r}, name {name!r}, w {w}, steps {steps}; one was asked for")
    return found[0]


def twin(run: Run, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of a run of another part that asks the same networks the same, under this run's name."""
    same = [other.key for part in PARTS if part != "drop" for other in runs(part) if other[2:] == run[2:]]
    found = [row for row in rows if [row[k] for k in ("part", "name", "w", "steps")] in same]
    return found[0] | dict(part=run.part, name=run.name, seconds=0.0) if found else None


def main(parts: tuple[str, ...] = PARTS, name: str = NAME) -> None:
    """Runs what is missing of these parts: scale, interval, auto, drop, calls, unet."""
    torch.set_num_threads(1)
    made = provenance("python -m tinydiff.recipes.study_cfg")
    made |= {"seeds": list(SEEDS), "images": IMAGES, "floors": floors(), "digits_floors": digits_floors()}
    rows: list[dict[str, Any]] = load_results(name)["rows"] if (FOLDER / f"{name}.json").is_file() else []
    key = lambda row: [row[k] for k in ("part", "name", "w", "steps")]  # noqa: E731

    def keep(more: list[dict[str, Any]]) -> None:
        rows.extend(more)
        save_results(name, made | {"seconds": round(sum(row["seconds"] for row in rows)), "rows": rows})

    todo: list[tuple[list, Callable]] = []
    for part in parts:
        if part == "drop":
            todo += [([part, f"share {s}", SCALES[-1], 20], lambda s=s: list(drop_rows(s))) for s in SHARES]
        else:
            todo += [(run.key, lambda run=run: [twin(run, rows) or measure(run)]) for run in runs(part)]
    for one, work in progress(todo, desc="runs"):
        if one not in [key(row) for row in rows]:
            keep(work())


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
