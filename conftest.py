"""Settings for unit tests and for `pytest --nbval`, which needs no other options.

Works from the root and from inside notebooks/, and with `-p no:nbval` too.
"""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import budget

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: more threads only wait for each other
os.environ.setdefault("TINYDIFF_SCALE", "laptop")  # kernels inherit it

# Every annotated function of the library checks its arguments' shapes while unit tests run.
install_import_hook("tinydiff", "beartype.beartype")

collect_ignore_glob = ["notebooks/masters/*"]  # sources of the exercises: their outputs are not stored

ROOT = Path(__file__).parent
# Compared neither: pictures in other formats, and stderr with its progress bars.
SKIP = ("stderr", "text/html", "image/svg+xml", "image/gif", "video/mp4", "application/pdf")
WATCH = pytest.StashKey[budget.Watch]()


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, whatever the environment says; a test that sets another number does not pass it on."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_configure(config):
    config.stash[WATCH] = budget.Watch(ROOT / "notebooks")
    option = config.option
    if getattr(option, "nbval", False) or getattr(option, "nbval_lax", False):
        if not option.nbval_kernel_name:
            option.nbval_current_env = True  # this Python, whatever kernel name a notebook stores
        if option.nbval_cell_timeout == 2000:  # nbval's default: a dead kernel would cost half an hour
            option.nbval_cell_timeout = 300.0
        if option.nbval_sanitize_with is None:
            option.nbval_sanitize_with = str(ROOT / "tests" / "nbval_sanitize.cfg")


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # nbval's collector of one notebook
        collector.skip_compare += SKIP
        collector.config.stash[WATCH].attach(collector)


def pytest_sessionfinish(session, exitstatus):
    measured = session.config.stash[WATCH].measured
    _, faults = budget.table(measured, budget.read(ROOT / "notebooks"))
    if faults and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    measured = config.stash[WATCH].measured
    if not measured:
        return
    lines, faults = budget.table(measured, budget.read(ROOT / "notebooks"))
    terminalreporter.section("CPU seconds of notebooks")
    terminalreporter.write_line("\n".join(lines), red=bool(faults))
    if faults:
        terminalreporter.write_line(f"{faults} notebook(s) outside the budget: the run fails.", red=True)
