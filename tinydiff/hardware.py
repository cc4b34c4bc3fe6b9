"""Where and how `fit` computes: precision, compilation, memory format, and one process or many.

The batch of a step falls into equal micro-batches. Which process takes which, and in how many goes, changes nothing but
the order of sums: micro-batch m of step k draws its random numbers from (seed, k, m) alone. So two processes with a
micro-batch each train as one process does that accumulates two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinydiff.denoisers import Wrapped

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Hardware:
    """How `fit` computes. The default, one process in float32, is plain eager torch.

    Args:
        precision: "bf16" runs the network's products in bfloat16 by autocast; weights, sums of the loss and the
            schedule's algebra stay in float32.
        compile: the network by torch.compile; the first steps then take a minute.
        channels_last: convolutions' memory format, faster on GPUs with tensor cores.
        accumulate: micro-batches that each process takes in turn before a step; for batches that do not fit.
        accelerator: accelerate's, for many devices; `many()` makes it. Each process then holds the same weights.

    Raises ValueError for an unknown precision or accumulate < 1.
    """

    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False
    accumulate: int = 1
    accelerator: Accelerator | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1; got {self.accumulate}")

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and shows progress."""
        return not self.accelerator or self.accelerator.is_main_process

    @property
    def parts(self) -> int:
        """Micro-batches of a step, over all processes."""
        return self.processes * self.accumulate

    def mine(self) -> range:
        """The numbers of the micro-batches that this process takes."""
        first = self.accelerator.process_index if self.accelerator else 0
        return range(first, self.parts, self.processes)

    def prepare(self, d: Wrapped) -> Wrapped:
        """The denoiser to train with: the same weights, behind what was asked for. The bare network stays in `d`."""
        if self == Hardware(accumulate=self.accumulate):
            return d
        net: Any = d.net
        if self.channels_last:
            net.to(memory_format=torch.channels_last)
        if self.compile:
            net = torch.compile(net)
        if self.accelerator:
            net = self.accelerator.prepare_model(net)
        return replace(d, net=_Run(net, self.precision, self.channels_last))

    def alone(self, d: Wrapped, last: bool) -> Any:
        """While in it, gradients stay in this process; they are summed over all in the last micro-batch."""
        return self.accelerator.no_sync(d.net.net) if self.accelerator and not last else nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        return self.accelerator.reduce(value, "mean") if self.accelerator else value

    def any(self, value: bool) -> bool:
        """Whether it is so in one process at least; each must ask."""
        if not self.accelerator:
            return value
        return bool(self.accelerator.reduce(torch.tensor(float(value), device=self.accelerator.device), "sum") > 0)


class _Run(nn.Module):
    """A network in the precision and memory format that were asked for."""

    def __init__(self, net: nn.Module, precision: str, channels_last: bool) -> None:
        super().__init__()
        self.net, self.precision, self.channels_last = net, precision, channels_last

    def forward(self, x: Tensor, *args: Any, **cond: Any) -> Tensor:
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.net(x, *args, **cond)


def many(cpu: bool = False) -> Accelerator:
    """accelerate's view of the devices that `accelerate launch` gave this run; one process where it was not used."""
    from accelerate import Accelerator

    return Accelerator(cpu=cpu)


def within(minutes: float | None) -> Callable[[], bool]:
    """A function that says whether the minutes have passed since now; never if None."""
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= end
