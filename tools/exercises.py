"""Exercise and solution notebooks from one master: `python tools/exercises.py [--check] [names...]`.

A master is notebooks/masters/NN_topic.ipynb. In it

- a code cell holds its solution between lines `### BEGIN SOLUTION` and `### END SOLUTION` (the convention
  of nbgrader), indented like the code around them;
- the tag `check` marks a cell that checks the learner's work;
- the tag `uses-solution` marks any other cell that cannot run before the exercise is solved.

notebooks/exercises/NN_topic.ipynb has a stub in place of each solution, is stored unrun, and lets the tagged
cells fail (tag `raises-exception`). notebooks/solutions/NN_topic.ipynb has the solutions; outputs of cells
that did not change are kept, the rest comes from tools/refresh.py. With --check nothing is written: the tool
shows how the stored files differ from what it would write, and exits 1 if they do. Outputs do not count.
"""

import argparse
import copy
import difflib
import re
import sys
from pathlib import Path

import nbformat

from refresh import NOTEBOOKS, clean, store

STUB = 'raise NotImplementedError("your code here")'
NEEDY = {"check", "uses-solution"}  # tags of cells that fail until the exercise is solved
BEGIN, END = re.compile(r"(\s*)### BEGIN SOLUTION\s*"), re.compile(r"\s*### END SOLUTION\s*")


def regions(source: str, stub: str | None) -> str:
    """`source` with each solution region replaced by `stub`, or only its markers removed if that is None."""
    lines, inside = [], False
    for number, line in enumerate(source.splitlines(), 1):
        if begin := BEGIN.fullmatch(line):
            if inside:
                raise ValueError(f"line {number}: BEGIN SOLUTION inside a solution")
            inside = True
            if stub is not None:
                lines.append(begin[1] + stub)
        elif END.fullmatch(line):
            if not inside:
                raise ValueError(f"line {number}: END SOLUTION without BEGIN SOLUTION")
            inside = False
        elif "### BEGIN" in line or "### END" in line:
            raise ValueError(f"line {number}: not a marker that is known here: {line.strip()}")
        elif not inside or stub is None:
            lines.append(line)
    if inside:
        raise ValueError("BEGIN SOLUTION without END SOLUTION")
    return "\n".join(lines)


def generate(master, variant: str, name: str):
    """The `exercises` or the `solutions` variant of a master, without outputs. Cell ids are the master's."""
    nb = copy.deepcopy(master)
    clean(nb, run=False)
    nb.metadata["generated_from"] = f"masters/{name}"
    seen = set()
    for index, cell in enumerate(nb.cells):
        if not cell.get("id") or cell.id in seen:
            raise ValueError(f"{name}: cell {index} has no id of its own; save the master in JupyterLab")
        seen.add(cell.id)
        tags = [tag for tag in cell.metadata.get("tags", []) if tag != "raises-exception"]
        if cell.cell_type == "code":
            try:
                cell.source = regions(cell.source, STUB if variant == "exercises" else None)
            except ValueError as error:
                raise ValueError(f"{name}: cell {index}: {error}") from None
            if variant == "exercises" and NEEDY & set(tags):
                tags.append("raises-exception")
        if tags or "tags" in cell.metadata:
            cell.metadata["tags"] = tags
    return nb


def keep_outputs(nb, stored) -> None:
    """Give the cells of `nb` the outputs and counts that `stored` has for the same id and source."""
    old = {cell.id: cell for cell in stored.cells if cell.cell_type == "code" and "id" in cell}
    for cell in nb.cells:
        if cell.cell_type == "code" and cell.id in old and old[cell.id].source == cell.source:
            cell.outputs, cell.execution_count = old[cell.id].outputs, old[cell.id].execution_count


def text(nb) -> list[str]:
    """What --check compares: ids, types, tags and sources, one line each."""
    lines = []
    for cell in nb.cells:
        tags = " ".join(cell.metadata.get("tags", []))
        lines += [f"--- {cell.cell_type} {cell.get('id')} [{tags}]", *cell.source.splitlines()]
    return lines


def difference(new, path: Path) -> list[str]:
    """A unified diff from the stored file to `new`; empty where they agree."""
    stored = text(nbformat.read(path, as_version=4)) if path.exists() else []
    label = f"{path.parent.name}/{path.name}"
    return list(difflib.unified_diff(stored, text(new), f"stored {label}", f"generated {label}", lineterm=""))


def main(arguments: list[str], folder: Path = NOTEBOOKS) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where files differ")
    parser.add_argument("names", nargs="*", help="masters by name, such as 01_ddpm (default: all)")
    options = parser.parse_args(arguments)
    wanted = {Path(name).stem for name in options.names}
    masters = [p for p in sorted((folder / "masters").glob("*.ipynb")) if not wanted or p.stem in wanted]
    if missing := wanted - {path.stem for path in masters}:
        parser.error("no such master: " + ", ".join(sorted(missing)))
    differ = 0
    for master_path in masters:
        master = nbformat.read(master_path, as_version=4)
        for variant in ("exercises", "solutions"):
            path = folder / variant / master_path.name
            nb = generate(master, variant, master_path.name)
            diff = difference(nb, path)
            differ += bool(diff)
            if options.check:
                print("\n".join(diff), end="\n" if diff else "")
                continue
            if path.exists() and variant == "solutions":
                keep_outputs(nb, nbformat.read(path, as_version=4))
            path.parent.mkdir(exist_ok=True)
            store(nb, path)
            print(f"{variant}/{path.name}: {'written' if diff else 'unchanged'}")
    if options.check:
        for variant in ("exercises", "solutions"):
            for path in sorted((folder / variant).glob("*.ipynb")):
                if not (folder / "masters" / path.name).exists():
                    differ += 1
                    print(f"{variant}/{path.name} has no master")
        if differ:
            print(f"{differ} notebook(s) differ from their masters: run python tools/exercises.py")
    return int(options.check and bool(differ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
