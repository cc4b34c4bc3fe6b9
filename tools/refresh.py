"""Run notebooks and store their outputs: `python tools/refresh.py [paths...]`.

Without paths: notebooks/[0-9]*.ipynb and notebooks/solutions/*.ipynb. Each runs at laptop scale, in its own
folder and with this Python. What is stored is equal on every machine: no stderr, no widgets, no times,
kernel python3, counts 1..n. A notebook that fails is left as it was. Exercises and masters are stored unrun,
so for them outputs are cleared. notebooks/budget.toml receives the CPU seconds.
"""

import os
import sys
from pathlib import Path

import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

import budget

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
UNRUN = ("exercises", "masters")  # folders whose notebooks are stored without outputs
SKIPPED = "nbval-skip"  # tag of cells that neither this tool nor nbval runs (set-up on a hosted service)


class ThisPython(KernelSpecManager):
    """Whatever kernel is asked for, the Python that runs this script."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


class Kernel(AsyncKernelManager):
    def _kernel_spec_manager_default(self):
        return ThisPython(parent=self)


def execute(nb, folder: Path, allow_errors=False, timeout=600, show="") -> float:
    """Run `nb` in place with `folder` as its working directory; returns its kernel's CPU seconds."""
    before = budget.children_seconds()
    cells = sum(cell.cell_type == "code" for cell in nb.cells)
    with tqdm(total=cells, desc=show, unit="cell", disable=not show) as bar:
        NotebookClient(
            nb,
            kernel_name="python3",
            kernel_manager_class=Kernel,
            timeout=timeout,
            allow_errors=allow_errors,
            record_timing=False,
            coalesce_streams=True,
            skip_cells_with_tag=SKIPPED,
            resources={"metadata": {"path": str(folder)}},
            extra_arguments=["--log-level=ERROR"],
            on_cell_complete=lambda **_: bar.update(),
        ).execute(env=os.environ | {"TINYDIFF_SCALE": "laptop"})
    return budget.children_seconds() - before


def runs(cell) -> bool:
    """Whether a cell gets a count: code, not blank, not skipped."""
    return cell.cell_type == "code" and bool(cell.source.strip()) and SKIPPED not in cell.metadata.get("tags", [])


def clean(nb, run=True) -> None:
    """Keep what is equal on every machine. With `run=False`, keep no output at all."""
    nb.metadata.pop("widgets", None)
    nb.metadata.kernelspec = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    # without the version, which differs between machines
    nb.metadata.language_info = {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"}
    count = 0
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        if not run or not runs(cell):
            cell.execution_count, cell.outputs = None, []
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for out in cell.outputs:
            if out.output_type == "execute_result":
                out.execution_count = count
            if out.output_type == "error":  # a traceback holds paths; nbval compares name and message
                out.traceback = [f"{out.ename}: {out.evalue}"]
            if "data" in out:
                out.data.pop("application/vnd.jupyter.widget-view+json", None)


def store(nb, path: Path) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(nbformat.writes(nb).rstrip("\n") + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refresh(path: Path) -> float | None:
    """Run one notebook and store it; CPU seconds, or None for one that is stored unrun."""
    nb = nbformat.read(path, as_version=4)
    run = path.parent.name not in UNRUN
    seconds = execute(nb, path.parent, show=path.name) if run else None
    clean(nb, run)
    store(nb, path)
    return seconds


def main(arguments: list[str], folder: Path = NOTEBOOKS) -> int:
    folder = folder.resolve()
    paths = [Path(argument).resolve() for argument in arguments]
    paths = paths or sorted(folder.glob("[0-9]*.ipynb")) + sorted(folder.glob("solutions/*.ipynb"))
    measured, failed = {}, []
    for path in paths:
        try:
            seconds = refresh(path)
        except CellExecutionError as error:
            failed.append(path)
            print(f"{path.name} failed and was left as it was:\n{error}", file=sys.stderr)
            continue
        if seconds is not None and folder in path.parents:
            measured[path.relative_to(folder).as_posix()] = seconds
    if measured:
        budget.write(folder, measured)
    for name, seconds in measured.items():
        print(f"{name}: {seconds:.1f} CPU seconds")
    if failed:
        print(f"{len(failed)} of {len(paths)} notebooks failed: " + ", ".join(p.name for p in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
