"""The ledger of the course: every system, on its data, by the same ruler.

    python -m tinydiff.recipes.ledger                    # measures all, three seeds each
    python -m tinydiff.recipes.ledger --only "DDPM, v"   # some systems again; the others stay as they are

A system is trained from nothing for each seed and draws n samples. Its calls are counted, not computed: what the
network (or the exact answer in its place) is asked for a sample, all of the samples at once counting as one. Seconds
are CPU seconds, which load changes least. The distance is the size of the energy distance to a fresh draw of the data;
its floor is what two draws of real data give.

Results with provenance go to data/results/ledger.json, and the table in the README is made of that file. To add a
row, add a System to one of the modules `systems*`, measure it, and show the rows of a notebook there by `show("05")`.
"""

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinydiff.progress import progress
from tinydiff.recipes import systems, systems_few, systems_guidance, systems_images, systems_latent, systems_ode
from tinydiff.recipes.systems import System, distance
from tinydiff.results import load_results, provenance, save_results

MODULES = (systems, systems_ode, systems_images, systems_guidance, systems_latent, systems_few)
SYSTEMS = sorted((system for module in MODULES for system in module.SYSTEMS), key=lambda system: system.notebook)
SEEDS = (0, 1, 2)
README = Path(__file__).resolve().parents[2] / "README.md"
MARKS = ("<!-- ledger -->\n", "<!-- /ledger -->")


class Counted:
    """A function of x that counts its calls; of a denoiser it keeps the schedule."""

    def __init__(self, fn: Callable) -> None:
        self.fn, self.calls = fn, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fn, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.fn(*args, **kwargs)


# ---- measuring -----------------------------------------------------------------------------------


def measure(system: System, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """The row of a system: a run of each seed, from nothing to samples."""
    runs = []
    for seed in seeds:
        fn, training_seconds = _trained(system.train, seed)
        fn, start = Counted(fn), time.process_time()
        x = system.draw(fn, system.data.n, 40_000 + seed)
        sampling_seconds = time.process_time() - start
        if not x.isfinite().all():
            raise FloatingPointError(f"{system.name}: samples of seed {seed} are not finite")
        runs.append(
            dict(
                seed=seed,
                calls=fn.calls,
                distance=distance(x, system.data.reference(seed)),
                training_seconds=round(training_seconds, 2),
                sampling_seconds=round(sampling_seconds, 2),
            )
        )
    return dict(notebook=system.notebook, system=system.name, data=system.data.name, n=system.data.n, runs=runs)


@functools.cache
def _trained(train: Callable[[int], Callable], seed: int) -> tuple[Callable, float]:
    """What the seed gives, and the seconds it took; rows that share a network train it once."""
    start = time.process_time()
    return train(seed), time.process_time() - start


def table(results: dict[str, Any], notebook: str | None = None) -> str:
    """Markdown, from the file's numbers alone: all rows, or those of a notebook. Medians over the seeds."""
    head = [
        "nb",
        "system",
        "data",
        "calls",
        "distance",
        "floor",
        "distance / floor (each seed)",
        "training",
        "sampling",
    ]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | --- | ---: | ---: | ---: | --- | ---: | ---: |"]
    for row in results["rows"]:
        if notebook not in (None, row["notebook"]):
            continue
        floor = results["floors"][row["data"]]
        calls, training, sampling, far = (
            statistics.median(run[key] for run in row["runs"])
            for key in ("calls", "training_seconds", "sampling_seconds", "distance")
        )
        each = ", ".join(_ratio(run["distance"] / floor) for run in row["runs"])
        cells = [row["notebook"], row["system"], row["data"], f"{calls:,.0f}", f"{far:.4f}", f"{floor:.4f}"]
        cells += [
            f"{_ratio(far / floor)} ({each})",
            f"{training:.0f} s" if training >= 0.5 else "none",
            f"{sampling:.1f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ratio(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def show(notebook: str) -> None:
    """The rows of a notebook, as a Markdown table in it. Raises ValueError if it has none."""
    results = load_results("ledger")
    if not any(row["notebook"] == notebook for row in results["rows"]):
        raise ValueError(f"the ledger has no rows of notebook {notebook!r}")
    from IPython.display import Markdown, display

    display(Markdown(table(results, notebook)))


def with_table(readme: str, results: dict[str, Any]) -> str:
    """The README with its ledger renewed."""
    before, rest = readme.split(MARKS[0])
    return before + MARKS[0] + table(results) + MARKS[1] + rest.split(MARKS[1])[1]


def main(only: tuple[str, ...] = ()) -> None:
    """Measures the systems and writes the results and the README's table.

    Args:
        only: names of systems to measure again.
    """
    if unknown := set(only) - {system.name for system in SYSTEMS}:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(system.name for system in SYSTEMS)}")
    torch.set_num_threads(1)
    made, start = provenance("python -m tinydiff.recipes.ledger"), time.process_time()
    old = load_results("ledger") if only else {"rows": [], "seconds": 0}
    if only and (old["hardware"], old["versions"]) != (made["hardware"], made["versions"]):
        raise SystemExit("the ledger was measured on another machine or with other versions: measure all of it")
    kept = {row["system"]: row for row in old["rows"]}
    rows = []
    for system in progress(SYSTEMS, desc="systems"):
        again = not only or system.name in only or system.name not in kept
        rows.append(measure(system) if again else kept[system.name])
    floors = {data.name: data.floor() for data in {system.data.name: system.data for system in SYSTEMS}.values()}
    made |= {"seeds": SEEDS, "seconds": round(old["seconds"] + time.process_time() - start)}
    results = made | {"floors": floors, "rows": rows}
    save_results("ledger", results)
    README.write_text(with_table(README.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
