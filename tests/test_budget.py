"""The account of CPU seconds really measures, and a run fails when it should."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import budget

ROOT = Path(__file__).parent.parent
BURN = "import time\nwhile time.process_time() < {}:\n    pass"


@pytest.mark.parametrize(
    "measured, allowed, fails",
    [(2, 1, False), (4.9, 1, False), (5.1, 1, True), (30, 10, False), (30.1, 10, True), (0.1, None, True)],
)
def test_verdict(measured, allowed, fails):
    assert (budget.verdict(measured, allowed) != "ok") == fails


def test_table_counts_faults_and_holds_exercises_to_their_solution():
    budgets = {"01_a.ipynb": 10.0, "solutions/01_a.ipynb": 2.0}
    measured = {"01_a.ipynb": 11.0, "exercises/01_a.ipynb": 7.0, "02_b.ipynb": 1.0}
    lines, faults = budget.table(measured, budgets)
    assert faults == 2
    assert "ok" in lines[1] and "no entry" in lines[2] and "3 times" in lines[3]


def test_write_updates_what_changed_and_forgets_what_is_gone(tmp_path):
    for name in ("a.ipynb", "b.ipynb", "c.ipynb"):
        (tmp_path / name).touch()
    budget.write(tmp_path, {"a.ipynb": 10.04, "b.ipynb": 1.0})
    assert budget.read(tmp_path) == {"a.ipynb": 10.0, "b.ipynb": 1.0}
    (tmp_path / "b.ipynb").unlink()
    budget.write(tmp_path, {"a.ipynb": 12.0, "c.ipynb": 3.0})  # a: within a quarter, stays
    assert budget.read(tmp_path) == {"a.ipynb": 10.0, "c.ipynb": 3.0}
    budget.write(tmp_path, {"a.ipynb": 13.0})
    assert budget.read(tmp_path) == {"a.ipynb": 13.0, "c.ipynb": 3.0}
    assert [p.name for p in tmp_path.glob("budget*")] == ["budget.toml"]


def test_watch_measures_cpu_and_not_waiting(tmp_path):
    def collector(name, code):
        def run():
            subprocess.run([sys.executable, "-c", code], check=True)

        return SimpleNamespace(path=tmp_path / name, setup=lambda: None, teardown=run)

    watch = budget.Watch(tmp_path)
    burns, sleeps = (
        collector("burns.ipynb", BURN.format(0.8)),
        collector("sleeps.ipynb", "import time; time.sleep(0.8)"),
    )
    for one in (burns, sleeps):
        watch.attach(one)
        one.setup()
        one.teardown()
    assert 0.8 <= watch.measured["burns.ipynb"] < 2.0
    assert watch.measured["sleeps.ipynb"] < 0.6


def run_nbval(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_pytest_run_measures_its_kernels_and_fails_without_an_entry(tmp_path):
    """A copy of the project's settings with one busy notebook, run as a reader would run it."""
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("tools", "tests", "notebooks/masters"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "budget.py", tmp_path / "tools")
    shutil.copy(ROOT / "tests" / "nbval_sanitize.cfg", tmp_path / "tests")
    scale = "import os\nassert os.environ['TINYDIFF_SCALE'] == 'laptop'"
    nb = new_notebook(cells=[new_code_cell(scale), new_code_cell(BURN.format(2.0))])
    nb.metadata["kernelspec"] = {"name": "no-such-kernel", "display_name": "?"}
    nbformat.write(nb, tmp_path / "notebooks" / "01_busy.ipynb")
    broken = new_notebook(cells=[new_code_cell("1 / 0")])
    nbformat.write(broken, tmp_path / "notebooks" / "masters" / "01_never_collected.ipynb")

    without = run_nbval(tmp_path)
    assert without.returncode == 1 and "2 passed" in without.stdout, without.stdout
    assert "no entry in notebooks/budget.toml" in without.stdout
    (tmp_path / "notebooks" / "budget.toml").write_text('"01_busy.ipynb" = 2.5\n')
    passing = run_nbval(tmp_path / "notebooks")
    assert passing.returncode == 0 and "2 passed" in passing.stdout, passing.stdout
    line = next(line for line in passing.stdout.splitlines() if line.startswith("01_busy.ipynb"))
    assert 2.0 <= float(line.split()[1]) < 5.0
