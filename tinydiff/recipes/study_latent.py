"""What a first stage keeps, and what it does for diffusion: a study over seeds for notebook 16.

    python -m tinydiff.recipes.study_latent                     # about three hours of one core; resumes
    python -m tinydiff.recipes.study_latent --parts factor      # one part only

On captioned shapes of 32 pixels, but for `sharpness`, on Fashion-MNIST, and `textures`, of 64 pixels. Each part is a
list of runs:

    stages      first stages with a KL that halve once, twice and three times, and one with a codebook: what comes back
    sharpness   the same first stage with and without the discriminator, and with neither it nor features
    textures    the shipped first stages of 64 pixels: one learned from the squared error too, the other did not
    factor      text-to-image diffusion on the latents of f = 1, 2, 4, 8, each with the same arithmetic for training
    text        the shipped "shapes32-latent": guidance, and captions that training has never shown
    fashion     the shipped "fashion-latent": guidance
    scaling     f = 4 with latents of standard deviation 5 and 0.2 (that of `factor` has 1), and as they come

A row holds for each seed what is measured; `shapes_classifier.judged` says of what. The first stages of `factor` are
those of `stages`, trained once; the seeds are the diffusion models'. Results in data/results/16_latent.json, written
after every run; first stages and networks are kept in runs/study_latent.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tinydiff as td
from tinydiff import metrics
from tinydiff.checkpoints import load_network, read_checkpoint, save_network, shipped
from tinydiff.datasets.scenes import TEXTURES
from tinydiff.guidance import bind
from tinydiff.models import Codec, Identity, calibrate
from tinydiff.models.cost import macs, parameters
from tinydiff.recipes import fashion_autoencoder, shapes_autoencoder, shapes_latent, study_cfg
from tinydiff.recipes import shapes_classifier as judge
from tinydiff.results import FOLDER, load_results, provenance, save_results
from tinydiff.samplers import dpmpp_2m, sample

NAME = "16_latent"
RUNS = Path("runs/study_latent")
SEEDS = (0, 1, 2)
PARTS = ("stages", "sharpness", "textures", "text", "fashion", "factor", "scaling")
MULTS = {2: (1, 2), 4: (1, 2, 2), 8: (1, 2, 2, 2)}  # of first stages; that of 4 is the shipped one's
STEPS, BATCH = 1000, 32  # of diffusion at f = 4; others as many as cost the same
IMAGES, TEXT_IMAGES = 500, 300  # of a seed
SAMPLING = 20
RAW = 0.0  # stands for the standard deviation that latents have unscaled and unshifted

# ---- first stages --------------------------------------------------------------------------------


def stage_settings(f: int, kind: str = "kl") -> shapes_autoencoder.Settings:
    return replace(shapes_autoencoder.SCALES["full"][32], mults=MULTS[f], kind=kind)


@cache
def stage(f: int, kind: str = "kl") -> Codec:
    """A first stage, trained if it is not there yet."""
    if f == 1:
        return calibrate(Identity(3), pictures()["x0"][:2000].float() / 127.5 - 1)
    if (f, kind) == (4, "kl"):
        return shapes_autoencoder.pretrained(32)
    path = RUNS / f"{kind}-f{f}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_network(path, shapes_autoencoder.train(stage_settings(f, kind)).autoencoder, {})
    return Codec(load_network(path))


def stages() -> Iterator[tuple[list, Any]]:
    """Keys of rows, and how each is made."""
    for kind, f in (("kl", 2), ("kl", 4), ("kl", 8), ("vq", 4)):
        yield ["stages", kind, f], lambda kind=kind, f=f: stage_row(kind, f)


def stage_row(kind: str, f: int) -> dict[str, Any]:
    codec = stage(f, kind)
    _, c, side, _ = codec.shape(1, 32)
    size = dict(parameters=parameters(codec.autoencoder), numbers=c * side * side)
    return size | {k: [v] for k, v in shapes_autoencoder.evaluate(codec, stage_settings(f, kind)).items()}


# ---- with and without a discriminator ------------------------------------------------------------

LOSSES = {  # what is added to the pixels' distance
    "discriminator": {},
    "features": dict(discriminator=False),
    "pixels": dict(features=False, discriminator=False),
}


def sharpness() -> Iterator[tuple[list, Any]]:
    for name, given in LOSSES.items():
        yield ["sharpness", name, 4], lambda given=given: sharpness_row(given)


def sharpness_row(given: dict[str, bool]) -> dict[str, Any]:
    said = []
    for seed in SEEDS:
        settings = dict(data="fashion-mnist-10k", steps=600, seed=seed, samples=2000)
        s = replace(fashion_autoencoder.Settings(**settings), **given)
        said.append(fashion_autoencoder.evaluate(fashion_autoencoder.train(s), s))
    return {k: [one[k] for one in said] for k in said[0]}


# ---- textures ------------------------------------------------------------------------------------


def textures() -> Iterator[tuple[list, Any]]:
    for name, file in (("squared", "shapes64-autoencoder"), ("absolute", "shapes64-absolute")):
        yield ["textures", name, 4], lambda file=file: textures_row(shipped(file))


def textures_row(path: Path) -> dict[str, Any]:
    """As of a stage, and how often the oracle reads which texture; made: what the file says of its training."""
    s, made, codec = shapes_autoencoder.SCALES["full"][64], read_checkpoint(path)[2], Codec(load_network(path))
    of = judge.asked(s.data, "test-iid", 200)
    known = read_textures(codec.decode(codec.encode(of["x0"])).clamp(-1, 1), of["attributes"])
    found = {k: [v] for k, v in shapes_autoencoder.evaluate(codec, replace(s, device="cpu")).items()}
    return {"made": {k: made[k] for k in ("settings", "hardware", "seconds")}, "read": known} | found


def read_textures(x: Tensor, attributes: Tensor) -> list[list[int]]:
    """How often the oracle reads each texture (columns) where each was asked for (rows), in scenes.TEXTURES' order."""
    asked, read = attributes[..., 2], metrics.read_shapes(x).attributes[..., 2]
    kinds = range(1, len(TEXTURES) + 1)
    return [[int(((asked == a) & (read == b)).sum()) for b in kinds] for a in kinds]


# ---- diffusion -----------------------------------------------------------------------------------


def settings(seed: int = 0) -> shapes_latent.Settings:
    given = dict(pictures=30_000, width=32, batch_size=BATCH, warmup=100, samples=IMAGES, sampling_steps=SAMPLING)
    return shapes_latent.Settings(**given, steps=STEPS, seed=seed, device="cpu", threads=1)


@cache
def pictures() -> dict[str, Tensor]:
    return shapes_latent.pictures(settings())


@cache
def latents(f: int) -> dict[str, Tensor]:
    return shapes_autoencoder.encoded(stage(f), pictures())


def cost(d: td.NetDenoiser, s: shapes_latent.Settings) -> int:
    """Multiply-accumulates of one picture's forward pass."""
    x = torch.zeros(d.codec.shape(1, s.size))
    return macs(d.net, x, torch.zeros(1), tokens=torch.ones(1, 20, dtype=torch.long))


def steps_for(f: int) -> int:
    """As many steps as cost what STEPS cost at f = 4: the first stage's training and encoding are not counted."""
    s = settings()
    whole = STEPS * cost(shapes_latent.denoiser(s, stage(4)), s)
    return round(whole / cost(shapes_latent.denoiser(s, stage(f)), s))


def diffusion_row(f: int, std: float) -> dict[str, Any]:
    """std: of the latents that diffusion is trained on, or RAW."""
    said, first, n = [], settings(), steps_for(f)
    codec, data = rescaled(f, std)
    for seed in SEEDS:
        s = replace(settings(seed), steps=n)
        d, start = shapes_latent.denoiser(s, codec), time.process_time()
        for step in shapes_latent.train(s, d, data):  # noqa: B007
            pass
        trained = time.process_time()
        x = plain(step.denoiser, s, seed)
        sampled = time.process_time()
        found = judge.judged(x, judge.asked(s.data, "test-iid", IMAGES), s.data, 100)
        found |= {"loss": step.loss, "training_seconds": trained - start}
        said.append(found | {"seconds_a_picture": (sampled - trained) / IMAGES})
    size = dict(steps=n, batch=BATCH, parameters=parameters(d.net), macs=cost(d, first))
    return size | dict(std=data["x0"].std().item()) | {k: [one[k] for one in said] for k in said[0]}


def rescaled(f: int, std: float) -> tuple[Codec, dict[str, Tensor]]:
    """The first stage whose latents have this standard deviation, and the latents."""
    a, data = copy.deepcopy(stage(f).autoencoder), latents(f)
    x0 = data["x0"] * std if std != RAW else data["x0"] / a.scale + a.shift
    if std != RAW:
        a.scale.mul_(std)
    else:
        a.scale.fill_(1.0)
        a.shift.fill_(0.0)
    return Codec(a), data | {"x0": x0}


def plain(d: td.NetDenoiser, s: shapes_latent.Settings, seed: int) -> Tensor:
    """IMAGES pictures for the captions of "test-iid", by plain conditional sampling."""
    tokens, parts = judge.asked(s.data, "test-iid", IMAGES)["tokens"], []
    for i, part in enumerate(tokens.split(250)):
        options = dict(n=SAMPLING, sampler=dpmpp_2m, seed=1000 * seed + i, decode=d.codec)
        parts.append(sample(bind(d, tokens=part), d.codec.shape(len(part), s.size), **options).clamp(-1, 1))
    return torch.cat(parts)


def factor() -> Iterator[tuple[list, Any]]:
    for f in (4, 1, 8, 2):
        yield ["factor", "kl" if f > 1 else "pixels", f], lambda f=f: diffusion_row(f, 1.0)


def scaling() -> Iterator[tuple[list, Any]]:
    for std in (5.0, 0.2, RAW):
        yield ["scaling", f"{std:g}" if std != RAW else "raw", 4], lambda std=std: diffusion_row(4, std)


# ---- what ships ----------------------------------------------------------------------------------

TEXT_SCALES, HELD_OUT = (1.0, 1.5, 2.0, 3.0, 5.0), ("test-pair", "test-rel", "test-length")


def text() -> Iterator[tuple[list, Any]]:
    for w in TEXT_SCALES:
        yield ["text", "test-iid", w], lambda w=w: text_row("test-iid", w)
    for split in HELD_OUT:
        yield ["text", split, 2.0], lambda split=split: text_row(split, 2.0)


def text_row(split: str, w: float) -> dict[str, Any]:
    d, said = td.load_pretrained("shapes32-latent"), []
    for seed in SEEDS:
        s = replace(shapes_latent.SCALES["full"], samples=TEXT_IMAGES, guidance=w, sampling_steps=SAMPLING)
        of = judge.asked(s.data, split, TEXT_IMAGES, seed)
        said.append(judge.judged(shapes_latent.generate(d, TEXT_IMAGES, s, seed, tokens=of["tokens"]), of, s.data, 100))
    return {k: [one[k] for one in said] for k in said[0]}


def fashion() -> Iterator[tuple[list, Any]]:
    for w in (1.0, 1.5, 2.0, 3.0):
        yield ["fashion", "cfg", w], lambda w=w: fashion_row(w)


def fashion_row(w: float) -> dict[str, Any]:
    """500 images of even classes for each seed, judged as notebook 13's study judges its pixel model."""
    d, y, said = td.load_pretrained("fashion-latent"), study_cfg.labels(), []
    for seed in SEEDS:
        start = time.process_time()
        options = dict(n=study_cfg.STEPS, sampler=dpmpp_2m, seed=1000 * seed, decode=d.codec)
        x = sample(study_cfg.guided(d, w, y), d.codec.shape(len(y), 28), **options).clamp(-1, 1)
        seconds = (time.process_time() - start) / len(y)
        said.append(study_cfg.judged(x) | {"seconds_a_picture": seconds})
    return {k: [one[k] for one in said] for k in said[0]}


# ---- the study -----------------------------------------------------------------------------------


def row_of(results: dict[str, Any], part: str, name: str, x: float | int) -> dict[str, Any]:
    """The row of a run; x is its f, or its scale of guidance. Raises ValueError unless there is exactly one."""
    found = [r for r in results["rows"] if r["key"] == [part, name, x]]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of part {part!r}, name {name!r}, {x}; one was asked for")
    return found[0]


def main(parts: tuple[str, ...] = PARTS, name: str = NAME) -> None:
    """Runs what is missing of these parts: stages, sharpness, textures, text, fashion, factor, scaling."""
    torch.set_num_threads(1)
    made = provenance("python -m tinydiff.recipes.study_latent") | {"seeds": SEEDS, "rows": []}
    path = FOLDER / f"{name}.json"
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts must be among {', '.join(PARTS)}; got {part!r}")
        for key, make in globals()[part]():
            results = load_results(name) if path.is_file() else made  # another process may have written
            if any(row["key"] == key for row in results["rows"]):
                continue
            start = time.process_time()
            row = dict(key=key) | make()
            row |= dict(seconds=round(time.process_time() - start, 1))
            results = load_results(name) if path.is_file() else made
            rows = results["rows"] + [row]
            save_results(name, results | {"seconds": round(sum(r["seconds"] for r in rows), 1), "rows": rows})
            print(key, {k: v for k, v in row.items() if k in ("psnr", "fd", "exact", "sharpness")}, flush=True)


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
