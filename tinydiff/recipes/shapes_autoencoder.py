"""First stages of latent diffusion for captioned shapes: "shapes32-autoencoder" and "shapes64-autoencoder".

    TINYDIFF_SCALE=full python -m tinydiff.recipes.shapes_autoencoder 32    # 32 x 32 to 4 x 8 x 8
    TINYDIFF_SCALE=full python -m tinydiff.recipes.shapes_autoencoder 64    # 64 x 64, with textures, to 4 x 16 x 16
    TINYDIFF_SCALE=full python -m tinydiff.recipes.shapes_autoencoder 64 absolute    # "shapes64-absolute"

As `fashion_autoencoder`, with the features of the classifier of scenes. That was trained at 32 pixels and judges no
textures, so at 64 pixels, where there are some, the first stage learns from pixels alone: from their squared error too,
without which the dots of "a dotted square" were not learned (see `autoencoding.fit_autoencoder`). "shapes64-absolute",
from more than twice the pictures, is the one without; notebook 16 shows what it lacks.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets
from tinydiff.checkpoints import load_network, shipped
from tinydiff.models import Codec
from tinydiff.notebook import scale
from tinydiff.progress import progress
from tinydiff.recipes import fashion_autoencoder
from tinydiff.recipes import shapes_classifier as judge
from tinydiff.recipes.base import GPU, train_and_ship


@dataclass(frozen=True)
class Settings(fashion_autoencoder.Settings):
    data: str = "shapes32-2"
    size: int = 32
    pictures: int = 2000


OF_SIZE: dict[int, dict[str, Any]] = {
    32: {},
    64: dict(data="shapes64-2t", size=64, squared=10.0, features=False, discriminator=False),
}
FULL: dict[int, dict[str, Any]] = {
    32: dict(steps=20_000, batch_size=256, width=32) if GPU else dict(steps=3000, batch_size=32),
    64: dict(steps=6000, batch_size=16),  # four times the pixels
}
ABSOLUTE: dict[str, Any] = dict(squared=0.0, steps=3500, batch_size=64)
SCALES = {
    "laptop": {size: Settings(**given) for size, given in OF_SIZE.items()},
    "full": {
        size: Settings(**given | dict(pictures=20_000, samples=2000) | FULL[size]) for size, given in OF_SIZE.items()
    },
}


def pictures(s: Settings) -> datasets.Images:
    """Of the training split: no first stage has seen what is held out."""
    return datasets.Images(datasets.shapes(s.data, "train", s.pictures, s.size).tensors(dtype=torch.uint8)["x0"])


def train(s: Settings, **options: Any) -> Codec:
    """The trained first stage. options: fit_autoencoder's."""
    return fashion_autoencoder.train(s, pictures(s), judge.judge(), **options)


@torch.no_grad()
def evaluate(codec: Codec, s: Settings, split: str = "test-iid", oracle: int = 200) -> dict[str, int | float]:
    """Of pictures and their reconstructions what `fashion_autoencoder.compared` says, and of the reconstructions what
    the judge says (see `shapes_classifier.judged`)."""
    of = judge.asked(s.data, split, s.samples)
    z = codec.encode(of["x0"])
    back = codec.decode(z).clamp(-1, 1).cpu()
    return fashion_autoencoder.compared(codec, of["x0"], back, z) | judge.judged(back, of, s.data, oracle)


def encoded(codec: Codec, data: dict[str, Tensor], batch: int = 500) -> dict[str, Tensor]:
    """Pictures as latents, and what else is told of them: what diffusion in latent space is trained on."""
    x0 = torch.cat([codec.encode(x.float() / 127.5 - 1) for x in progress(data["x0"].split(batch), desc="encoding")])
    return {name: part.to(x0.device) for name, part in data.items()} | {"x0": x0}


def pretrained(size: int = 32) -> Codec:
    """The shipped first stage."""
    return Codec(load_network(shipped(f"shapes{size}-autoencoder")))


def main(size: int | str = 32, kind: str = "autoencoder") -> None:
    """Trains the first stage at the chosen scale and writes it where it ships. kind: or absolute, of 64 pixels."""
    if int(size) not in OF_SIZE:
        raise ValueError(f"size must be one of {', '.join(map(str, OF_SIZE))}; got {size}")
    if kind not in ("autoencoder", "absolute"):
        raise ValueError(f"kind must be autoencoder or absolute; got {kind!r}")
    s, module = SCALES[scale()][int(size)], f"shapes_autoencoder {size}"
    if kind == "absolute":
        s, module = replace(s, **ABSOLUTE), f"{module} absolute"
    train_and_ship(f"shapes{size}-{kind}", module, s, train, lambda codec: codec.autoencoder, evaluate)


if __name__ == "__main__":
    main(*sys.argv[1:])
