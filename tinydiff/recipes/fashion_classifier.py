"""A classifier of Fashion-MNIST, and what its features say of samples: the judge that ships as "fashion-classifier".

The distance between Gaussians fitted to features is Fréchet's (Heusel et al. 2017), but only in Inception's features is
it FID. So it is called FD here, and its floor, what real test images get, stands beside it.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinydiff import datasets, metrics
from tinydiff.checkpoints import load_network, read_checkpoint, shipped
from tinydiff.models import ConvClassifier
from tinydiff.notebook import scale
from tinydiff.progress import progress
from tinydiff.recipes.base import GPU, train_and_ship
from tinydiff.training import warmup_cosine

NAME = "fashion-classifier"


@dataclass(frozen=True)
class Settings:
    data: str = "fashion-mnist-10k"
    epochs: int = 3
    batch_size: int = 128
    lr: float = 3e-3
    seed: int = 0
    device: str = "cuda" if GPU else "cpu"
    threads: int = 2


SCALES = {"laptop": Settings(), "full": Settings(data="fashion-mnist", epochs=6, threads=1)}


def train(s: Settings) -> ConvClassifier:
    """The classifier, trained by AdamW in float32, its learning rate along half a cosine."""
    real = datasets.load(s.data).to(s.device)
    with torch.random.fork_rng(devices=[s.device] if s.device.startswith("cuda") else []):
        torch.manual_seed(s.seed)
        net = ConvClassifier().to(s.device)
        opt = torch.optim.AdamW(net.parameters(), lr=s.lr, weight_decay=0.05)
        steps = s.epochs * len(real) // s.batch_size
        rate = warmup_cosine(warmup=100, end=0.01)
        for k in (bar := progress(range(steps), desc="training the classifier")):
            if k % (len(real) // s.batch_size) == 0:
                order = torch.randperm(len(real)).split(s.batch_size)
            batch = real.batch(order[k % (len(real) // s.batch_size)])
            loss = F.cross_entropy(net(batch["x0"]), batch["y"])
            opt.param_groups[0]["lr"] = s.lr * rate(k, steps)
            opt.zero_grad()
            loss.backward()
            opt.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return net.eval()


@torch.no_grad()
def accuracy(net: ConvClassifier, images: datasets.Images) -> float:
    """Share of the images that the classifier reads as their label."""
    right = [net(x).argmax(1) == y for x, y in batches(images)]
    return torch.cat(right).double().mean().item()


def batches(images: datasets.Images, size: int = 500) -> Iterable[tuple[Tensor, Tensor]]:
    return (images[i : i + size] for i in range(0, len(images), size))


# ---- the shipped judge ---------------------------------------------------------------------------


@functools.cache
def judge() -> ConvClassifier:
    """The shipped classifier."""
    return load_network(shipped(NAME))


@functools.cache
def reference() -> metrics.Moments:
    """Mean and covariance of the features of all 60,000 training images, which ship with the classifier."""
    tensors, _, _ = read_checkpoint(shipped(NAME))
    stored = {k.removeprefix("reference."): t for k, t in tensors.items() if k.startswith("reference.")}
    return metrics.Moments.from_tensors(stored)


@torch.no_grad()
def features(x: Tensor, net: ConvClassifier | None = None) -> Tensor:
    """(n, 64) features of images in [-1, 1], by the shipped classifier."""
    net = net or judge()
    return torch.cat([net.features(part) for part in x.float().split(500)])


@functools.cache
def test_features() -> Tensor:
    """(5000, 64) features of the test images that ship."""
    return features(datasets.load("fashion-mnist-10k", "test").x0)


def alike(y: Tensor, of: Tensor) -> Tensor:
    """Numbers of the first images whose labels `of` are those of y, as often as in y; evenly fewer if one runs out."""
    classes = y.unique()
    wanted, there = (torch.stack([(labels == k).sum() for k in classes]) for labels in (y, of))
    take = (wanted * min(1.0, (there / wanted).min().item())).long()
    return torch.cat([torch.nonzero(of == k)[:m, 0] for k, m in zip(classes, take, strict=True)])


def judged(x: Tensor, y: Tensor | None = None, test: datasets.Images | None = None) -> dict[str, int | float]:
    """What the shipped judge says of samples (n, 1, 28, 28), of classes y where these were asked for.

    fd: Fréchet distance to the 60,000 training images; fd_floor: that of as many test images, of the classes y as often
    as in y, since evenly asked classes are nearer to the training images' even ones than chance would have it. kid,
    precision, recall, density and coverage: against the first n test images. accuracy: read as the class asked for.
    test: test images; by default the 5,000 that ship, and the floor of more samples is theirs.
    """
    of = datasets.load("fashion-mnist-10k", "test") if test is None else test
    f, real = features(x), test_features() if test is None else features(test.x0)
    n = min(len(f), len(real))
    pr, dc = metrics.precision_recall(f[:n], real[:n]), metrics.density_coverage(f[:n], real[:n])
    said = {
        "n": len(f),
        "fd": metrics.frechet_distance(f, reference()),
        "fd_floor": metrics.frechet_distance(real[:n] if y is None else real[alike(y, of.y)], reference()),
        "kid": metrics.kid(f[:n], real[:n]),
        "precision": pr.precision,
        "recall": pr.recall,
        "density": dc.density,
        "coverage": dc.coverage,
    }
    if y is not None:
        with torch.no_grad():
            read = torch.cat([judge()(part).argmax(1) for part in x.float().split(500)])
        said["accuracy"] = (read == y).double().mean().item()
    return said


def evaluate(net: ConvClassifier, s: Settings) -> dict[str, float]:
    """Accuracy on all 10,000 test images."""
    return {"test_accuracy": accuracy(net.cpu(), datasets.load("fashion-mnist", "test"))}


def moments(net: ConvClassifier) -> dict[str, Tensor]:
    """What `reference` reads, by name."""
    f = torch.cat([features(x, net) for x, _ in progress(batches(datasets.load("fashion-mnist")), total=120)])
    return {f"reference.{k}": t for k, t in metrics.Moments.of(f).tensors().items()}


def main() -> None:
    """Trains the judge at the chosen scale and writes it, with the moments of its features, where it ships."""
    train_and_ship(NAME, "fashion_classifier", SCALES[scale()], train, lambda net: net, evaluate, moments)


if __name__ == "__main__":
    main()
