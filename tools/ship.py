"""Ship a checkpoint: `python tools/ship.py NAME RUN RECIPE`, as in `fashion-unet runs/x.safetensors fashion_unet`.

Takes the averaged weights of a run, rounds them to float16, evaluates what comes back from the file (the weights that
users get), and writes data/checkpoints/NAME.safetensors with its recipe and metrics, docs/checkpoints/NAME.png with
samples, and docs/checkpoints.md, the page that lists all. `python tools/ship.py` alone writes the page again.
"""

import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tinydiff.checkpoints import DATA, load_checkpoint, read_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "checkpoints.md"
LARGEST = 5_000_000  # bytes of one, 60 MB in all


def ship(name: str, run: Path, recipe_name: str) -> None:
    from tinydiff.logs import read_log
    from tinydiff.recipes import RECIPES
    from tinydiff.recipes.base import command, restored

    recipe = RECIPES[recipe_name]
    _, _, made = read_checkpoint(run)
    full = recipe.SCALES["full"]
    settings = restored(type(full), made["recipe"]["settings"])
    judging = {k: getattr(full, k) for k in ("samples", "sampling_steps") if hasattr(full, k)}  # how it is judged now
    settings = replace(settings, **judging)
    here = replace(settings, device=full.device, threads=full.threads)
    torch.set_num_threads(here.threads)
    d = load_checkpoint(run)
    d.net.half()
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "half.safetensors", d)
        d = load_checkpoint(Path(folder) / "half.safetensors")
    d.net.to(here.device)
    metrics = recipe.evaluate(d, here)
    card = made["recipe"] | {"steps": made["step"], "metrics": metrics}
    card |= {"log": [line for line in read_log(run.with_suffix(".jsonl")) if "fd" in line]}
    card |= {"command": command(recipe_name, "full", settings, full), "settings": asdict(settings)}
    picture = ROOT / "docs" / "checkpoints" / f"{name}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    recipe.picture(recipe.generate(d, 100, here), picture)
    d.net.cpu().half()
    save_checkpoint(DATA / f"{name}.safetensors", d, card)
    size = (DATA / f"{name}.safetensors").stat().st_size
    if size > LARGEST:
        raise ValueError(f"{name} has {size / 1e6:.1f} MB; at most {LARGEST / 1e6:.0f} are shipped")
    print(json.dumps(metrics, indent=2))


def page() -> str:
    """The list of what ships, made of what the files say."""
    lines = [
        "# Shipped weights",
        "",
        "`td.load_pretrained(name)` gives the denoiser; the file's metadata hold all that stands here, and more"
        " (`td.checkpoints.read_checkpoint`). Written by `python tools/ship.py`.",
        "",
    ]
    for path in sorted(DATA.glob("*.safetensors")):
        tensors, description, made = read_checkpoint(path)
        lines += [f"## {path.stem}", ""]
        if (ROOT / "docs" / "checkpoints" / f"{path.stem}.png").is_file():
            lines += [f"![samples](checkpoints/{path.stem}.png)", ""]
        numbers = sum(t.numel() for k, t in tensors.items() if k.startswith("net."))
        lines += ["| what | |", "| --- | --- |"]
        lines += [f"| network | {description['net']['class']}, {numbers / 1e6:.2f} M numbers |"]
        lines += [f"| made by | `{made['command']}` |", f"| hardware | {made['hardware']} |"]
        settings = made["settings"]
        lines += [f"| seed | {settings['seed']} |"]
        if "steps" in made:
            lines += [f"| steps | {made['steps']} of {settings['steps']}, batches of {settings['batch_size']} |"]
        lines += [f"| {name.replace('_', ' ')} | {said(value)} |" for name, value in made["metrics"].items()]
        lines += [""]
        if log := made.get("log"):
            lines += ["As it trained, before the weights were rounded:", "", "| step | seconds | n | fd | fd floor |"]
            lines += ["| --- | --- | --- | --- | --- |"]
            keys = ("step", "seconds", "n", "fd", "fd_floor")
            lines += ["| " + " | ".join(said(line[k]) for k in keys) + " |" for line in log]
            lines += [""]
    return "\n".join(lines)


def said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    if len(sys.argv) == 4:
        ship(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    elif len(sys.argv) != 1:
        sys.exit(__doc__)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
