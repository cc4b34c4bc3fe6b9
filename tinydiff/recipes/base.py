"""What recipes at full size share: the settings of a run, and how they become `fit`'s."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.checkpoints import DATA, save_network
from tinydiff.hardware import Hardware
from tinydiff.notebook import scale
from tinydiff.results import cpu_model, provenance

GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Run:
    """Settings of training that every image recipe has."""

    steps: int = 1000
    batch_size: int = 64  # of a step, over all devices
    lr: float = 1e-3
    warmup: int = 100  # steps
    ema: float = 0.999
    seed: int = 0
    precision: str = "fp32"  # or bf16
    compile: bool = False
    channels_last: bool = False
    accumulate: int = 1  # micro-batches that a device takes in turn
    recompute: bool = False  # keep the blocks' inputs only, and compute them again going back: less memory
    device: str = "cuda" if GPU else "cpu"
    threads: int = 2  # of torch on the CPU


def hardware(s: Any, accelerator: Any = None) -> Hardware:
    """How `fit` computes, by these settings; recipes without them compute plainly."""
    asked = {k: getattr(s, k) for k in ("precision", "compile", "channels_last", "accumulate") if hasattr(s, k)}
    return Hardware(**asked, accelerator=accelerator)


# what a GPU with tensor cores likes
ON_A_GPU: dict[str, Any] = dict(precision="bf16", compile=True, channels_last=True) if GPU else {}


def restored(kind: type, saved: dict[str, Any]) -> Any:
    """Settings of this kind from a checkpoint's JSON, which has lists for tuples."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})


def describe_hardware(device: str, threads: int, processes: int = 1) -> str:
    """In words, for a checkpoint's card: "1 x NVIDIA H100", or the processor and its threads."""
    if device.startswith("cuda"):
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"{processes} x {threads} threads of {cpu_model()}"


def command(name: str, scale: str, s: Any, default: Any) -> str:
    """The command line that trains a recipe with these settings: those that are not the scale's own, but the device."""
    parts = ["python -m tinydiff train", name, "--scale", scale]
    for field in fields(s):
        value = getattr(s, field.name)
        if value != getattr(default, field.name) and field.name != "device":
            option = "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                parts += [option if value else "--no-" + option[2:]]
            else:
                parts += [option, *map(str, value if isinstance(value, tuple | list) else [value])]
    return " ".join(parts)


def last(steps: Iterable) -> Any:
    """The denoiser with the averaged weights, after the last of `fit`'s steps."""
    return deque(steps, maxlen=1).pop().denoiser


def card(module: str, s: Any, start: float) -> dict[str, Any]:
    """What a file of weights says of how it was made, but for its metrics. start: by time.perf_counter().

    module: of the recipe, and its arguments, for the command.
    """
    made = provenance(f"TINYDIFF_SCALE={scale()} python -m tinydiff.recipes.{module}")
    made |= {"settings": asdict(s), "hardware": describe_hardware(s.device, s.threads)}
    return made | {"seconds": round(time.perf_counter() - start)}


def train_and_ship(
    name: str,
    module: str,
    s: Any,
    train: Callable[[Any], Any],
    network: Callable[[Any], nn.Module],
    evaluate: Callable[[Any, Any], dict[str, Any]],
    extra: Callable[[nn.Module], dict[str, Tensor]] = lambda net: {},
) -> None:
    """The `main` of a recipe whose network is no denoiser: trains by s and writes it where it ships, with its card.

    module: as of `card`. network: of what `train` gave. extra: more tensors for the file.
    """
    start = time.perf_counter()
    torch.set_num_threads(s.threads)
    trained = train(s)
    made = card(module, s, start) | {"metrics": evaluate(trained, s)}
    net = network(trained).cpu()
    save_network(DATA / f"{name}.safetensors", net, made, extra(net))
    print(json.dumps(made["metrics"], indent=2))
