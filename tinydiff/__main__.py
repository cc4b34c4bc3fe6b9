"""The command line.

    python -m tinydiff doctor                                     is all in place?
    python -m tinydiff train NAME [--scale full] [--steps ...]    train a recipe, save and evaluate it
    python -m tinydiff sample NAME CHECKPOINT --picture x.png     samples of a trained recipe
    python -m tinydiff evaluate NAME CHECKPOINT                   its metrics

Every setting of a recipe is an option; `python -m tinydiff train NAME --help` lists them.
"""

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

COMMANDS = ("doctor", "train", "sample", "evaluate")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        from tinydiff.doctor import doctor

        return doctor()

    from tinydiff.notebook import SCALES
    from tinydiff.recipes import RECIPES

    parser = argparse.ArgumentParser("tinydiff", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("name", choices=sorted(RECIPES), help="the recipe")
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if argv else 2
    first = parser.parse_args(argv[:2])
    rest = argparse.ArgumentParser(add_help=False)
    rest.add_argument("--scale", choices=SCALES)
    scale, others = rest.parse_known_args(argv[2:])
    if scale.scale:
        os.environ["TINYDIFF_SCALE"] = scale.scale
    try:
        return run(first.command, first.name, RECIPES[first.name], others)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"tinydiff: {error}", file=sys.stderr)
        return 1


def run(command: str, name: str, recipe: Any, argv: list[str]) -> int:
    """One command on one recipe; argv holds its own options and the recipe's settings."""
    import torch
    import tyro

    from tinydiff.checkpoints import load_checkpoint
    from tinydiff.hardware import Hardware, many
    from tinydiff.notebook import scale
    from tinydiff.recipes.base import command as command_line
    from tinydiff.recipes.base import describe_hardware, hardware

    default = recipe.SCALES[scale()]
    Flat = tyro.conf.OmitArgPrefixes[type(default)]  # --steps, not --s.steps
    Checkpoint = tyro.conf.Positional[Path]

    def train(
        s: Flat = default,
        out: Path = Path(f"runs/{name}.safetensors"),
        resume: bool = False,
        minutes: float | None = None,
        grids: int = 0,
        judge: int = 0,
        tensorboard: bool = False,
    ) -> None:
        """Train, save the averaged weights with their recipe, and print the metrics.

        Beside the checkpoint OUT.jsonl holds the loss as it falls, a line of JSON each hundredth of the run, and the
        metrics at the end.

        Args:
            s: settings.
            out: the checkpoint; written whole twenty times in a run.
            resume: continue from it if it is there.
            minutes: stop after this time; --resume goes on.
            grids: pictures of samples, this many in a run, beside the checkpoint.
            judge: the recipe's metrics of at most 2,000 samples in the log, this many times in a run.
            tensorboard: log to TensorBoard as well (an extra: pip install tensorboard).
        """
        from tinydiff.logs import append, logged

        start = time.perf_counter()
        torch.set_num_threads(s.threads)
        accelerator = many() if "ACCELERATE_MIXED_PRECISION" in os.environ else None  # set by `accelerate launch`
        if accelerator:
            s = dataclasses.replace(s, device=str(accelerator.device))
        on = hardware(s, accelerator)
        made = {
            "command": command_line(name, scale(), s, default),
            "settings": dataclasses.asdict(s),
            "hardware": describe_hardware(s.device, s.threads, on.processes),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        options = dict(minutes=minutes) | (dict(on=on) if on != Hardware() else {})
        steps = recipe.train(s, checkpoint=out, every=max(1, s.steps // 20), resume=resume, recipe=made, **options)
        if on.main:
            few = dataclasses.replace(s, samples=min(2000, s.samples)) if judge else s
            asked = dict(judge=lambda step: recipe.evaluate(step.denoiser, few)) if judge else {}
            asked |= dict(judge_every=max(1, s.steps // max(1, judge)), tensorboard=tensorboard)
            steps = logged(steps, out.with_suffix(".jsonl"), every=max(1, s.steps // 100), **asked)
        number = 0
        for step in steps:
            number = step.number
            if on.main and grids and step.number % max(1, s.steps // grids) == 0:
                recipe.picture(recipe.generate(step.denoiser, 100, s), out.with_name(f"{out.stem}-{number:06d}.png"))
        if accelerator:
            accelerator.wait_for_everyone()
            accelerator.end_training()  # a process that ends with its group open can abort
        if not on.main:
            return
        d = load(out, s)
        seconds = time.perf_counter() - start
        metrics = {"seconds": round(seconds, 1), **recipe.evaluate(d, s)}
        append(out.with_suffix(".jsonl"), {"step": number or s.steps, **metrics})
        print(json.dumps(metrics, indent=2))
        print(f"saved {out}" + (f" at step {number} of {s.steps}: --resume goes on" if 0 < number < s.steps else ""))

    def sample(checkpoint: Checkpoint, s: Flat = default, n: int = 100, picture: Path | None = None) -> None:
        """Draw samples from a checkpoint.

        Args:
            s: settings; the seed is that of the samples.
            n: how many.
            picture: where to write them as a PNG; by default beside the checkpoint.
        """
        picture = picture or checkpoint.with_suffix(".png")
        recipe.picture(recipe.generate(load(checkpoint, s), n, s, s.seed), picture)
        print(f"wrote {picture}")

    def evaluate(checkpoint: Checkpoint, s: Flat = default) -> None:
        """Print a checkpoint's metrics.

        Args:
            s: settings; the seed is that of the samples.
        """
        print(json.dumps(recipe.evaluate(load(checkpoint, s), s, s.seed), indent=2))

    def load(checkpoint: Path, s: Any) -> Any:
        torch.set_num_threads(s.threads)
        d = load_checkpoint(checkpoint)
        has, needs = type(d.net), type(recipe.denoiser(s).net)
        if has is not needs:
            raise ValueError(f"{checkpoint} is not of {name}: its network is {has.__name__}, not {needs.__name__}")
        d.net.to(s.device)
        return d

    chosen = {"train": train, "sample": sample, "evaluate": evaluate}[command]
    tyro.cli(chosen, args=argv, prog=f"python -m tinydiff {command} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
