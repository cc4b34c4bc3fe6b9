"""Training: one loop for every system. The loss is an argument, and what happens between steps is the caller's.

for step in fit(d, data, steps=3000):
    if step.number % 500 == 0:
        show(step.denoiser)        # carries the averaged weights
"""

import copy
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from tinydiff.checkpoints import describe_denoiser, read_checkpoint, save_checkpoint
from tinydiff.denoisers import Wrapped
from tinydiff.hardware import Hardware, within
from tinydiff.losses import denoising_loss, stratified_times
from tinydiff.progress import progress

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What `fit` yields after each step: its number (from 1), its loss, and the denoiser with the averaged weights.

    `loss` is a number, read when asked for: a GPU is waited for only then.
    """

    number: int
    value: Tensor  # the loss, where it was computed
    denoiser: Wrapped

    @property
    def loss(self) -> float:
        return self.value.item()


class EMA:
    """An exponential moving average of a network's weights; buffers are copied.

    decay grows as (1 + k) / (10 + k) over the first steps k, so that the average does not remember the start.
    """

    def __init__(self, net: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1); got {decay}")
        self.net, self.decay, self.steps = copy.deepcopy(net).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - decay)
        for mine, its in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(its)


# ---- learning rates: (step from 0, steps) -> factor ----------------------------------------------


def constant(step: int, steps: int) -> float:
    """The learning rate as it is."""
    return 1.0


def warmup_cosine(warmup: int = 0, end: float = 0.0) -> Callable[[int, int], float]:
    """Linear warm-up over the first steps, then half a cosine down to `end` times the learning rate."""

    def factor(step: int, steps: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2

    return factor


adam = partial(torch.optim.Adam, fused=True)  # one kernel for all weights: small networks wait for little else


def drop_labels(classes: int, share: float = 0.1) -> Callable[[Batch], Batch]:
    """A `drop` for `fit`: each label y becomes the null label, number `classes`, with probability `share`.

    So one network learns to answer with and without a class (Ho and Salimans 2022, algorithm 1).
    Raises ValueError unless share lies in [0, 1].
    """
    return _drop("y", classes, share)


def drop_captions(share: float = 0.1) -> Callable[[Batch], Batch]:
    """The same for captions: tokens become padding alone, which is the null caption."""
    return _drop("tokens", 0, share)


def _drop(name: str, null: int, share: float) -> Callable[[Batch], Batch]:
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1]; got {share}")

    def drop(batch: Batch) -> Batch:
        value = batch[name]
        gone = torch.rand(len(value), device=value.device) < share
        return batch | {name: torch.where(gone.view(-1, *[1] * (value.ndim - 1)), null, value)}

    return drop


# ---- the loop ------------------------------------------------------------------------------------


def fit(
    d: Wrapped,
    data: Tensor | Mapping[str, Tensor] | Dataset | DataLoader,
    *,
    steps: int,
    loss: Callable[..., Tensor] = denoising_loss,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    times: Callable[..., Tensor] = stratified_times,
    ema: float = 0.999,
    lr_schedule: Callable[[int, int], float] = constant,
    clip: float = 1.0,
    optimizer: Callable[..., torch.optim.Optimizer] = adam,
    drop: Callable[[Batch], Batch] | None = None,
    checkpoint: str | Path | None = None,
    every: int = 1000,
    resume: bool = False,
    recipe: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    on: Hardware = Hardware(),  # noqa: B008, frozen
) -> Iterator[Step]:
    """Trains d.net in place, where it is, and yields a Step after each optimiser and EMA step.

    The random numbers of step k depend on (seed, k) alone, so a resumed run continues bit for bit on one device.

    Args:
        d: a denoiser, or with loss=losses.classifier_loss a classifier of noisy data.
        data: x0 as a tensor (n, ...); or a dict of tensors, x0 and the conditions (y=...); or `datasets.Images`; or a
            data set or loader whose items or batches are one of these or (x0, y) pairs. All but a loader are drawn from
            with replacement; a loader is read in its own order, again and again.
        loss: (d, x0, t, **cond) -> (b,). One with an argument `done` is told the share of the steps that are over.
        batch_size: of a step, over all processes and micro-batches.
        times: (n, device=...) -> (n,), the distribution of t.
        ema: decay of the average. clip: largest gradient norm.
        drop: changes a batch before the loss, such as one that drops labels.
        checkpoint: a path, written whole or not at all every `every` steps and at the end; `resume=True` continues
            from it if it is there; the data, the loss and the learning-rate schedule must be those of the first run.
            recipe: JSON data to be kept in it.
        minutes: stop after this time, with a checkpoint that can be resumed.
        on: precision, compilation, micro-batches and processes; see `hardware.Hardware`.

    Raises ValueError for NaN or infinity in the data, a checkpoint of another run, or a batch size that the
    micro-batches do not divide; FloatingPointError as soon as the loss or its gradient is not finite (on a GPU within
    16 steps, for it is not waited for before, and always before a checkpoint is written).
    """
    net, device = d.net.train(), next(d.net.parameters()).device
    working = on.prepare(d)  # computes with the same weights
    opt, average = optimizer(net.parameters(), lr=lr), EMA(net, ema)  # in the memory format that was asked for
    run = dict(steps=steps, lr=lr, batch_size=batch_size, seed=seed, ema=ema, clip=clip)
    run |= {"parts": on.parts} if on.parts > 1 else {}
    if resume and not checkpoint:
        raise ValueError("resume=True needs checkpoint=, the path to continue from")
    if batch_size % on.parts:
        raise ValueError(f"batch_size must divide by the {on.parts} micro-batches of a step; got {batch_size}")
    start = _restore(checkpoint, run, d, opt, average) if resume and Path(checkpoint).exists() else 0
    if on.accelerator and isinstance(data, DataLoader):
        data = on.accelerator.prepare(data)  # each process reads batches of its own
    batches, mine, over = to_batches(data, batch_size // on.parts), on.mine(), within(minutes)
    asks = "done" in inspect.signature(loss).parameters
    told = lambda share: {"done": share} if asks else {}  # noqa: E731
    for k in range(start if isinstance(data, DataLoader) else 0):  # what the loader has given before
        for m in mine:
            with random_numbers_of(seed, k, device, m):
                next(batches)

    bar = progress(range(start, steps), desc="training", total=steps - start, show=on.main)
    for k in bar:
        stop = minutes is not None and on.any(over())  # after this step
        save = checkpoint is not None and (stop or (k + 1) % every == 0 or k + 1 == steps)
        check = device.type != "cuda" or save or k % 16 == 0 or k + 1 == steps
        opt.zero_grad()
        value = torch.zeros((), device=device)
        for m in mine:
            with random_numbers_of(seed, k, device, m), on.alone(working, last=m == mine[-1]):
                batch = {name: part.to(device, non_blocking=True) for name, part in next(batches).items()}
                batch = drop(batch) if drop else batch
                t = times(len(batch["x0"]), device=device)
                if check and not ((t >= 0) & (t <= 1)).all():
                    raise ValueError(f"times must draw t in [0, 1]; got {t.min().item():g} to {t.max().item():g}")
                part = loss(working, t=t, **told(k / steps), **batch).mean() / on.accumulate
                if check and not part.isfinite():
                    finite = all(v.isfinite().all() for v in batch.values())
                    why = "try a smaller lr" if finite else "the batch itself holds NaN or infinity"
                    raise FloatingPointError(f"the loss is {part.item()} at step {k + 1} of {steps}: {why}")
                part.backward()
            value = value + part.detach()
        norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
        if check and not norm.isfinite():  # no step, so that no checkpoint holds weights that are lost
            raise FloatingPointError(f"the loss is {value.item()} but its gradient {norm} at step {k + 1} of {steps}")
        for group in opt.param_groups:
            group["lr"] = lr * lr_schedule(k, steps)
        opt.step()
        average.update(net)
        step = Step(k + 1, on.mean(value), replace(d, net=average.net))
        if check:
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
        if save and on.main:
            _save(checkpoint, step, run, net, opt, recipe)
        yield step
        if stop:
            return


@contextmanager
def random_numbers_of(seed: int, step: int, device: torch.device, part: int = 0) -> Iterator[None]:
    """Inside, torch's random state depends on (seed, step, part) alone; outside, it is as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + step + part * 1_000_003**2)
        yield


def to_batches(data: Any, batch_size: int) -> Iterator[Batch]:
    """Batches for ever, each a dict with x0 and the conditions."""
    if isinstance(data, Tensor | Mapping):
        data = _as_dict(data)
        for name, value in data.items():
            if len(value) != len(data["x0"]):
                raise ValueError(f"data[{name!r}] must have {len(data['x0'])} rows, like x0; got {len(value)}")
            if not value.isfinite().all():
                raise ValueError(f"data[{name!r}] holds NaN or infinity in {int((~value.isfinite()).sum())} places")
        size, place = len(data["x0"]), data["x0"].device
        draw = lambda i: {name: value[i] for name, value in data.items()}  # noqa: E731
    elif hasattr(data, "batch"):  # draws many at once, where its data lie
        size, draw, place = len(data), data.batch, data.device
    elif isinstance(data, Dataset):
        size, place = len(data), "cpu"
        draw = lambda i: _as_dict(default_collate([data[j] for j in i.tolist()]))  # noqa: E731
    else:
        return _loaded(data)
    if not size:
        raise ValueError("data is empty")
    # drawn where the data lie: to copy the numbers there would be to wait for all that a GPU has yet to do
    return (draw(torch.randint(size, (batch_size,), device=place)) for _ in iter(int, 1))


def _loaded(loader: Any) -> Iterator[Batch]:
    batch = None
    while True:
        for batch in loader:
            yield _as_dict(batch)
        if batch is None:
            raise ValueError("data is empty: a loader that yields no batches")


def _as_dict(batch: Any) -> Batch:
    if isinstance(batch, Tensor):
        return {"x0": batch}
    if isinstance(batch, Mapping) and "x0" in batch:
        return dict(batch)
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return {"x0": batch[0], "y": batch[1]}
    raise ValueError(f"a batch must be x0, (x0, y), or a dict with x0; got {type(batch).__name__}")


def _save(path: Any, step: Step, run: dict, net: nn.Module, opt: torch.optim.Optimizer, recipe: Any) -> None:
    extra = {f"train.net.{name}": value for name, value in net.state_dict().items()}
    for i, state in opt.state_dict()["state"].items():
        extra |= {f"train.opt.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
    save_checkpoint(path, step.denoiser, {"recipe": dict(recipe or {}), "run": run, "step": step.number}, extra)


def _restore(path: Any, run: dict, d: Wrapped, opt: torch.optim.Optimizer, average: EMA) -> int:
    tensors, described, saved = read_checkpoint(path)
    if "run" not in saved:
        raise ValueError(f"{path} holds a denoiser only, not the state of a run of fit: it cannot be resumed")
    was, now = saved["run"] | described, run | json.loads(json.dumps(describe_denoiser(d)))
    if differ := [k for k in now if was.get(k) != now[k]]:
        listed = "; ".join(f"{k} was {str(was.get(k))[:200]}, is {str(now[k])[:200]}" for k in differ)
        raise ValueError(f"{path} is from a run with other settings ({listed}); it cannot be resumed with these")
    part = lambda prefix: {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}  # noqa: E731
    d.net.load_state_dict(part("train.net."))
    average.net.load_state_dict(part("net."))
    average.steps = saved["step"]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in part("train.opt.").items():
        i, key = name.split(".", 1)
        state.setdefault(int(i), {})[key] = value
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return saved["step"]
