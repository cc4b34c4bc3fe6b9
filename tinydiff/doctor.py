"""`python -m tinydiff doctor`: is everything in place, and if not, which command mends it?

Where even `import tinydiff` fails, `python tinydiff/doctor.py` says the same: this file needs nothing else.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the checkout
PYTHON = shlex.quote(sys.executable)
PIP = f"{PYTHON} -m pip install -c constraints.txt"

# import name -> (name for pip, what for); a test holds this to pyproject.toml
NEEDED = {
    "torch": ("torch", "tensors and networks"),
    "numpy": ("numpy", "arrays"),
    "matplotlib": ("matplotlib", "figures"),
    "sklearn": ("scikit-learn", "the digits, and classifiers that judge samples"),
    "scipy": ("scipy", "ODEs of densities, and pairs by transport"),
    "tqdm": ("tqdm", "progress bars"),
    "safetensors": ("safetensors", "checkpoints"),
    "jaxtyping": ("jaxtyping", "shapes in annotations"),
    "einops": ("einops", "rearranging tensors"),
    "tyro": ("tyro", "the command line"),
    "PIL": ("pillow", "animations, and image files"),
    "accelerate": ("accelerate", "training on any device, and on many"),
    "pooch": ("pooch", "downloads of data"),
}
# import name -> (extra, what for)
OPTIONAL = {
    "jupyterlab": ("notebook", "opens the notebooks in a browser (an editor such as VS Code does it too)"),
    "pytest": ("test", "runs the tests"),
    "nbval": ("test", "compares notebooks with their stored outputs"),
    "diffusers": ("test", "reference schedulers that tests compare with"),
}

# Asks a fresh kernel which environment it runs in. A process of its own, so that nothing of it stays.
ASK_KERNEL = """
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    said = []
    client.execute_interactive(
        "import sys; print(sys.prefix)", timeout=60,
        output_hook=lambda m: said.append(m["content"].get("text", "")))
    print("".join(said).strip().splitlines()[-1])
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""


def ok(text: str) -> None:
    print(f"  ok       {text}")


def note(text: str, mend: str = "") -> None:
    print(f"  note     {text}" + (f"\n             to add it: {mend}" if mend else ""))


def bad(text: str, mend: str) -> int:
    """Print a fault and the command that mends it; counts as one."""
    print(f"  MISSING  {text}\n             to mend it: {mend}")
    return 1


def check_python() -> int:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036, the file is also run by itself
        return bad(f"Python {version} is too old, 3.11 is the least", "make lab PYTHON=python3.12")
    ok(f"Python {version} at {sys.executable}")
    return 0


def check_packages() -> int:
    faults = 0
    for module, (package, purpose) in NEEDED.items():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            faults += bad(f"{package} is not installed ({purpose})", f"{PIP} {package}")
        except Exception as error:  # installed, but broken: a missing system library, mixed builds
            again = f"{PIP} --force-reinstall --no-deps {package}"
            faults += bad(f"{package} does not import: {type(error).__name__}: {error}", again)
        else:
            ok(f"{package} {importlib.metadata.version(package)}")
    for module, (extra, purpose) in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            note(f"{module} is not installed; optional: {purpose}", f'{PIP} -e ".[{extra}]"')
        else:
            ok(f"{module} {importlib.metadata.version(module)} (optional: {purpose})")
    return faults


def check_device() -> int:
    """What torch was built for and what it finds. A CPU is enough, so nothing here is a fault."""
    try:
        import torch
    except Exception:
        return 0  # check_packages has told
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if getattr(torch.version, "hip", None):
        build = f"ROCm {torch.version.hip}"
    ok(f"torch {torch.__version__}, built for {build}")
    if torch.cuda.is_available():
        ok(f"device: cuda ({torch.cuda.get_device_name(0)})")
    elif torch.backends.mps.is_available():
        ok("device: mps (Apple GPU)")
    else:
        ok(f"device: cpu, {torch.get_num_threads()} threads; every notebook is made for this")
        if torch.version.cuda:
            note("torch is built for CUDA but finds no GPU; if there is one, ask nvidia-smi about its driver")
    return 0


def check_jupyter() -> int:
    """Whether a kernel starts, and runs this environment: the usual cause of ModuleNotFoundError."""
    install = f'{PIP} -e ".[notebook]"'
    if importlib.util.find_spec("ipykernel") is None:
        return bad("ipykernel is not installed: notebooks cannot run", install)
    try:
        answer = subprocess.run([sys.executable, "-c", ASK_KERNEL], capture_output=True, text=True, timeout=120)
        lines = answer.stdout.strip().splitlines()
        reason = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
    except subprocess.TimeoutExpired:
        lines, reason = [], "no answer in two minutes"
    if not lines:
        again = f"{PIP} --force-reinstall --no-deps ipykernel jupyter-client pyzmq"
        return bad(f"the Jupyter kernel does not start: {reason}", again)
    if Path(lines[-1]).resolve() != Path(sys.prefix).resolve():
        here = f"{PYTHON} -m ipykernel install --sys-prefix"
        return bad(f"the kernel python3 runs another environment: {lines[-1]}", here)
    ok("a Jupyter kernel starts and runs this Python")
    if importlib.util.find_spec("jupyterlab") is not None:
        command = [sys.executable, "-m", "jupyterlab", "--version"]
        lab = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if lab.returncode:
            reason = (lab.stderr.strip().splitlines() or ["no reason given"])[-1]
            again = f"{PIP} --force-reinstall --no-deps jupyterlab jupyter-server"
            return bad(f"JupyterLab does not start: {reason}", again)
        ok("JupyterLab starts")
    return 0


def readable(path: Path) -> bool:
    """Whether a safetensors file has a sound header and is as long as that says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < 100_000_000 else {}
        end = max((t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"), default=0)
        return bool(header) and path.stat().st_size == 8 + length + end
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_data(root: Path) -> int:
    faults = 0
    try:
        from sklearn.datasets import load_digits

        ok(f"digits of scikit-learn: {len(load_digits().images)} pictures")
    except ModuleNotFoundError:
        pass  # check_packages has told
    except Exception as error:
        faults += bad(
            f"the digits of scikit-learn do not load: {error}",
            f"{PIP} --force-reinstall --no-deps scikit-learn",
        )
    data = root / "data"
    if not data.is_dir():
        note("no folder data/: nothing in this version needs it")
        return faults
    files = sorted((data / "checkpoints").glob("*.safetensors"))
    broken = [path for path in files if not readable(path)]
    for path in broken:
        name = path.relative_to(root).as_posix()
        faults += bad(f"{name} is damaged or incomplete", f"git checkout -- {name}")
    ok(f"data/ is there, with {len(files) - len(broken)} trained networks in data/checkpoints")
    return faults


def doctor(root: Path = ROOT) -> int:
    """Say in plain words what is in place and what is not; 0 when the course can start, else 1."""
    faults = 0
    for title, check in {
        "Python": check_python,
        "Packages": check_packages,
        "Device": check_device,
        "Jupyter": check_jupyter,
        "Data": lambda: check_data(root),
    }.items():
        print(title)
        faults += check()
    print()
    if faults:
        things = "1 thing" if faults == 1 else f"{faults} things"
        print(f"{things} to mend, see above. Run the commands from the folder that holds pyproject.toml.")
        return 1
    print("You are ready.")
    return 0


if __name__ == "__main__":
    sys.exit(doctor())
