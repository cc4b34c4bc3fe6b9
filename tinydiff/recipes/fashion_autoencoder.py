"""The first stage of latent diffusion on Fashion-MNIST, 28 x 28 to 4 x 7 x 7: for "fashion-autoencoder".

    TINYDIFF_SCALE=full python -m tinydiff.recipes.fashion_autoencoder

Trains by `autoencoding.fit_autoencoder`, with the features of the shipped classifier and a discriminator that comes
late, measures scale and shift, and writes the weights where they ship.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinydiff import autoencoding, datasets, metrics
from tinydiff.checkpoints import load_network, shipped
from tinydiff.models import Codec, KLAutoencoder, PatchDiscriminator, VQAutoencoder, calibrate
from tinydiff.models.autoencoder import Autoencoder, codebook_use
from tinydiff.notebook import scale
from tinydiff.progress import progress
from tinydiff.recipes import fashion_classifier as judge
from tinydiff.recipes.base import GPU, train_and_ship
from tinydiff.training import warmup_cosine

NAME = "fashion-autoencoder"
KINDS = {"kl": KLAutoencoder, "vq": VQAutoencoder}


@dataclass(frozen=True)
class Settings:
    data: str = "fashion-mnist-10k"  # or fashion-mnist: all 60,000
    kind: str = "kl"  # or vq
    width: int = 16  # channels at 28 pixels
    mults: tuple[int, ...] = (1, 2, 2)  # at 28, 14 and 7 pixels
    latent: int = 4
    steps: int = 200
    batch_size: int = 32
    lr: float = 2e-3
    squared: float = 0.0  # weight of the squared error
    features: bool = True  # the distance of a classifier's features
    discriminator: bool = True
    start: float = 0.6  # share of the steps without a discriminator
    adversarial: float = 0.5
    seed: int = 0
    samples: int = 1000  # test images of an evaluation
    device: str = "cuda" if GPU else "cpu"
    threads: int = 1


SCALES = {
    "laptop": Settings(),
    "full": Settings(
        data="fashion-mnist",
        width=32 if GPU else 16,
        steps=20_000 if GPU else 5000,
        batch_size=256 if GPU else 32,
        samples=5000,
    ),
}


def autoencoder(s: Settings, in_channels: int = 1) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        return KINDS[s.kind](in_channels, s.latent, s.width, s.mults).to(s.device)


def train(
    s: Settings, images: datasets.Images | None = None, classifier: nn.Module | None = None, **options: Any
) -> Codec:
    """The trained first stage, its scale and shift measured on 2,000 training images. options: fit_autoencoder's."""
    if s.kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {s.kind!r}")
    images = (datasets.load(s.data) if images is None else images).to(s.device)
    channels = images.pixels.shape[1]
    a = autoencoder(s, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        d = PatchDiscriminator(channels).to(s.device) if s.discriminator else None
    classifier = judge.judge() if classifier is None else classifier
    features = autoencoding.FeatureDistance(classifier).to(s.device) if s.features else None
    given = dict(steps=s.steps, batch_size=s.batch_size, lr=s.lr, seed=s.seed, features=features, discriminator=d)
    given |= dict(squared=s.squared, start=s.start, adversarial=s.adversarial, lr_schedule=warmup_cosine(100, end=0.05))
    for _ in autoencoding.fit_autoencoder(a, images, **given | options):
        pass
    return calibrate(a.eval(), images.first(min(2000, len(images))).x0)


@torch.no_grad()
def evaluate(codec: Codec, s: Settings) -> dict[str, int | float]:
    """Of test images and their reconstructions: the Fréchet distance of each to the 60,000 training images, accuracy of
    the judge on each, and what `compared` says."""
    test = datasets.load("fashion-mnist-10k", "test").first(s.samples).to(s.device)
    x, z = test.x0, codec.encode(test.x0)
    back = codec.decode(z).clamp(-1, 1)
    found: dict[str, int | float] = {"n": len(x)}
    for name, images in (("", back), ("_floor", x)):
        f = judge.features(images.cpu())
        read = judge.judge().last(F.silu(f)).argmax(1)
        found["fd" + name] = metrics.frechet_distance(f, judge.reference())
        found["accuracy" + name] = (read == test.y.cpu()).double().mean().item()
    return found | compared(codec, x, back, z)


def compared(codec: Codec, x: Tensor, back: Tensor, z: Tensor) -> dict[str, int | float]:
    """Of images, their reconstructions and their latents: PSNR, sharpness of the second over that of the first, mean
    and standard deviation of the latents, and with a codebook which share of it is used, and how evenly."""
    found: dict[str, int | float] = {"psnr": autoencoding.psnr(x, back).mean().item()}
    found["sharpness"] = (autoencoding.sharpness(back).mean() / autoencoding.sharpness(x).mean()).item()
    found |= {"latent_mean": z.mean().item(), "latent_std": z.std().item()}
    if isinstance(codec.autoencoder, VQAutoencoder):
        codes = codec.autoencoder.nearest(z / codec.autoencoder.scale + codec.autoencoder.shift)
        entries = codec.autoencoder.config["codes"]
        found["codes_used"], found["codes_perplexity"] = codebook_use(codes, entries)
    return found


def encoded(codec: Codec, images: datasets.Images) -> dict[str, Tensor]:
    """All images as latents, with their labels: what a diffusion model in latent space is trained on."""
    parts = [codec.encode(images[i : i + 500][0]) for i in progress(range(0, len(images), 500), desc="encoding")]
    return dict(x0=torch.cat(parts), y=images.y)


def pretrained() -> Codec:
    """The shipped first stage."""
    return Codec(load_network(shipped(NAME)))


def main() -> None:
    """Trains the first stage at the chosen scale and writes it where it ships."""
    train_and_ship(NAME, "fashion_autoencoder", SCALES[scale()], train, lambda codec: codec.autoencoder, evaluate)


if __name__ == "__main__":
    main()
