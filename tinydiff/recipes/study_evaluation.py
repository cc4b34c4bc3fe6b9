"""Metrics judged by models whose fault is known: a study over seeds for notebook 15.

    python -m tinydiff.recipes.study_evaluation

The "models" are made of real images of Fashion-MNIST, so what is wrong with each is known; the features are those of
the shipped classifier. A seed splits the 5,000 test images anew, and draws what has to be drawn. Results in
data/results/15_evaluation.json:

    rows     every model of every seed by every metric
    floors   what fresh test images get: mean and standard deviation over other random splits
    changes  images changed on purpose: how far in pixels, and the Frechet distance
    power    how many standard deviations a slight fault lies from fresh images, by n, for FD and KID
"""

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinydiff import datasets, metrics
from tinydiff.progress import progress
from tinydiff.recipes import fashion_classifier as judge
from tinydiff.results import provenance, save_results

SEEDS = (0, 1, 2)
METRICS = ("fd", "kid", "precision", "recall", "density", "coverage", "copied, pixels", "copied, features")
SIZES = (50, 100, 200, 500)  # of samples, for the power
PAPER = -1.0  # the background of every image
SHIRT, TROUSER = 6, 1


@dataclass(frozen=True)
class Settings:
    samples: int = 1000
    yardstick: int = 1000  # test images that kid, precision, recall, density and coverage compare with
    trained: int = 2000  # training images that the models have "seen"
    looked_at: int = 200  # samples that memorisation looks at
    splits: int = 30  # of fresh images, for the floors
    repeats: int = 40  # for the power


S = Settings()


class Split(NamedTuple):
    """Disjoint parts of the test images: numbers."""

    pool: Tensor  # what the models are made of
    yard: Tensor  # what they are compared with
    unseen: Tensor  # what memorisation takes for new


def split(seed: int) -> Split:
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(seed))
    return Split(*order.split((5000 - 2 * S.yardstick, S.yardstick, S.yardstick)))


# ---- images changed on purpose -------------------------------------------------------------------


def blur(x: Tensor, std: float) -> Tensor:
    """By a Gaussian of this standard deviation in pixels."""
    k = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * std**2))
    k = k / k.sum()
    framed = F.pad(x, (4,) * 4, value=PAPER)
    return F.conv2d(F.conv2d(framed, k.view(1, 1, 1, -1)), k.view(1, 1, -1, 1))


def noisy(x: Tensor, std: float, seed: int = 0) -> Tensor:
    """White noise, clipped to [-1, 1]."""
    return (x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def moved(x: Tensor, dx: int = 1, dy: int = 0) -> Tensor:
    """To the right and down by whole pixels; paper comes in."""
    h, w = x.shape[2:]
    framed = F.pad(x, (2,) * 4, value=PAPER)
    return framed[:, :, 2 - dy : 2 - dy + h, 2 - dx : 2 - dx + w]


def half_moved(x: Tensor) -> Tensor:
    """To the right by half a pixel, by linear interpolation."""
    return (x + moved(x)) / 2


def resized(x: Tensor, side: int, mode: str, antialias: bool = False) -> Tensor:
    """To this side, and back to where it came from, by the same filter."""
    there = F.interpolate(x, size=side, mode=mode, antialias=antialias)
    return F.interpolate(there, size=x.shape[-1], mode=mode, antialias=antialias).clamp(-1, 1)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Through a JPEG file in memory."""
    import numpy as np
    from PIL import Image

    out = []
    for image in ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)[:, 0].numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        out.append(np.array(Image.open(file)))
    return torch.from_numpy(np.stack(out))[:, None].float() / 127.5 - 1


def marked(x: Tensor, lower: bool = True, side: int = 3) -> Tensor:
    """A white square in the lower right or the upper left corner of every image."""
    x, corner = x.clone(), slice(-side, None) if lower else slice(side)
    x[:, :, corner, corner] = 1
    return x


def grey_paper(x: Tensor, lift: float = 0.05) -> Tensor:
    """Nothing is darker than this above black."""
    return x.clamp(min=PAPER + lift)


def darker(x: Tensor, by: float = 0.2) -> Tensor:
    """White becomes light grey, black stays."""
    return (x - PAPER) * (1 - by) + PAPER


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "paper 1 % grey": lambda x: grey_paper(x, 0.02),
    "paper 2.5 % grey": grey_paper,
    "noise 0.05": lambda x: noisy(x, 0.05),
    "JPEG, quality 75": lambda x: jpeg(x, 75),
    "half a pixel aside": half_moved,
    "one pixel aside": moved,
    "28 to 20 to 28, bicubic": lambda x: resized(x, 20, "bicubic", True),
    "28 to 20 to 28, bilinear": lambda x: resized(x, 20, "bilinear"),
    "darker by a fifth": darker,
    "white mark, lower right": marked,
    "white mark, upper left": lambda x: marked(x, lower=False),
    "mirrored": lambda x: x.flip(3),
}

# ---- models whose fault is known -----------------------------------------------------------------


def training_set() -> datasets.Images:
    """What the models have "seen"."""
    return datasets.load("fashion-mnist-10k", "train").first(S.trained)


def models(seed: int) -> dict[str, Tensor]:
    """Name -> samples (n, 1, 28, 28) of a model whose fault the name says."""
    g = torch.Generator().manual_seed(1000 + seed)
    test = datasets.load("fashion-mnist-10k", "test")
    x, y = test[split(seed).pool]
    seen, label = training_set()[:]
    n, some = S.samples, torch.randperm(S.trained, generator=g)[: S.samples]
    by_class = [(label == k).nonzero().flatten() for k in range(10)]
    pick = lambda numbers, count: numbers[torch.randperm(len(numbers), generator=g)[:count]]  # noqa: E731
    a, b = (torch.cat([pick(numbers, n // 10) for numbers in by_class]) for _ in range(2))
    shirts, others = (y == SHIRT).nonzero().flatten(), (y != SHIRT).nonzero().flatten()
    shown = torch.cat([pick(numbers, 2) for numbers in by_class])
    return {
        "fresh images": x[:n],
        "blurred": blur(x[:n], 0.5),
        "noisy": noisy(x[:n], 0.05, seed),
        "no trousers": x[y != TROUSER][:n],
        "no shirts": x[y != SHIRT][:n],
        "shirts three times as often": x[torch.cat([shirts[: n // 4], others[: n - n // 4]])],
        "20 images, again and again": seen[shown].repeat(n // 20, 1, 1, 1),
        "the mean of each class": torch.stack([seen[k].mean(0) for k in by_class]).repeat(n // 10, 1, 1, 1),
        "averages of two": (seen[a] + seen[b]) / 2,
        "Gaussian pixels": gaussian_like(seen.flatten(1), n, g).view(n, 1, 28, 28).clamp(-1, 1),
        "copies": seen[some],
        "copies, one pixel aside": moved(seen[some]),
        "copies, noisy": noisy(seen[some], 0.05, seed),
    }


def gaussian_like(data: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n draws of the Gaussian that has the mean and covariance of the data (m, d)."""
    around = (data - data.mean(dim=0)) / (len(data) - 1) ** 0.5
    return data.mean(dim=0) + torch.randn(n, len(data), generator=generator, dtype=data.dtype) @ around


# ---- the rulers ----------------------------------------------------------------------------------


def judged(f: Tensor, yard: Tensor) -> dict[str, float]:
    """Features of samples by every metric of features; `yard` are features of fresh images."""
    found = {"fd": metrics.frechet_distance(f, judge.reference()), "kid": metrics.kid(f, yard)}
    found |= metrics.precision_recall(f, yard)._asdict()
    return found | metrics.density_coverage(f, yard)._asdict()


def copied(x: Tensor, seen: Tensor, unseen: Tensor) -> float:
    """`memorisation` of the first samples, of pixels or of features."""
    return metrics.memorisation(x[: S.looked_at], seen, unseen[: S.looked_at])


def row(name: str, x: Tensor | None, f: Tensor, parts: Split, test: Tensor, f_test: Tensor, f_seen: Tensor) -> dict:
    found = {"model": name} | judged(f, f_test[parts.yard])
    if x is not None:
        found["copied, pixels"] = copied(x, training_set().x0, test[parts.unseen])
    return found | {"copied, features": copied(f, f_seen, f_test[parts.unseen])}


def of_seed(seed: int, test: Tensor, f_test: Tensor, f_seen: Tensor) -> list[dict[str, Any]]:
    """Every model by every metric, the Gaussian of features last: it has no images."""
    drawn = {name: (x, judge.features(x)) for name, x in models(seed).items()}
    g = torch.Generator().manual_seed(2000 + seed)
    drawn["Gaussian features"] = (None, gaussian_like(f_test[split(seed).pool], S.samples, g))
    return [dict(seed=seed) | row(name, x, f, split(seed), test, f_test, f_seen) for name, (x, f) in drawn.items()]


def floors(test: Tensor, f_test: Tensor, f_seen: Tensor) -> dict[str, dict[str, float]]:
    """What fresh images get, over other random splits: mean and standard deviation of every metric."""
    rows = []
    for seed in progress(range(10_000, 10_000 + S.splits), desc="fresh images"):
        parts = split(seed)
        rows.append(row("fresh images", test[parts.pool], f_test[parts.pool[: S.samples]], parts, test, f_test, f_seen))
    values = {key: torch.tensor([r[key] for r in rows], dtype=torch.float64) for key in METRICS}
    return {key: {"mean": v.mean().item(), "std": v.std().item()} for key, v in values.items()}


def power(f: Tensor, f_test: Tensor, seed: int = 0) -> dict[str, list[float]]:
    """How many standard deviations lie between the values of a fault's features f and those of fresh images, by n.

    Parts of one size overlap, so the standard deviations are a little too small, for all metrics alike.
    """
    parts = split(seed)
    yard = f_test[parts.yard]
    against = {
        "FD, n against 60,000": lambda a, _: metrics.frechet_distance(a, judge.reference()),
        "FD, n against n": metrics.frechet_distance,
        "KID, n against 1,000": lambda a, _: metrics.kid(a, yard),
        "KID, n against n": metrics.kid,
    }
    out = {name: [] for name in against}
    for n in SIZES:
        for name, metric in against.items():
            fresh, faulty = (
                metrics.against_n(metric, z, yard, [n], S.repeats, seed).values[0] for z in (f_test[parts.pool], f)
            )
            spread = ((fresh.var() + faulty.var()) / 2).sqrt()
            out[name].append(((faulty.mean() - fresh.mean()) / spread).item())
    return out


def changed(x: Tensor, change: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """How far a change moves images (root mean square, of a range of 2), and what the judge's FD says of them."""
    after = change(x)
    off = (after - x).square().mean().sqrt().item()
    return {"rms": off, "fd": metrics.frechet_distance(judge.features(after), judge.reference())}


def main() -> None:
    torch.set_num_threads(1)
    began = time.process_time()
    test = datasets.load("fashion-mnist-10k", "test").x0
    f_test, f_seen = judge.features(test), judge.features(training_set().x0)
    rows = [r for seed in progress(SEEDS, desc="models") for r in of_seed(seed, test, f_test, f_seen)]
    changes = [
        dict(change=name, seed=seed) | changed(test[split(seed).pool[: S.samples]], change)
        for seed in progress(SEEDS, desc="changes")
        for name, change in CHANGES.items()
    ]
    slight = {"blurred": lambda x: blur(x, 0.45), "noisy": lambda x: noisy(x, 0.03)}
    powers = {name: power(judge.features(f(test[split(0).pool])), f_test) for name, f in slight.items()}
    made = provenance("python -m tinydiff.recipes.study_evaluation") | {"settings": asdict(S), "seeds": SEEDS}
    made |= {"floors": floors(test, f_test, f_seen), "sizes": SIZES, "power": powers}
    made |= {"seconds": round(time.process_time() - began)}
    save_results("15_evaluation", made | {"rows": rows, "changes": changes})


if __name__ == "__main__":
    main()
