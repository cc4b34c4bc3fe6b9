"""Measure the library: `python tools/bench.py [--only swiss|digits|import|notebook ...]`, or `make bench`.

Results go to data/results/benchmark.json, written whole or not at all, each part with how it was made;
docs/benchmark.png is drawn from that file. Clocks run while training runs, and stand while samples are judged.
Seconds by the clock depend on what else the machine does, CPU seconds little; the load average is noted.
"""

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without an installation, too
os.environ["TINYDIFF_SCALE"] = "laptop"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from tinydiff import datasets, metrics  # noqa: E402
from tinydiff.progress import progress  # noqa: E402
from tinydiff.recipes import digits, swiss_roll  # noqa: E402
from tinydiff.results import cpu_model, save_results  # noqa: E402

RESULTS, FIGURE = ROOT / "data" / "results" / "benchmark.json", ROOT / "docs" / "benchmark.png"
NOTEBOOK, README = ROOT / "notebooks" / "01_ddpm.ipynb", ROOT / "README.md"
SEEDS = (0, 1, 2)
EVERY = 100  # steps between two looks at the samples of the swiss roll
SETS = 6  # of samples at each look, and of fresh draws: of single pairs of fresh draws one in ten is at 1.46
NEAR = 1.25  # times the floor: what counts as there
SHORT = {"steps": 200, "ema": 0.99}  # digits, for those in a hurry


class Clock:
    """Seconds and CPU seconds of this process, stopped while judging."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0
        self.start()

    def start(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, float]:
        self.seconds += time.perf_counter() - self._start[0]
        self.cpu += time.process_time() - self._start[1]
        return {"seconds": round(self.seconds, 3), "cpu_seconds": round(self.cpu, 3)}


# ---- what is measured ----------------------------------------------------------------------------


def swiss() -> dict[str, Any]:
    """The swiss-roll recipe: how far its samples are from the truth, against the seconds of training."""
    s = swiss_roll.Settings()
    torch.set_num_threads(s.threads)
    floor = metrics.floor(metrics.sliced_wasserstein, fresh, s.samples, pairs=99, seed=100_000)
    size = lambda a, b: abs(metrics.energy_distance(a, b))  # noqa: E731
    energy_floor = metrics.floor(size, fresh, s.samples, pairs=9, seed=100_000)
    curves = []
    for seed in SEEDS:
        clock, curve = Clock(), []
        for step in swiss_roll.train(dataclasses.replace(s, seed=seed)):
            if step.number % EVERY == 0 or step.number == s.steps:
                at = clock.stop()
                distance, energy = judged(step.denoiser, s, seed=1000 * seed + step.number)
                curve.append({"step": step.number, **at, "ratio": distance / floor, "energy_distance": energy})
                clock.start()
        curves.append({"seed": seed, "curve": curve, "reached": reached(curve)})
    never = {"seconds": math.inf, "cpu_seconds": math.inf}
    medians = {k: statistics.median((c["reached"] or never)[k] for c in curves) for k in never}
    return {
        "what": f"ratio: sliced-Wasserstein distance of {s.samples} samples to fresh data (median of {SETS**2} "
        "pairs), over its floor: the median for fresh data against fresh data; reached: the first look at most "
        f"{NEAR} times the floor whose next look is so, too",
        "settings": dataclasses.asdict(s),
        "seeds": SEEDS,
        "floor": floor,
        "energy_distance_floor": energy_floor,
        "near": NEAR,
        "target_seconds": 15,
        **{f"median_{k}": value if value < math.inf else None for k, value in medians.items()},
        "runs": curves,
    }


def fresh(n: int, seed: int) -> torch.Tensor:
    """Data that no training run has seen."""
    return datasets.swiss_roll(n, seed=20_000 + seed)


def judged(d: Any, s: swiss_roll.Settings, seed: int) -> tuple[float, float]:
    """Sliced Wasserstein and energy distance of samples to fresh data: medians over pairs."""
    sets = swiss_roll.generate(d, SETS * s.samples, s, seed=seed).split(s.samples)
    truths = [fresh(s.samples, seed=seed + k) for k in range(SETS)]
    return (
        statistics.median(metrics.sliced_wasserstein(x, y) for x in sets for y in truths),
        statistics.median(metrics.energy_distance(x, y) for x, y in zip(sets, truths, strict=True)),
    )


def reached(curve: list[dict]) -> dict | None:
    """The first look within NEAR of the floor that the next look confirms; None if there is none."""
    for look, following in zip(curve, curve[1:], strict=False):
        if look["ratio"] <= NEAR and following["ratio"] <= NEAR:
            return {k: look[k] for k in ("step", "seconds", "cpu_seconds")}
    return None


def digit_samples() -> dict[str, Any]:
    """The digits recipe: how many class-conditional samples are read as asked, after how many seconds."""
    laptop = digits.Settings()
    torch.set_num_threads(laptop.threads)
    kinds = {"laptop": laptop, "short": dataclasses.replace(laptop, **SHORT)}
    runs: dict[str, list] = {kind: [] for kind in kinds}
    for kind, s in kinds.items():
        for seed in SEEDS:
            mine = dataclasses.replace(s, seed=seed)
            clock = Clock()
            for step in digits.train(mine):
                pass
            runs[kind].append({"seed": seed, **clock.stop(), **digits.evaluate(step.denoiser, mine, seed)})
    return {
        "what": f"share of {laptop.samples} class-conditional samples, without guidance, that a support vector machine "
        "fitted to the real digits reads as the class asked for",
        "target_accuracy": 0.97,
        "target_seconds": 60,
        "seeds": SEEDS,
        **{
            kind: {
                "settings": dataclasses.asdict(s),
                **{f"median_{k}": statistics.median(r[k] for r in runs[kind]) for k in ("seconds", "cpu_seconds")},
                "least_accuracy": min(r["accuracy"] for r in runs[kind]),
                "runs": runs[kind],
            }
            for kind, s in kinds.items()
        },
    }


def imports() -> dict[str, Any]:
    """What `import tinydiff` costs once torch is there, each time in a new process."""
    code = """if True:
        import json, time, torch
        seconds, cpu = time.perf_counter(), time.process_time()
        import tinydiff
        print(json.dumps([time.perf_counter() - seconds, time.process_time() - cpu]))"""
    command = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    looks = []
    for _ in progress(range(6), desc="import tinydiff"):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        looks.append(json.loads(done.stdout))
    seconds, cpu = zip(*looks[1:], strict=True)  # the first may compile
    return {
        "what": "import tinydiff after import torch, median of five new processes",
        "target_seconds": 0.25,
        "median_seconds": round(statistics.median(seconds), 4),
        "median_cpu_seconds": round(statistics.median(cpu), 4),
    }


def notebook() -> dict[str, Any] | None:
    """Notebook 01 from a new kernel to its end; None while it is not there."""
    if not NOTEBOOK.exists():
        print(f"no {NOTEBOOK.relative_to(ROOT)}: not measured", file=sys.stderr)
        return None
    import nbformat

    import refresh

    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        nb = nbformat.read(NOTEBOOK, as_version=4)
        cpu = refresh.execute(nb, Path(folder), show=NOTEBOOK.name)
        seconds = time.perf_counter() - start
    return {"what": f"{NOTEBOOK.name} from start to end", "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}


PARTS = {"swiss": swiss, "digits": digit_samples, "import": imports, "notebook": notebook}

# ---- how it was made -----------------------------------------------------------------------------


def measured(part: str) -> dict[str, Any] | None:
    """One part's results with its provenance."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    start = time.perf_counter()
    result = PARTS[part]()
    made = {
        "command": f"python tools/bench.py --only {part}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "load_average_before": load and [round(x, 2) for x in load],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "seconds_in_all": round(time.perf_counter() - start, 1),
    }
    return result and {**result, "made": made}


# ---- what it says --------------------------------------------------------------------------------


def summary(results: dict) -> list[str]:
    """A line for each part, with its target."""
    lines = []
    if part := results.get("swiss"):
        at = (
            f"{part['median_seconds']:.1f} s ({part['median_cpu_seconds']:.1f} CPU)"
            if part["median_seconds"]
            else "never"
        )
        lines.append(f"swiss roll within {part['near']} times the floor: {at}; target {part['target_seconds']} s")
    for kind in ("laptop", "short"):
        if part := results.get("digits", {}).get(kind):
            lines.append(
                f"digits, {part['settings']['steps']} steps: at least {part['least_accuracy']:.1%} read as asked after "
                f"{part['median_seconds']:.0f} s ({part['median_cpu_seconds']:.0f} CPU)"
                + ("; target 97 % in 60 s" if kind == "laptop" else "")
            )
    if part := results.get("import"):
        lines.append(
            f"import tinydiff: {part['median_seconds']:.2f} s ({part['median_cpu_seconds']:.2f} CPU); target 0.25 s"
        )
    if part := results.get("notebook"):
        lines.append(f"notebook 01: {part['seconds']:.0f} s ({part['cpu_seconds']:.0f} CPU)")
    return lines


def table(results: dict) -> str:
    """The README's table, from the file's numbers alone."""
    swiss, digit, light, nb = (results[part] for part in PARTS)
    rows = [
        (
            f"swiss roll: sliced Wasserstein within {swiss['near']} times its floor, median of three seeds",
            f"{swiss['median_seconds']:.1f} s",
            f"{swiss['target_seconds']} s",
        )
    ]
    for kind in ("laptop", "short"):
        part = digit[kind]
        share = [f"{100 * run['accuracy']:.1f}" for run in part["runs"]]
        what = (
            f"digits, {part['settings']['steps']} steps: samples that an SVM reads as the digit asked for, three seeds"
        )
        goal = f"97 % in {digit['target_seconds']} s" if kind == "laptop" else "90 %"
        rows.append((what, f"{', '.join(share)} % after {part['median_seconds']:.0f} s", goal))
    rows.append(("`import tinydiff`, once torch is there", f"{light['median_seconds']:.2f} s", "0.25 s"))
    rows.append(("notebook 01 from start to end", f"{nb['seconds']:.0f} s", "75 s"))
    made = swiss["made"]["hardware"]
    lines = [f"| on {made['cores']} cores of a CPU ({made['cpu']}) | measured | goal |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {a} | {b} | {c} |" for a, b, c in rows])


def with_table(readme: str, results: dict) -> str:
    """The README with its table renewed; as it is while a part has not been measured."""
    if any(part not in results for part in PARTS) or not results["swiss"]["median_seconds"]:
        return readme
    start, end = "<!-- benchmark -->\n", "<!-- /benchmark -->"
    before, rest = readme.split(start)
    return before + start + table(results) + "\n" + end + rest.split(end)[1]


def draw(path: Path, results: dict) -> None:
    """The figure, from the file's numbers alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from tinydiff.notebook import COLORS, setup

    setup()
    part = results["swiss"]
    fig, ax = plt.subplots(figsize=(6.4, 3.8))
    for i, run in enumerate(part["runs"]):
        xs, ys = ([look[k] for look in run["curve"]] for k in ("seconds", "ratio"))
        ax.plot(xs, ys, color=COLORS["model"], lw=1, marker=".", ms=4, label="three seeds" if i == 0 else None)
    ax.axhline(part["near"], color="black", lw=1, ls="--", label=f"{part['near']} times the floor")
    ax.axhline(1, color=COLORS["truth"], lw=1.5, label="fresh data against fresh data")
    ax.set(xlabel="seconds of training", ylabel="sliced Wasserstein, times its floor", yscale="log", xlim=(0, None))
    top = 1.1 * max(look["ratio"] for run in part["runs"] for look in run["curve"])
    ticks = [tick for tick in (1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16) if tick < top]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_ylim(0.9, top)
    ax.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.legend(fontsize=9)
    if part["median_seconds"]:
        ax.axvline(part["median_seconds"], color=COLORS["truth"], lw=1, ls=":")
        when = f"after {part['median_seconds']:.1f} s, median of {len(part['runs'])} seeds"
    else:
        when = "with fewer than half of the seeds"
    ax.set_title(f"Swiss roll: within {part['near']} times the floor {when}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure these, keep the rest")
    only = parser.parse_args(argv).only
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for part in only:
        if (result := measured(part)) is not None:
            results[part] = result
    save_results(RESULTS.stem, {part: results[part] for part in PARTS if part in results}, RESULTS.parent)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(with_table(README.read_text(encoding="utf-8"), results), encoding="utf-8")
    if "swiss" in results:
        draw(FIGURE, results)
    print("\n".join(summary(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
