"""Stored notebooks must be equal on every machine: `python tools/lint_notebooks.py [paths...]`.

Reads the JSON and reports what would break a strict comparison, leak something of the author's machine, or
not show on GitHub. Without paths: every notebook below notebooks/. `RULES` says what is refused and why.
"""

import json
import re
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
UNRUN = ("exercises", "masters")  # folders whose notebooks are stored without outputs
LIMIT = 1_000_000  # bytes
WIDGETS = "application/vnd.jupyter.widget"

RULES = {
    "semicolon": "a last line ends in a semicolon: end the cell in plt.show(), or assign to _",
    "magic": "%time, %timeit, !pip, %pip: give other text on every run",
    "display-update": "clear_output, display_id, update_display: a comparison sees all frames",
    "address": "a memory address in an output",
    "path": "an absolute path in an output",
    "kernel-pid": "ipykernel_<number> in an output",
    "time": "a time or a speed in an output (tag the cell allow-time if it is a stored fact)",
    "stderr": "stored stderr: tools/refresh.py drops it",
    "widget": "a widget view or widget state: GitHub refuses it",
    "svg": "an SVG picture: store PNG",
    "error": "an error in a cell without the tag raises-exception",
    "counts": "execution counts are not 1..n (run tools/refresh.py)",
    "unrun": "exercises and masters are stored unrun: no counts, no outputs",
    "kernel": "the kernel must be called python3",
    "size": "the file is larger than 1 MB",
    "ids": "a cell has no id of its own: save as nbformat 4.5",
}

MAGIC = re.compile(r"^\s*(%%?time(it)?\b|[!%]\s*pip\b|!\s*\S*python\S* -m pip\b)", re.M)
DISPLAY_UPDATE = re.compile(r"\b(clear_output|update_display|display_id)\b")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
PATH = re.compile(r"(?<![\w./:<\\-])(/[A-Za-z_][\w.+-]*/[\w.+-]|~/\w)|\b[A-Z]:\\+(Users|Windows|Program|Temp)")
KERNEL_PID = re.compile(r"ipykernel_\d+")
TIME = re.compile(
    r"(?<![\w.])\d+(\.\d+)?(e[+-]?\d+)? ?(it/s|s/it|[mnuµμ]?s|sec|secs|seconds?|minutes?)\b(?! ?[=:])"
    r"|\b(CPU times|Wall time)\b|\b\d?\d:\d\d:\d\d\b"
)
DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")


def joined(value) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def words(output: dict) -> str:
    """All text of one output, without pictures."""
    parts = [joined(output.get("text", "")), output.get("ename", ""), output.get("evalue", "")]
    parts += output.get("traceback", [])
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            parts.append(joined(value))
    return DATA_URI.sub("", "\n".join(parts))


def lint_cell(cell: dict) -> set[str]:
    """Names of the rules that one code cell breaks."""
    source, tags = joined(cell["source"]), cell.get("metadata", {}).get("tags", [])
    broken = set()
    code = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    if code and re.sub(r"\s#[^'\"]*$", "", code[-1]).rstrip().endswith(";"):
        broken.add("semicolon")
    if "nbval-skip" not in tags:
        broken |= {"magic"} if MAGIC.search(source) else set()
        broken |= {"display-update"} if DISPLAY_UPDATE.search(source) else set()
    for output in cell.get("outputs", []):
        said = words(output)
        broken |= {"address"} if ADDRESS.search(said) else set()
        broken |= {"path"} if PATH.search(said) else set()
        broken |= {"kernel-pid"} if KERNEL_PID.search(said) else set()
        broken |= {"time"} if TIME.search(said) and "allow-time" not in tags else set()
        broken |= {"stderr"} if output.get("name") == "stderr" else set()
        broken |= {"widget"} if any(kind.startswith(WIDGETS) for kind in output.get("data", {})) else set()
        broken |= {"svg"} if "image/svg+xml" in output.get("data", {}) else set()
        broken |= {"error"} if output["output_type"] == "error" and "raises-exception" not in tags else set()
    return broken


def lint(path: Path) -> list[str]:
    """Complaints about one notebook, each `file: cell: rule: explanation`; empty for a good one."""
    nb = json.loads(path.read_text(encoding="utf-8"))
    unrun = path.resolve().parent.name in UNRUN
    found: list[tuple[str, str]] = []
    if path.stat().st_size > LIMIT:
        found.append(("file", "size"))
    if nb.get("metadata", {}).get("kernelspec", {}).get("name") != "python3":
        found.append(("file", "kernel"))
    if "widgets" in nb.get("metadata", {}):
        found.append(("file", "widget"))
    ids = [cell.get("id") for cell in nb["cells"]]
    if None in ids or len(set(ids)) != len(ids):
        found.append(("file", "ids"))
    counts = []
    for number, cell in enumerate(nb["cells"], 1):
        if cell["cell_type"] != "code":
            continue
        found += [(f"cell {number}", rule) for rule in sorted(lint_cell(cell))]
        count, skipped = cell.get("execution_count"), "nbval-skip" in cell["metadata"].get("tags", [])
        if unrun and (count is not None or cell["outputs"]):
            found.append((f"cell {number}", "unrun"))
        if joined(cell["source"]).strip() and not skipped:
            counts.append(count)
    if not unrun and counts != list(range(1, len(counts) + 1)):
        found.append(("file", "counts"))
    return [f"{path.parent.name}/{path.name}: {where}: {rule}: {RULES[rule]}" for where, rule in found]


def notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    return [p for p in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments] or notebooks()
    complaints = [line for path in paths for line in lint(path)]
    print("\n".join(complaints or [f"{len(paths)} notebooks: nothing to mend"]))
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
