"""The doctor finds what is missing, names the command that mends it, and returns what a shell expects."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
module = importlib.import_module("tinydiff.doctor")


@pytest.fixture
def without_kernel(monkeypatch):
    """The kernel's check starts a process and takes seconds; one test does it for real."""
    monkeypatch.setattr(module, "check_jupyter", lambda: 0)


def test_ready(capfd):
    assert module.doctor() == 0
    said = capfd.readouterr().out
    assert said.endswith("You are ready.\n") and "MISSING" not in said
    assert f"torch {torch.__version__}" in said
    assert "a Jupyter kernel starts and runs this Python" in said
    assert "1797 pictures" in said


@pytest.mark.parametrize("name, package", [("einops", "einops"), ("sklearn", "scikit-learn")])
def test_missing_package(name, package, monkeypatch, capsys, without_kernel):
    for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.setitem(sys.modules, loaded, None)  # importing it raises ModuleNotFoundError
    monkeypatch.setitem(sys.modules, name, None)
    assert module.doctor() == 1
    said = capsys.readouterr().out
    assert f"{package} is not installed" in said
    assert f"to mend it: {module.PIP} {package}\n" in said
    assert "1 thing to mend" in said and "You are ready" not in said


def test_broken_package(monkeypatch, capsys, without_kernel):
    real = importlib.import_module

    def broken(name, package=None):
        if name == "einops":
            raise ImportError("a library is missing")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    assert module.doctor() == 1
    said = capsys.readouterr().out
    assert "einops does not import: ImportError: a library is missing" in said
    assert "--force-reinstall --no-deps einops" in said


def test_missing_optional_package_is_no_fault(monkeypatch, capsys, without_kernel):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, p=None: None if n == "jupyterlab" else real(n, p))
    assert module.doctor() == 0
    said = capsys.readouterr().out
    assert "note     jupyterlab is not installed; optional: opens the notebooks" in said
    assert '-e ".[notebook]"' in said


def test_kernel_of_another_environment(monkeypatch, capsys):
    monkeypatch.setattr(module, "ASK_KERNEL", "print('/somewhere/else')")
    assert module.check_jupyter() == 1
    said = capsys.readouterr().out
    assert "runs another environment: /somewhere/else" in said and "ipykernel install --sys-prefix" in said


def test_kernel_that_does_not_start(monkeypatch, capsys):
    monkeypatch.setattr(module, "ASK_KERNEL", "raise RuntimeError('no ports left')")
    assert module.check_jupyter() == 1
    assert "does not start: RuntimeError: no ports left" in capsys.readouterr().out


def test_old_python(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert module.check_python() == 1
    assert "Python 3.9.2 is too old" in capsys.readouterr().out


def test_damaged_checkpoint(tmp_path, capsys, without_kernel):
    folder = tmp_path / "data" / "checkpoints"
    folder.mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, folder / "good.safetensors", metadata={"a": "b"})
    assert module.doctor(tmp_path) == 0
    assert "1 trained networks" in capsys.readouterr().out
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-4])
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert module.doctor(tmp_path) == 1
    said = capsys.readouterr().out
    assert "git checkout -- data/checkpoints/cut.safetensors" in said
    assert "git checkout -- data/checkpoints/pointer.safetensors" in said
    assert "good.safetensors" not in said and "2 things to mend" in said


def test_lists_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [p for p, _ in module.NEEDED.values()] == [Requirement(r).name for r in project["dependencies"]]
    for name, (extra, _) in module.OPTIONAL.items():
        assert name in {Requirement(r).name for r in project["optional-dependencies"][extra]}


def test_starts_without_any_package():
    """Run as a file by a Python without site packages, it still gives its report."""
    command = [sys.executable, "-S", str(ROOT / "tinydiff" / "doctor.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "torch is not installed" in done.stdout and "ipykernel is not installed" in done.stdout
