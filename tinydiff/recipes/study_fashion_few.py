"""Fréchet distance at 1, 2, 4 and 8 calls of what ships for few steps on Fashion-MNIST: for notebooks 23 and 24.

    python -m tinydiff.recipes.study_fashion_few    # a few minutes of one core; resumes

    DDIM, DPM-Solver++    "fashion-guided": guidance in one pass
    PD                    "fashion-pd-1" to "-8", each at its own number of steps
    CD                    "fashion-cd"
    ECT                   "fashion-ect", tuned on data alone, without guidance

2,000 images for each of three seeds of sampling; each network was trained once. The teacher itself, guided in two
passes, at 25 steps of DPM-Solver++ stands beside. Results in data/results/23_fashion.json.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinydiff.checkpoints import load_pretrained
from tinydiff.denoisers import NetDenoiser
from tinydiff.recipes import fashion_classifier as judge
from tinydiff.recipes import fashion_few as few
from tinydiff.recipes import study_cfg
from tinydiff.recipes.fashion import labels
from tinydiff.results import FOLDER, load_results, provenance, save_results
from tinydiff.samplers import consistency_multistep, ddim, dpmpp_2m

NAME = "23_fashion"
SEEDS = (0, 1, 2)
SAMPLES = 2000
MEASURES = ("fd", "recall", "accuracy")
METHODS: dict[str, tuple[str, Callable]] = {  # shipped name, for so many calls, and sampler
    "DDIM": ("fashion-guided", ddim),
    "DPM-Solver++": ("fashion-guided", dpmpp_2m),
    "PD": ("fashion-pd-{}", ddim),
    "CD": ("fashion-cd", consistency_multistep),
    "ECT": ("fashion-ect", consistency_multistep),
}


def teacher(n: int, steps: int, seed: int) -> Tensor:
    """n images of the teacher, guided by two passes a step."""
    d, w = load_pretrained(few.TEACHER), few.Settings().guidance
    return few.generate(d, n, steps, dpmpp_2m, seed, ask=lambda d, y: study_cfg.guided(d, w, y))


def judged(images: Tensor) -> dict[str, float]:
    of = judge.judged(images, labels(len(images)))
    return {name: float(of[name]) for name in (*MEASURES, "fd_floor")}


def row(method: str, load: Callable[[str], NetDenoiser] = load_pretrained) -> dict[str, Any]:
    """For each seed, each of MEASURES at each number of calls."""
    name, sampler = METHODS[method]
    start, by_seed = time.process_time(), []
    for seed in SEEDS:
        of = [judged(few.generate(load(name.format(n)), SAMPLES, n, sampler, seed)) for n in few.CALLS]
        by_seed.append({measure: [one[measure] for one in of] for measure in MEASURES})
    found = {measure: [one[measure] for one in by_seed] for measure in MEASURES}
    return dict(method=method, calls=few.CALLS, seconds=round(time.process_time() - start, 1)) | found


def main() -> None:
    """Measures what is missing."""
    torch.set_num_threads(1)
    path = FOLDER / f"{NAME}.json"
    if not path.is_file():
        start = time.process_time()
        of = [judged(teacher(SAMPLES, 25, seed)) for seed in SEEDS]
        made = provenance("python -m tinydiff.recipes.study_fashion_few") | {"seeds": SEEDS, "samples": SAMPLES}
        made |= {"guidance": few.Settings().guidance, "floor": of[0]["fd_floor"], "rows": []}
        made |= {"teacher": {measure: [one[measure] for one in of] for measure in MEASURES}}
        save_results(NAME, made | {"seconds": round(time.process_time() - start, 1)})
    for method in METHODS:
        results = load_results(NAME)
        if any(r["method"] == method for r in results["rows"]):
            continue
        found = row(method)
        seconds = round(results["seconds"] + found["seconds"], 1)
        save_results(NAME, results | {"seconds": seconds, "rows": results["rows"] + [found]})
        print(method, [round(v, 2) for v in found["fd"][0]], flush=True)


if __name__ == "__main__":
    main()
