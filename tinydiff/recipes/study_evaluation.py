"""Metrics judged by models whose fault is known: a study over seeds for notebook 15.

    python -m tinydiff.recipes.study_evaluation

The "models" are made of real images of Fashion-MNIST, so what is wrong with each is known; the features are those of
the shipped classifier. A seed splits the 5,000 test images anew, and draws what has to be drawn. Results in
data/results/15_evaluation.json:

    rows     every model of every seed by every metric
    floors   what fresh test images get, over other random splits: mean, standard deviation, spread, largest
    changes  images changed on purpose: how far in pixels, and the Frechet distance
    power    how many standard deviations a slight fault lies from fresh images, by n, for FD and KID
    unet     samples of the shipped U-Net by every metric, against the same three splits, and some of its images
"""

import base64
import io
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tinydiff import datasets, metrics
from tinydiff.checkpoints import load_pretrained
from tinydiff.progress import progress
from tinydiff.recipes import fashion
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
    splits: int = 200  # of fresh images, for the floors
    power_splits: int = 10
    repeats: int = 40  # in each of these
    sampling_steps: int = 25  # of the U-Net
    shown: int = 10  # images of each kind that are kept


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


# six of them, to be told apart by eye; the order tells nothing
QUIZ = ("no trousers", "copies", "noisy", "20 images, again and again", "fresh images", "copies, one pixel aside")


def unet_samples() -> Tensor:
    """What the shipped U-Net draws: a hundred images of each class, without guidance."""
    s = replace(fashion.SCALES["full"], sampling_steps=S.sampling_steps, device="cpu")
    return fashion.generate(load_pretrained("fashion-unet"), S.samples, s, batch=50)  # on a CPU faster than more


def packed(x: Tensor) -> str:
    """Images in [-1, 1] as text: bytes, deflated, in base64."""
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return base64.b64encode(zlib.compress(pixels.numpy().tobytes(), 9)).decode()


def unpacked(text: str) -> Tensor:
    """(n, 1, 28, 28) images in [-1, 1]."""
    pixels = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8)
    return pixels.view(-1, 1, 28, 28).float() / 127.5 - 1


# ---- the rulers ----------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What a model has learned from."""

    x: Tensor  # images
    f: Tensor  # their features


def judged(f: Tensor, yard: Tensor) -> dict[str, float]:
    """Features of samples by every metric of features; `yard` are features of fresh images."""
    found = {"fd": metrics.frechet_distance(f, judge.reference()), "kid": metrics.kid(f, yard)}
    found |= metrics.precision_recall(f, yard)._asdict()
    return found | metrics.density_coverage(f, yard)._asdict()


def copied(x: Tensor, seen: Tensor, unseen: Tensor) -> float:
    """`memorisation` of the first samples, of pixels or of features."""
    return metrics.memorisation(x[: S.looked_at], seen, unseen[: S.looked_at])


def row(name: str, x: Tensor | None, f: Tensor, parts: Split, test: Tensor, f_test: Tensor, trained: Seen) -> dict:
    found = {"model": name} | judged(f, f_test[parts.yard])
    if x is not None:
        found["copied, pixels"] = copied(x, trained.x, test[parts.unseen])
    return found | {"copied, features": copied(f, trained.f, f_test[parts.unseen])}


def of_seed(seed: int, test: Tensor, f_test: Tensor, trained: Seen) -> list[dict[str, Any]]:
    """Every model by every metric, the Gaussian of features last: it has no images."""
    drawn = {name: (x, judge.features(x)) for name, x in models(seed).items()}
    g = torch.Generator().manual_seed(2000 + seed)
    drawn["Gaussian features"] = (None, gaussian_like(f_test[split(seed).pool], S.samples, g))
    return [dict(seed=seed) | row(name, x, f, split(seed), test, f_test, trained) for name, (x, f) in drawn.items()]


def floors(test: Tensor, f_test: Tensor, trained: Seen) -> dict[str, dict[str, float]]:
    """What fresh images get, over other random splits, by every metric.

    spread: half the width of the middle 68 per cent. For a Gaussian that is its standard deviation, but a single odd
    split does not move it.
    """
    # a distance lies at that distance from 0: so each image's is measured once, not once for every split
    near = {
        "pixels": metrics.nearest_distance(test, trained.x),
        "features": metrics.nearest_distance(f_test, trained.f),
    }
    rows = []
    for seed in progress(range(10_000, 10_000 + S.splits), desc="fresh images"):
        parts = split(seed)
        found = judged(f_test[parts.pool[: S.samples]], f_test[parts.yard])
        for what, d in near.items():
            found[f"copied, {what}"] = copied(d[parts.pool, None], torch.zeros(1, 1), d[parts.unseen, None])
        rows.append(found)
    out = {}
    for key in METRICS:
        v = torch.tensor([r[key] for r in rows], dtype=torch.float64)
        low, high = v.quantile(torch.tensor([0.1587, 0.8413], dtype=v.dtype)).tolist()
        out[key] = dict(mean=v.mean().item(), std=v.std().item(), spread=(high - low) / 2, largest=v.max().item())
    return out


POWER: dict[str, Callable[[Tensor, Tensor, Tensor], float]] = {  # of n samples, n data points and 1,000 of these
    "FD, n against 60,000": lambda x, y, yard: metrics.frechet_distance(x, judge.reference()),
    "FD, n against n": lambda x, y, yard: metrics.frechet_distance(x, y),
    "KID, n against 1,000": lambda x, y, yard: metrics.kid(x, yard),
    "KID, n against n": lambda x, y, yard: metrics.kid(x, y),
}


def power(f_faulty: dict[str, Tensor], f_test: Tensor, seed: int) -> list[dict[str, Any]]:
    """How many standard deviations lie between the values of a fault's features and those of fresh images, by n.

    f_faulty: features of all test images with that fault. Parts of one size overlap, so the standard deviations are a
    little too small, for all metrics alike.
    """
    parts = split(seed)
    yard = f_test[parts.yard]
    out: list[dict[str, Any]] = [dict(fault=name, seed=seed) for name in f_faulty]
    for way, metric in POWER.items():
        against = lambda x, y, metric=metric: metric(x, y, yard)  # noqa: E731
        values = {
            name: metrics.against_n(against, f[parts.pool], yard, list(SIZES), S.repeats, seed)
            for name, f in {"": f_test, **f_faulty}.items()
        }
        fresh = values[""]
        for found in out:
            faulty = values[found["fault"]]
            spread = ((fresh.values.var(1) + faulty.values.var(1)) / 2).sqrt()
            found[way] = [round(v, 3) for v in ((faulty.mean - fresh.mean) / spread).tolist()]
    return out


def of_the_unet(test: Tensor, f_test: Tensor) -> dict[str, Any]:
    """The shipped U-Net: its 1,000 samples against three splits, and the likeliest copies among the first 200.

    It has learned from all 60,000 training images, so it is compared with these where copies are looked for, as the
    fresh images beside it are.
    """
    x, full = unet_samples(), datasets.load("fashion-mnist").x0
    f, trained = judge.features(x), Seen(full, judge.features(full))
    rows = [dict(seed=s) | row("U-Net", x, f, split(s), test, f_test, trained) for s in progress(SEEDS, desc="U-Net")]
    with torch.no_grad():
        read = judge.judge().last(F.silu(f)).argmax(1)
    fresh = test[split(SEEDS[0]).pool[: S.looked_at]]
    near = {"samples": nearest(x[: S.looked_at], full), "fresh": nearest(fresh, full)}
    kept = {"drawn": packed(x[: S.shown])}
    for name, (images, originals, _) in near.items():
        kept |= {f"closest {name}": packed(images), f"nearest to {name}": packed(originals)}
    return {
        "rows": rows,
        "read": (read == fashion.labels(S.samples)).double().mean().item(),
        "closest": {name: found[2] for name, found in near.items()},
        "images": kept,
    }


def nearest(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """The images of x that lie nearest to a training image, that image, and the distances, nearest first."""
    distance, which = torch.cdist(x.flatten(1), train.flatten(1)).min(1)
    first = distance.argsort()[: S.shown]
    return x[first], train[which[first]], [round(d, 2) for d in distance[first].tolist()]


def changed(x: Tensor, change: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """How far a change moves images (root mean square, of a range of 2), and what the judge's FD says of them."""
    after = change(x)
    off = (after - x).square().mean().sqrt().item()
    return {"rms": off, "fd": metrics.frechet_distance(judge.features(after), judge.reference())}


def main() -> None:
    torch.set_num_threads(1)
    began = time.process_time()
    test, seen = datasets.load("fashion-mnist-10k", "test").x0, training_set().x0
    f_test, trained = judge.features(test), Seen(seen, judge.features(seen))
    rows = [r for seed in progress(SEEDS, desc="models") for r in of_seed(seed, test, f_test, trained)]
    changes = [
        dict(change=name, seed=seed) | changed(test[split(seed).pool[: S.samples]], change)
        for seed in progress(SEEDS, desc="changes")
        for name, change in CHANGES.items()
    ]
    slight = {"blurred": judge.features(blur(test, 0.45)), "noisy": judge.features(noisy(test, 0.03))}
    powers = [r for seed in progress(range(S.power_splits), desc="power") for r in power(slight, f_test, seed)]
    made = provenance("python -m tinydiff.recipes.study_evaluation") | {"settings": asdict(S), "seeds": SEEDS}
    made |= {"floors": floors(test, f_test, trained), "sizes": SIZES, "power": powers}
    made |= {"unet": of_the_unet(test, f_test), "seconds": round(time.process_time() - began)}
    save_results("15_evaluation", made | {"rows": rows, "changes": changes})


if __name__ == "__main__":
    main()
