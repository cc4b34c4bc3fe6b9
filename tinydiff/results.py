"""Results of studies: data/results/NAME.json, each with how it was made. A recipe writes it, a notebook draws it."""

import json
import os
import platform
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "data" / "results"


def provenance(command: str) -> dict[str, Any]:
    """What a result says of its making: the command, the hardware and the versions."""
    import torch

    return {
        "command": command,
        "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save_results(name: str, results: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Writes NAME.json whole or not at all, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"{name}.json", folder / f".{name}.partial"
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def load_results(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What `save_results` wrote. Raises FileNotFoundError that lists what there is."""
    path = folder / f"{name}.json"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(f"there are no results {name!r}; there are: {names}")
    return json.loads(path.read_text(encoding="utf-8"))
