"""A small DiT on the 8x8 digits: how it hears its condition, what its size buys. A study over seeds for notebook 14.

    python -m tinydiff.recipes.study_dit                 # about half an hour of one core; resumes where it stopped
    python -m tinydiff.recipes.study_dit --parts long    # one part only
    python -m tinydiff.recipes.study_dit --steps 4000 --name 14_dit_long

Class-conditional, target v, cosine path, as in the recipe `digits`; every network has the same batches and the same
noise in the same order. Each part is a list of runs:

    conditioning   the four kinds of block and two other starts of the gates
    others         what is compared with a DiT: no positions, an MLP on pixels, patches put back in the wrong order, a
                   U-Net of about as many multiply-accumulates
    size           seven networks, from 0.24 to 7.6 million multiply-accumulates
    long           three times as many steps: adaLN-Zero, gates that start at random, adaLN-Zero with larger patches;
                   only if asked for; of these the stored file has one run, adaLN-Zero with seed 0

A row holds what the network costs, its loss on held-out digits with fixed noise on the way and at the end, that on as
many training digits, and how good its samples are. Results in data/results/14_dit.json, written after every run.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff import datasets, metrics, targets
from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.guidance import bind, static, thresholded
from tinydiff.losses import fixed_noise_loss
from tinydiff.models import MLP, DiT, UNet
from tinydiff.models.cost import macs, parameters
from tinydiff.models.dit import patchify, unpatchify
from tinydiff.progress import progress
from tinydiff.results import FOLDER, load_results, provenance, save_results
from tinydiff.samplers import dpmpp_2m, sample
from tinydiff.schedules import Cosine
from tinydiff.training import Step, fit, warmup_cosine

SEEDS = (0, 1, 2)
SHAPES = ((32, 4), (64, 4), (32, 2), (96, 4), (64, 2), (32, 1), (96, 2))  # width, patch; the cheapest first
KINDS = ("in-context", "cross-attention", "adaln", "adaln-zero")
STARTS = ("gates at one", "gates at random")  # two other starts of adaLN-Zero's gates
OTHERS = ("no positions", "MLP", "rows for columns", "U-Net")
PARTS = ("conditioning", "others", "size")  # and "long", if asked for

# the paper's FID on ImageNet at 256 pixels after 400,000 steps (Peebles and Xie 2023, table 4): XL/2 by kind of block,
# and adaLN-Zero by size and patch
PAPER_KINDS = {"in-context": 35.24, "cross-attention": 26.14, "adaln": 25.21, "adaln-zero": 19.47}
PAPER_SIZES = dict(S_8=153.60, S_4=100.41, S_2=68.40, B_8=122.74, B_4=68.38, B_2=43.47)
PAPER_SIZES |= dict(L_8=118.87, L_4=45.64, L_2=23.33, XL_8=106.41, XL_4=43.01, XL_2=19.47)


@dataclass(frozen=True)
class Settings:
    width: int = 64
    patch: int = 2
    depth: int = 4
    heads: int = 4
    steps: int = 400
    batch_size: int = 64
    lr: float = 4e-3
    warmup: int = 50
    ema: float = 0.995
    draws: int = 16  # noise levels of the validation loss
    every: int = 200  # steps between two losses on the way
    samples: int = 360  # as many as there are held-out digits
    sampling_steps: int = 20  # of DPM-Solver++(2M)


# ---- networks ------------------------------------------------------------------------------------


class OnPixels(nn.Module):
    """An MLP that is given all pixels as one vector."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.mlp = MLP(dim=64, width=width, depth=depth, classes=10, fourier=0)

    def forward(self, x: Tensor, noise_level: Tensor, y: Tensor | None = None) -> Tensor:
        return self.mlp(x.flatten(1), noise_level, y).view_as(x)


class RowsForColumns(nn.Module):
    """A network whose patches are put back column by column, though they were cut row by row."""

    def __init__(self, net: nn.Module) -> None:  # a DiT
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, noise_level: Tensor, y: Tensor | None = None) -> Tensor:
        tokens = patchify(self.net(x, noise_level, y), self.net.patch)
        rows = x.shape[2] // self.net.patch
        return unpatchify(tokens.unflatten(1, (rows, rows)).transpose(1, 2).flatten(1, 2), self.net.patch)


@torch.no_grad()
def start_gates(net: DiT, how: str) -> DiT:
    """The gates of adaLN-Zero made to start otherwise: at one, or as torch starts a linear layer."""
    for block in net.blocks:
        layer, width = block.adaln[1], net.config["width"]
        fresh = nn.Linear(width, 6 * width)
        for gate in (2, 5):
            rows = slice(gate * width, (gate + 1) * width)
            if how == "gates at one":
                layer.bias[rows] = 1
            else:
                layer.weight[rows], layer.bias[rows] = fresh.weight[rows], fresh.bias[rows]
    return net


def network(name: str, s: Settings, seed: int) -> nn.Module:
    """One of KINDS, STARTS or OTHERS."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "MLP":
            return OnPixels(width=256, depth=4)
        if name == "U-Net":
            return UNet(width=14, classes=10)
        kind = name if name in KINDS else "adaln-zero"
        shape = dict(width=s.width, patch=s.patch, depth=s.depth, heads=s.heads)
        net = DiT(**shape, classes=10, conditioning=kind)
        if name in STARTS:
            return start_gates(net, name)
        if name == "no positions":
            net.positions.zero_()
        return RowsForColumns(net) if name == "rows for columns" else net


# ---- one run -------------------------------------------------------------------------------------


def train(name: str, s: Settings, seed: int, see: Callable[[Step], Any] = lambda step: None) -> NetDenoiser:
    """Trains one network; `see` is shown every step. Returns the denoiser with the averaged weights."""
    real = datasets.digits_train()
    options = dict(steps=s.steps, batch_size=s.batch_size, lr=s.lr, ema=s.ema, seed=seed)
    d = NetDenoiser(network(name, s, seed), Cosine(), targets.v)
    data = dict(x0=real.x0, y=real.y)
    for step in fit(d, data, **options, lr_schedule=warmup_cosine(s.warmup, end=0.02)):
        see(step)
    return step.denoiser


def validation(d: Denoiser, s: Settings, data: datasets.Digits | None = None) -> float:
    """The loss on the held-out digits, or on others, with fixed noise."""
    x0, y = data or datasets.digits_test()
    return fixed_noise_loss(d, x0, draws=s.draws, y=y).mean().item()


def generate(d: Denoiser, s: Settings, seed: int = 0) -> Tensor:
    asked = thresholded(bind(d, y=torch.arange(s.samples) % 10), static())
    return sample(asked, (s.samples, 1, 8, 8), n=s.sampling_steps, sampler=dpmpp_2m, seed=seed)


def off(x: Tensor) -> float:
    """Energy distance to the held-out digits."""
    return metrics.energy_distance(x, datasets.digits_test().x0)


def floors(n: int, pairs: int = 9) -> dict[str, float]:
    """What real digits give by the same rulers: the median size of the distance, and the share that is read right."""
    real = datasets.digits_train()
    order = [torch.randperm(len(real.x0), generator=torch.Generator().manual_seed(k))[:n] for k in range(pairs)]
    far = torch.tensor([abs(off(real.x0[i])) for i in order])
    return {"energy": far.median().item(), "accuracy": metrics.digit_accuracy(real.x0, real.y)}


def run(name: str, s: Settings, seed: int) -> dict[str, Any]:
    start, curve = time.process_time(), {}

    def see(step: Step) -> None:
        if step.number % s.every == 0 and step.number < s.steps:
            curve[step.number] = validation(step.denoiser, s)

    d = train(name, s, seed, see)
    real, x = datasets.digits_train(), generate(d, s, seed)
    seen = datasets.Digits(real.x0[: s.samples], real.y[: s.samples])
    row: dict[str, Any] = dict(name=name, width=s.width, patch=s.patch, lr=s.lr, seed=seed)
    row |= dict(macs=macs(d.net, torch.zeros(1, 1, 8, 8), torch.zeros(1)), parameters=parameters(d.net))
    row |= dict(curve=list(curve.items()), loss=validation(d, s), train=validation(d, s, seen), energy=off(x))
    row |= dict(accuracy=metrics.digit_accuracy(x, torch.arange(s.samples) % 10))
    return row | dict(seconds=round(time.process_time() - start, 1))


# ---- reading the results -------------------------------------------------------------------------


def values(results: dict[str, Any], name: str, key: str = "loss", part: str = "conditioning", **where: Any) -> Tensor:
    """What the runs of one network found, a number for each seed; "half" is the loss half-way.

    Raises ValueError if a seed is missing, or if more than one run has it.
    """
    where |= dict(part=part, name=name)
    found = sorted((r for r in results["rows"] if all(r[k] == v for k, v in where.items())), key=lambda r: r["seed"])
    if [r["seed"] for r in found] != results["seeds"]:
        raise ValueError(f"{where} has the seeds {[r['seed'] for r in found]}, not {results['seeds']}")
    return torch.tensor([r["curve"][0][1] if key == "half" else r[key] for r in found], dtype=torch.float64)


def by_size(results: dict[str, Any], key: str) -> dict[tuple[int, int], Tensor]:
    """{(width, patch): a number for each seed} of the seven networks, the cheapest first."""
    usual = Settings.width, Settings.patch  # is in `conditioning`

    def found(shape: tuple[int, int], key: str) -> Tensor:
        part = "conditioning" if shape == usual else "size"
        return values(results, "adaln-zero", key, part, width=shape[0], patch=shape[1])

    return {shape: found(shape, key) for shape in sorted(SHAPES, key=lambda shape: found(shape, "macs")[0].item())}


def gradients(net: DiT) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's name and gradient; the layer that makes a block's vectors in two parts, "gate" and "rest"."""
    for name, p in net.named_parameters():
        if ".adaln." in name:
            vectors = p.grad.chunk(6 if net.conditioning == "adaln-zero" else 4)
            gates = vectors[2::3] if len(vectors) == 6 else ()
            yield name + " gate", torch.cat([g.flatten() for g in gates] or [torch.zeros(0)])
            yield name + " rest", torch.cat([g.flatten() for g in vectors if not any(g is gate for gate in gates)])
        else:
            yield name, p.grad


# ---- the study -----------------------------------------------------------------------------------


def runs(part: str, s: Settings) -> list[tuple[str, Settings, int]]:
    """(name, settings, seed) of each run of a part, a whole seed before the next; what costs most comes last."""
    if part == "size":
        quiet = asdict(s) | dict(every=s.steps)
        sized = {shape: Settings(**quiet | dict(width=shape[0], patch=shape[1])) for shape in SHAPES}
        usual = (s.width, s.patch)  # is in `conditioning` already
        return [("adaln-zero", sized[shape], seed) for shape in SHAPES if shape != usual for seed in SEEDS]
    if part == "long":
        longer = Settings(**asdict(s) | dict(steps=3 * s.steps))
        larger = Settings(**asdict(longer) | dict(patch=2 * s.patch))
        three = (("adaln-zero", longer), ("gates at random", longer), ("adaln-zero", larger))
        return [(name, mine, seed) for seed in SEEDS for name, mine in three]
    return [(name, s, seed) for seed in SEEDS for name in (OTHERS if part == "others" else KINDS + STARTS)]


def main(parts: tuple[str, ...] = PARTS, name: str = "14_dit", steps: int = Settings.steps) -> None:
    """Runs what is missing of these parts.

    Args:
        parts: of conditioning, others, size, long.
        name: of the results; a file of that name is gone on with if its settings are these.
        steps: of training, for every network.
    """
    torch.set_num_threads(1)
    s = Settings(steps=steps)
    command = "python -m tinydiff.recipes.study_dit"
    command += f" --steps {steps} --name {name}" if (steps, name) != (Settings.steps, "14_dit") else ""
    made = provenance(command) | {"settings": asdict(s), "seeds": list(SEEDS), "floors": floors(s.samples)}
    rows: list[dict[str, Any]] = []
    if (FOLDER / f"{name}.json").is_file():
        before = load_results(name)
        if before["settings"] != made["settings"]:
            raise ValueError(f"{name}.json has other settings: give another --name, or remove it")
        rows = before["rows"]
    key = lambda row: tuple(row[k] for k in ("part", "name", "width", "patch", "lr", "seed"))  # noqa: E731
    done = {key(row) for row in rows}
    todo = [(part, *one) for part in parts for one in runs(part, s)]
    for part, who, mine, seed in progress(todo, desc="runs"):
        if (part, who, mine.width, mine.patch, mine.lr, seed) in done:
            continue
        rows.append({"part": part} | run(who, mine, seed))
        seconds = round(sum(row["seconds"] for row in rows))
        save_results(name, made | {"seconds": seconds, "rows": rows})


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
