"""What makes a better student of few steps on Fashion-MNIST, more training or another loss: for notebook 24.

    TINYDIFF_SCALE=full python -m tinydiff.recipes.study_fashion_compute train 5    # on a GPU, five at a time
    python -m tinydiff.recipes.study_fashion_compute judge                          # ten minutes of one core

    CD                consistency distillation with the weight 1 of its paper, for as long as "fashion-cd"
    CD large          twice the steps in batches eight times as large; and with the squared distance, and of features
    ECT large         tuned on data alone, as long
    PD large          progressive distillation, as long over its six rounds

All are trained as `fashion_few` does, but for that, each in a process of its own; weights are kept in
runs/study_fashion_compute/. Each is judged on 2,000 images at 1, 2, 4 and 8 calls. And for those by consistency
distillation, the shipped one too: how far their answers are from where the teacher's paths end. Results in
data/results/24_fashion_compute.json.
"""

import functools
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinydiff import datasets
from tinydiff.checkpoints import load_checkpoint, load_pretrained, read_checkpoint, save_checkpoint
from tinydiff.denoisers import NetDenoiser
from tinydiff.guidance import bind
from tinydiff.recipes import fashion_few as few
from tinydiff.recipes.base import card
from tinydiff.results import FOLDER, provenance, save_results
from tinydiff.samplers import dpmpp_2m, final

NAME = "24_fashion_compute"
COMMAND = "python -m tinydiff.recipes.study_fashion_compute"
RUNS = FOLDER.parent.parent / "runs" / "study_fashion_compute"
SEEDS = (0,)  # of sampling: three of them differ by less than a tenth, see study_fashion_few
TIMES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
MEASURES = ("fd", "recall", "accuracy")
LARGE = dict(steps=3000, batch_size=256)
ONE = dict(weight="one")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "CD": ("cd", ONE | dict(steps=1500, batch_size=32)),
    "CD large": ("cd", ONE | LARGE),
    "CD large, squared": ("cd", ONE | LARGE | dict(distance="squared")),
    "CD large, features": ("cd", ONE | LARGE | dict(distance="features")),
    "ECT large": ("ect", LARGE),
    "PD large": ("pd", LARGE | dict(steps=500)),
}


def path(variant: str, calls: int | None = None) -> Path:
    """Of the weights; of progressive distillation, of the student for so many calls."""
    name = variant.lower().replace(",", "").replace(" ", "-")
    return RUNS / (f"{name}.safetensors" if calls is None else f"{name}-{calls}.safetensors")


def train(variant: str) -> None:
    """Trains a variant and keeps its weights."""
    method, changed = VARIANTS[variant]
    s, start = replace(few.settings(method), **changed), time.perf_counter()
    torch.set_num_threads(s.threads)
    students = few.train(method, s)
    made = card("study_fashion_compute train", s, start)
    RUNS.mkdir(parents=True, exist_ok=True)
    for name, d in students.items():
        d.net.cpu().half()
        d.codec.autoencoder.cpu().half()
        save_checkpoint(path(variant, few.calls_of(name)[0] if method == "pd" else None), d, made)


@functools.cache
def paths(n: int = 100, steps: int = 32) -> tuple[Tensor, list[tuple[float, Tensor, Tensor]]]:
    """Classes of n test images, and at each of TIMES: t, their noisy latents, and where the teacher's paths end."""
    teacher, test = load_pretrained(few.TEACHERS["cd"]), datasets.load("fashion-mnist-10k", "test").first(n)
    z, S, g = teacher.codec.encode(test.x0), teacher.schedule, torch.Generator().manual_seed(0)
    found = []
    for t in TIMES:
        c = S(t, like=z)
        x = c.alpha * z + c.sigma * torch.randn(z.shape, generator=g)
        ts = torch.linspace(t, S.t_min, steps + 1, dtype=torch.float64)
        found.append((t, x, final(dpmpp_2m(bind(teacher, y=test.y), x, ts))))
    return test.y, found


@torch.no_grad()
def errors(d: NetDenoiser) -> list[float]:
    """At each of TIMES the root mean square distance of d's answer to the end of the teacher's path."""
    y, known = paths()
    return [(d(x, t, y=y).x0 - end).square().mean().sqrt().item() for t, x, end in known]


def row(variant: str) -> dict[str, Any]:
    """For each seed, each of MEASURES at each number of calls; made: what the file says of its training."""
    method, _ = VARIANTS[variant]
    files = {n: path(variant, n if method == "pd" else None) for n in few.CALLS}
    made, by_seed = read_checkpoint(files[1])[2], []
    s = replace(few.Settings(), samples=made["settings"]["samples"])
    for seed in SEEDS:
        of: dict[str, float] = {}
        for n, file in files.items():
            of |= few.evaluate(load_checkpoint(file), s, few.SAMPLERS[method], (n,), seed)
        by_seed.append({measure: [of[f"{measure}_at_{n}"] for n in files] for measure in MEASURES})
    found = {measure: [one[measure] for one in by_seed] for measure in MEASURES}
    made = {k: made[k] for k in ("settings", "hardware", "seconds")}
    return dict(variant=variant, calls=few.CALLS, made=made) | found


def judge() -> None:
    """Measures all."""
    torch.set_num_threads(1)
    start, made = time.process_time(), provenance(f"{COMMAND} judge") | {"seeds": SEEDS, "rows": []}
    for variant in VARIANTS:
        made["rows"].append(row(variant))
        print(variant, [round(v, 2) for v in made["rows"][-1]["fd"][0]], flush=True)
    distilled = {v: load_checkpoint(path(v)) for v, (method, _) in VARIANTS.items() if method == "cd"}
    distilled |= {name: load_pretrained(name) for name in ("fashion-cd", few.TEACHERS["cd"])}
    made |= {"times": TIMES, "errors": {name: errors(d) for name, d in distilled.items()}}
    save_results(NAME, made | {"seconds": round(time.process_time() - start, 1)})


def main(part: str = "judge", processes: int = 1) -> None:
    """Trains all variants, so many at a time, or judges what was trained. Raises ValueError for another part."""
    if part not in ("train", "judge"):
        raise ValueError(f"part must be train or judge; got {part!r}")
    if part == "judge":
        return judge()
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        pool.map(train, VARIANTS, chunksize=1)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
