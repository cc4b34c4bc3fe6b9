"""First stages of latent diffusion for captioned shapes: "shapes32-autoencoder" and "shapes64-autoencoder".

    TINYDIFF_SCALE=full python -m tinydiff.recipes.shapes_autoencoder 32    # 32 x 32 to 4 x 8 x 8
    TINYDIFF_SCALE=full python -m tinydiff.recipes.shapes_autoencoder 64    # 64 x 64, with textures, to 4 x 8 x 8

As `fashion_autoencoder`, with the features of the classifier of scenes.
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinydiff import autoencoding, datasets
from tinydiff.checkpoints import DATA, load_network, save_network, shipped
from tinydiff.models import Codec, VQAutoencoder
from tinydiff.models.autoencoder import codebook_use
from tinydiff.progress import progress
from tinydiff.recipes import fashion_autoencoder
from tinydiff.recipes import shapes_classifier as judge
from tinydiff.recipes.base import GPU


@dataclass(frozen=True)
class Settings(fashion_autoencoder.Settings):
    data: str = "shapes32-2"
    size: int = 32
    pictures: int = 2000


OF_SIZE: dict[int, dict[str, Any]] = {32: {}, 64: dict(data="shapes64-2t", size=64, width=8, mults=(1, 2, 4, 4))}
FULL: dict[int, dict[str, Any]] = {  # 64 pixels are four times the work, so there are fewer of them on a CPU
    32: dict(steps=3000, batch_size=32),
    64: dict(steps=2000, batch_size=16),
}
if GPU:
    FULL = {size: dict(steps=20_000, batch_size=256, width=32) for size in OF_SIZE}
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
    """Of pictures and their reconstructions: PSNR in decibels, sharpness of the second over that of the first, and
    what the judge says of the reconstructions (see `shapes_classifier.judged`)."""
    of = judge.asked(s.data, split, s.samples)
    x, z = of["x0"], codec.encode(of["x0"])
    back = codec.decode(z).clamp(-1, 1)
    found: dict[str, int | float] = {"psnr": autoencoding.psnr(x, back).mean().item()}
    found["sharpness"] = (autoencoding.sharpness(back).mean() / autoencoding.sharpness(x).mean()).item()
    found |= judge.judged(back, of, s.data, oracle)
    found |= {"latent_mean": z.mean().item(), "latent_std": z.std().item()}
    if isinstance(codec.autoencoder, VQAutoencoder):
        codes = codec.autoencoder.nearest(z / codec.autoencoder.scale + codec.autoencoder.shift)
        entries = codec.autoencoder.config["codes"]
        found["codes_used"], found["codes_perplexity"] = codebook_use(codes, entries)
    return found


def encoded(codec: Codec, data: dict[str, Tensor], batch: int = 500) -> dict[str, Tensor]:
    """Pictures as latents, and what else is told of them: what diffusion in latent space is trained on."""
    parts = [codec.encode(x.float() / 127.5 - 1) for x in progress(data["x0"].split(batch), desc="encoding")]
    return data | {"x0": torch.cat(parts)}


def pretrained(size: int = 32) -> Codec:
    """The shipped first stage."""
    return Codec(load_network(shipped(f"shapes{size}-autoencoder")))


def main(size: int = 32) -> None:
    """Trains the first stage at the chosen scale and writes it where it ships."""
    import json
    import time

    from tinydiff.notebook import scale
    from tinydiff.recipes.base import describe_hardware
    from tinydiff.results import provenance

    if size not in OF_SIZE:
        raise ValueError(f"size must be one of {', '.join(map(str, OF_SIZE))}; got {size}")
    s, start = SCALES[scale()][size], time.perf_counter()
    torch.set_num_threads(s.threads)
    codec = train(s)
    made = provenance(f"TINYDIFF_SCALE={scale()} python -m tinydiff.recipes.shapes_autoencoder {size}")
    made |= {"settings": dataclasses.asdict(s), "hardware": describe_hardware(s.device, s.threads)}
    made |= {"seconds": round(time.perf_counter() - start), "metrics": evaluate(codec, s)}
    save_network(DATA / f"shapes{size}-autoencoder.safetensors", codec.autoencoder.cpu(), made)
    print(json.dumps(made["metrics"], indent=2))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
