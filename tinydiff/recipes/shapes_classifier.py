"""A classifier of the attributes of shapes, of all compositions: for "shapes-classifier", a judge of samples.

    TINYDIFF_SCALE=full python -m tinydiff.recipes.shapes_classifier

It learns from every split, so what no generator has seen is nothing new to it, with a little noise and blur, so that it
reads what a generator makes. The oracle (`datasets.oracle`), which learned nothing, is the check on it: where the two
disagree on samples more than on real pictures, neither should be trusted.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinydiff import datasets, metrics
from tinydiff.checkpoints import load_network, read_checkpoint, shipped
from tinydiff.models import SceneClassifier
from tinydiff.notebook import scale
from tinydiff.progress import progress
from tinydiff.recipes.base import GPU, train_and_ship
from tinydiff.training import warmup_cosine

NAME = "shapes-classifier"
SPLITS = ("train", "test-pair", "test-rel", "test-length", "test-ood")
OTHER_SEED = 1000  # so that no picture of an evaluation was trained on


@dataclass(frozen=True)
class Settings:
    preset: str = "shapes32-2"
    size: int = 32
    width: int = 128
    pictures: int = 500  # of each split
    steps: int = 100
    batch_size: int = 64
    lr: float = 2e-3
    noise: float = 0.05  # standard deviation
    seed: int = 0
    samples: int = 500  # of an evaluation, of each split
    device: str = "cuda" if GPU else "cpu"
    threads: int = 1


SCALES = {"laptop": Settings(), "full": Settings(pictures=8000, steps=6000 if GPU else 3000, batch_size=128)}


def pictures(s: Settings, n: int, seed: int) -> dict[str, Tensor]:
    """n of each split: x0, attributes, relations."""
    splits = [name for name in SPLITS if not (s.preset == "shapes16-1" and name in ("test-rel", "test-length"))]
    told = ("attributes", "relations")
    parts = [datasets.shapes(s.preset, split, n, s.size, seed, told).tensors() for split in splits]
    return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}


def disturbed(x: Tensor, noise: float) -> Tensor:
    """Half of the pictures blurred over 3 pixels, all with Gaussian noise."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    some = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(some, blurred, x) + noise * torch.randn_like(x)


def train(s: Settings) -> SceneClassifier:
    """By AdamW in float32, its learning rate along half a cosine."""
    real = {k: v.to(s.device) for k, v in pictures(s, s.pictures, OTHER_SEED + s.seed).items()}
    with torch.random.fork_rng(devices=[s.device] if s.device.startswith("cuda") else []):
        torch.manual_seed(s.seed)
        net = SceneClassifier(size=s.size, width=s.width).to(s.device)
        opt = torch.optim.AdamW(net.parameters(), lr=s.lr, weight_decay=0.05)
        rate = warmup_cosine(warmup=100, end=0.01)
        for k in (bar := progress(range(s.steps), desc="training the classifier")):
            i = torch.randint(len(real["x0"]), (s.batch_size,), device=s.device)
            x, told = disturbed(real["x0"][i], s.noise), (real["attributes"][i], real["relations"][i])
            loss = net.loss(x, *told)
            opt.param_groups[0]["lr"] = s.lr * rate(k, s.steps)
            opt.zero_grad()
            loss.backward()
            opt.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return net.eval()


def read(net: SceneClassifier, images: Tensor) -> metrics.Read:
    """What the classifier reads, in batches."""
    parts = [net.read(x) for x in images.split(500)]
    return metrics.Read(*(torch.cat(part) for part in zip(*parts, strict=True)))


def evaluate(net: SceneClassifier, s: Settings) -> dict[str, float]:
    """Shares read right of fresh pictures of all splits, by attribute, and in how many it agrees with the oracle."""
    fresh = pictures(s, s.samples, s.seed)
    asked, mine = metrics.Read(fresh["attributes"], fresh["relations"]), read(net.cpu(), fresh["x0"])
    found = metrics.attribute_accuracy(mine, asked, textures=s.size > 16)._asdict()
    if s.size > 16:
        oracle = metrics.read_shapes(fresh["x0"][:: max(1, len(fresh["x0"]) // 500)])
        few = metrics.Read(*(v[:: max(1, len(fresh["x0"]) // 500)] for v in mine))
        found["agrees_with_oracle"] = metrics.attribute_accuracy(few, oracle).exact
    return found


# ---- the shipped judge ---------------------------------------------------------------------------


@functools.cache
def judge() -> SceneClassifier:
    """The shipped classifier."""
    return load_network(shipped(NAME))


def seen(x: Tensor) -> Tensor:
    """Pictures as the judge takes them: averaged to the 32 pixels that it was trained on. It judges no textures."""
    return F.avg_pool2d(x.float(), x.shape[-1] // 32)


@torch.no_grad()
def features(x: Tensor) -> Tensor:
    """(n, 128) features of pictures of 32 or 64 pixels, by the shipped classifier."""
    return torch.cat([judge().features(seen(part)) for part in x.split(500)])


REFERENCE = ("shapes32-2", "shapes64-2t")


@functools.cache
def reference(preset: str = "shapes32-2") -> metrics.Moments:
    """Mean and covariance of the features of 10,000 pictures of the split "val", which ship with the classifier."""
    if preset not in REFERENCE:
        raise ValueError(f"preset must be one of {', '.join(REFERENCE)}; got {preset!r}")
    tensors, _, _ = read_checkpoint(shipped(NAME))
    start = f"reference.{preset}."
    return metrics.Moments.from_tensors({k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)})


@torch.no_grad()
def moments(net: SceneClassifier, n: int = 10_000) -> dict[str, Tensor]:
    """What `reference` reads, by name."""
    found = {}
    for preset in REFERENCE:
        x = datasets.shapes(preset, "val", n, 32).tensors()["x0"]
        parts = metrics.Moments.of(net.features(part) for part in x.split(500)).tensors()
        found |= {f"reference.{preset}.{k}": t for k, t in parts.items()}
    return found


@functools.cache
def asked(preset: str, split: str, n: int, seed: int = 0) -> dict[str, Tensor]:
    """n captions of a split and what they ask for: tokens, attributes, relations; and x0, pictures that have it."""
    return datasets.shapes(preset, split, n, None, seed, ("tokens", "attributes", "relations")).tensors()


def judged(x: Tensor, of: dict[str, Tensor], preset: str = "shapes32-2", oracle: int = 0) -> dict[str, int | float]:
    """What the judge says of pictures x made for the captions `of` (see `asked`).

    fd: Fréchet distance to real pictures of the split "val", which have nothing that is held out; fd_floor: that of
    the real pictures in `of`. Then the shares of `metrics.attribute_accuracy`, without textures.
    oracle: as many of the pictures are read by the oracle too: oracle_exact, agrees (all the same as the judge says),
    and with textures in the preset also oracle_texture and oracle_exact_textures.
    """
    wanted = metrics.Read(of["attributes"], of["relations"])
    mine = read(judge(), seen(x))
    found: dict[str, int | float] = {"n": len(x)}
    found["fd"] = metrics.frechet_distance(features(x), reference(preset))
    found["fd_floor"] = metrics.frechet_distance(features(of["x0"]), reference(preset))
    told = metrics.attribute_accuracy(mine, wanted, textures=False)._asdict()
    found |= {k: v for k, v in told.items() if k != "texture"}
    if oracle:
        first = lambda r: metrics.Read(*(v[:oracle] for v in r))  # noqa: E731
        other = metrics.read_shapes(x[:oracle])
        found["oracle_exact"] = metrics.attribute_accuracy(other, first(wanted), textures=False).exact
        found["agrees"] = metrics.attribute_accuracy(first(mine), other, textures=False).exact
        if len(datasets.captioned.PRESETS[preset].textures) > 1:
            whole = metrics.attribute_accuracy(other, first(wanted))
            found |= {"oracle_texture": whole.texture, "oracle_exact_textures": whole.exact}
    return found


def main() -> None:
    """Trains the classifier at the chosen scale and writes it, with moments of real pictures, where it ships."""
    train_and_ship(NAME, "shapes_classifier", SCALES[scale()], train, lambda net: net, evaluate, moments)


if __name__ == "__main__":
    main()
