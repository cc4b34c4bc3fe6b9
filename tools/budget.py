"""CPU seconds of notebooks: measured while pytest runs them, held against notebooks/budget.toml.

The clock is the operating system's account of the processes that have ended and been waited for
(`getrusage(RUSAGE_CHILDREN)`), read before a notebook's kernel starts and after it has ended. CPU seconds
depend little on what else the machine does, and cannot be changed by what a notebook prints.
"""

import os
import tomllib
from pathlib import Path

FACTOR, FLOOR = 3.0, 5.0  # a run fails beyond FACTOR times the budget, if it is also beyond FLOOR seconds


def children_seconds() -> float:
    """User and system seconds of all child processes that have ended."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such account
        return 0.0
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read(folder: Path) -> dict[str, float]:
    """The budgets of a notebook folder: path inside the folder -> CPU seconds."""
    file = folder / "budget.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write(folder: Path, measured: dict[str, float]) -> dict[str, float]:
    """Update budget.toml with new measurements, and drop notebooks that are gone.

    An entry that is still right to a quarter (or half a second) stays, so that the file changes only
    when a notebook does.
    """
    old = read(folder)
    new = {name: seconds for name, seconds in old.items() if (folder / name).exists()}
    for name, seconds in measured.items():
        if abs(seconds - old.get(name, 0.0)) > max(0.25 * old.get(name, 0.0), 0.5) or name not in old:
            new[name] = round(seconds, 1)
    lines = ["# CPU seconds (user and system) of each notebook's kernel at laptop scale.\n"]
    lines += ["# Written by tools/refresh.py; pytest --nbval fails at three times these.\n\n"]
    lines += [f'"{name}" = {seconds}\n' for name, seconds in sorted(new.items())]
    temporary = folder / "budget.toml.part"
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, folder / "budget.toml")
    return new


def allowed(name: str, budgets: dict[str, float]) -> float | None:
    """The budget of one notebook. An exercise, stored unrun, is held to that of its solution."""
    if name in budgets:
        return budgets[name]
    return budgets.get(name.replace("exercises/", "solutions/", 1)) if name.startswith("exercises/") else None


def verdict(measured: float, budget: float | None) -> str:
    """'ok', or a sentence that says why the run fails."""
    if budget is None:
        return "no entry in notebooks/budget.toml: run tools/refresh.py on it"
    if measured > FLOOR and measured > FACTOR * budget:
        return f"more than {FACTOR:g} times its budget"
    return "ok"


def table(measured: dict[str, float], budgets: dict[str, float]) -> tuple[list[str], int]:
    """Lines to print, and how many notebooks are at fault."""
    width = max(map(len, measured), default=0)
    lines, faults = [f"{'notebook':{width}}  measured  budget  (CPU seconds)"], 0
    for name, seconds in sorted(measured.items()):
        budget = allowed(name, budgets)
        word = verdict(seconds, budget)
        faults += word != "ok"
        lines.append(f"{name:{width}}  {seconds:8.1f}  {'-' if budget is None else f'{budget:.1f}':>6}  {word}")
    return lines, faults


class Watch:
    """Measures each notebook that nbval runs. `attach` is given nbval's collector of one file."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.measured: dict[str, float] = {}

    def attach(self, collector) -> None:
        path = Path(collector.path).resolve()
        if self.folder not in path.parents:
            return
        name = path.relative_to(self.folder).as_posix()
        setup, teardown = collector.setup, collector.teardown
        started = 0.0

        def timed_setup():
            nonlocal started
            started = children_seconds()
            setup()

        def timed_teardown():
            teardown()  # ends the kernel and waits for it
            self.measured[name] = self.measured.get(name, 0.0) + children_seconds() - started

        collector.setup, collector.teardown = timed_setup, timed_teardown
