"""What a training run leaves to read: a line of JSON now and then, and TensorBoard where it is asked for."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tinydiff.training import Step


def logged(
    steps: Iterator[Step],
    path: str | Path,
    every: int = 100,
    tensorboard: bool = False,
    judge: Callable[[Step], Mapping[str, int | float]] | None = None,
    judge_every: int = 1000,
) -> Iterator[Step]:
    """Hands on every step of `fit`, and appends a line to `path` each `every` steps and at the last.

    A line holds the step, the mean loss since the line before, and the seconds since this call began: a resumed run
    appends to the lines of the first. The losses stay on their device until a line is due.
    `judge` is asked each `judge_every` steps, and what it says stands in a line of that step; clocks stand meanwhile.
    `tensorboard=True` writes the same numbers for TensorBoard beside it, in the folder named like it.

    Raises ModuleNotFoundError that says what to install where TensorBoard is asked for and missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = _tensorboard(path.with_suffix("")) if tensorboard else None
    begin, losses, last = time.perf_counter(), [], None

    def write(step: Step, ask: bool) -> None:
        nonlocal begin
        line = {"step": step.number, "loss": sum(value.item() for value in losses) / len(losses)}  # waits for a GPU
        line["seconds"] = round(time.perf_counter() - begin, 3)
        if ask:
            start = time.perf_counter()
            line |= judge(step)
            begin += time.perf_counter() - start
        append(path, line)
        if writer:
            for name in line.keys() - {"step", "seconds"}:
                writer.add_scalar(name, line[name], step.number)
            writer.flush()
        losses.clear()

    try:
        for last in steps:
            losses.append(last.value)
            ask = judge is not None and last.number % judge_every == 0
            if ask or last.number % every == 0:
                write(last, ask)
            yield last
    finally:
        if losses:
            write(last, ask=False)
        if writer:
            writer.close()


def append(path: str | Path, line: Mapping[str, int | float]) -> None:
    """Adds a line of JSON."""
    with open(path, "a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tensorboard=True needs TensorBoard: pip install tensorboard") from error
    return SummaryWriter(folder)


def read_log(path: str | Path) -> list[dict[str, int | float]]:
    """The lines of a log. Raises ValueError that names a line which is no JSON."""
    lines = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is no JSON: {error}") from error
    return lines
