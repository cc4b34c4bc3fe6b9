"""pyproject.toml (ranges), constraints.txt (pins), environment.yml (conda), Makefile and README agree."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(r) for r in PROJECT["dependencies"] + sum(EXTRAS.values(), [])]
PIN_LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = dict(line.split("==") for line in PIN_LINES)
MAKEFILE = (ROOT / "Makefile").read_text()


def conda_requirements() -> dict[str, str]:
    text = (ROOT / "environment.yml").read_text()
    return dict(re.findall(r"^  - ([a-z0-9_-]+)([<>=!~][^\s#]*)?$", text.partition("dependencies:")[2], re.M))


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_conda_has_the_same_range(requirement):
    conda = conda_requirements()
    name = CONDA_NAMES.get(requirement.name, requirement.name)
    assert name in conda, f"environment.yml lacks {name}"
    assert SpecifierSet(conda[name]) == requirement.specifier


def test_conda_has_nothing_else():
    names = {CONDA_NAMES.get(r.name, r.name) for r in DIRECT}
    assert set(conda_requirements()) - names == {"python", "pip"}


def test_conda_installs_the_package_itself_from_free_channels():
    text = (ROOT / "environment.yml").read_text()
    assert re.search(r"- pip:\n      - -e \.\n", text)
    assert re.findall(r"^  - (\S+)$", text.partition("channels:")[2].partition("dependencies:")[0], re.M) == [
        "conda-forge",
        "nodefaults",
    ]


def test_python_ranges_agree():
    assert SpecifierSet(conda_requirements()["python"]) == SpecifierSet(PROJECT["requires-python"])
    assert "sys.version_info < (3, 11)" in MAKEFILE and PROJECT["requires-python"] == ">=3.11"


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_pin_satisfies_its_range(requirement):
    pins = [line for line in PIN_LINES if canonicalize_name(line.split("==")[0]) == requirement.name]
    assert len(pins) == 1, f"{requirement.name} needs one line in constraints.txt, not {len(pins)}"
    assert requirement.specifier.contains(pins[0].split("==")[1])


def test_pins_are_exact_canonical_and_sorted():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line) for line in PIN_LINES)
    assert len(PINS) == len(PIN_LINES)
    assert PIN_LINES == sorted(PIN_LINES)
    assert all(Version(version).local is None for version in PINS.values())


def test_every_installed_dependency_is_pinned():
    """Follow the requirements of what is installed; a GPU build's own packages are torch's affair."""
    todo, seen = [r.name for r in DIRECT], set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton", "intel-", "pytorch-triton")):
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        seen.add(name)
        requirements = map(Requirement, required)
        todo += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert {"numpy", "sympy"} <= seen
    here_only = {"colorama", "appnope", "pywin32", "pywinpty"}  # Windows and macOS
    assert seen - here_only - set(PINS) == set()


def test_pins_fit_the_oldest_python():
    """Debian 12 has Python 3.11.2: a release that asks for 3.11.5 cannot be installed there."""
    for name, version in PINS.items():
        try:
            installed = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed["Version"].partition("+")[0] == version:
            wanted = SpecifierSet(installed["Requires-Python"] or "")
            assert wanted.contains("3.11.0"), f"{name}=={version} asks for Python {wanted}"


def make_commands() -> list[str]:
    """The pip commands of the Makefile's learner path, as one would type them."""
    commands = re.findall(r"^\t\$\(BIN\)/python -m (pip install .*)$", MAKEFILE, re.M)
    commands = [c.replace("$(TORCH)", f"torch=={PINS['torch']}") for c in commands]
    return [re.sub(r" \$\(if .*", "", c) for c in commands if "[test]" not in c]


def test_makefile_installs_torch_first():
    assert make_commands() == [
        f"pip install -c constraints.txt torch=={PINS['torch']}",
        'pip install -c constraints.txt -e ".[notebook]"',
    ]


def test_readme_tells_the_same_commands():
    readme = (ROOT / "README.md").read_text()
    for command in [*make_commands(), "make lab", "make test", "python -m tinydiff doctor"]:
        assert command in readme, f"README.md lacks the command: {command}"
