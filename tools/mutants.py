"""Do the unit tests notice a fault? `python tools/mutants.py [names...]`, or `make mutants` for all.

tools/mutants/*.toml list deliberate faults, each a text in a file of the library and what to put in its place. One at a
time they go into a copy of the tree, and the named test files run there until one test fails. If none does, all unit
tests run, and one counts if, alone, it fails with the fault and passes without. The table says which test caught what.

Returns 1 if a fault survives: then a test is missing. Returns 2 if a text does not occur exactly once, or if the tests
fail before there is any fault: then nothing is known.
"""

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
TIMEOUT = 600.0  # seconds; a fault that makes a test run for ever is caught as well
# A process that has imported what takes long, and no part of tinydiff, forks one for each run of pytest.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["torch", "pytest", "hypothesis", "scipy.stats", "sklearn.svm"]
    + ["diffusers.schedulers.scheduling_ddpm", "diffusers.schedulers.scheduling_ddim"]
)
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist")


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    find: str
    replace: str
    tests: list[str]

    def text(self, root: Path) -> str:
        """The file with the fault. Raises ValueError unless `find` occurs exactly once."""
        text = (root / self.file).read_text()
        if (times := text.count(self.find)) != 1:
            raise ValueError(f"{self.name}: the text to replace occurs {times} times in {self.file}:\n{self.find}")
        return text.replace(self.find, self.replace)


def read(root: Path = ROOT) -> list[Mutant]:
    """The mutants of tools/mutants/*.toml."""
    files = sorted((root / "tools" / "mutants").glob("*.toml"))
    return [Mutant(**entry) for file in files for entry in tomllib.loads(file.read_text())["mutant"]]


@dataclass(frozen=True)
class Run:
    """What a run of pytest came to: the tests that failed, or None if it was stopped for taking too long."""

    failed: list[str] | None
    output: str


def run_tests(folder: Path, *arguments: str, keep_bytecode: bool = False, timeout: float = TIMEOUT) -> Run:
    with tempfile.NamedTemporaryFile("r", suffix=".txt") as output:
        process = FORK.Process(target=_pytest, args=(str(folder), output.name, list(arguments), keep_bytecode))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            return Run(None, f"more than {timeout:g} seconds")
        text = output.read()
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    if process.exitcode and not failed:
        failed = [f"pytest itself, status {process.exitcode}"]
    return Run(failed, text)


def _pytest(folder: str, output: str, arguments: list[str], keep_bytecode: bool) -> None:
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = not keep_bytecode

    import pytest

    quiet = ["-q", "--tb=no", "-p", "no:nbval", "-p", "no:cacheprovider"]
    imported = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins, by the process that forked this one
    sys.exit(pytest.main([*quiet, *imported, *arguments]))


def caught_by(mutant: Mutant, folder: Path) -> str | None:
    """The first test that fails with the fault in it, or None. The folder is left as it was."""
    with fault(mutant, folder):
        run = run_tests(folder, "-x", *mutant.tests)
    if run.failed is None:
        return run.output
    if run.failed:
        return run.failed[0]
    # tests that do not fail because of the fault, and the one that only sees that its text is gone
    passed_over: list[str] = ["--ignore", "tests/test_mutants.py"]
    while True:
        with fault(mutant, folder):
            run = run_tests(folder, "-x", *passed_over, "tests", timeout=3600.0)
            if not run.failed:
                return run.output if run.failed is None else None
            test = run.failed[0]
            again = run_tests(folder, test).failed
        if again != [] and run_tests(folder, test).failed == []:
            return test
        passed_over += ["--deselect", test] if "::" in test else ["--ignore", test]


@contextmanager
def fault(mutant: Mutant, folder: Path) -> Iterator[None]:
    """Inside, the copy has the fault; afterwards the file is back, with its old time, so that bytecode stays right."""
    file = folder / mutant.file
    kept = file.with_suffix(".kept")
    shutil.copy2(file, kept)
    try:
        file.write_text(mutant.text(folder))
        yield
    finally:
        shutil.move(kept, file)


def main(names: list[str]) -> int:
    mutants = read()
    if unknown := set(names) - {m.name for m in mutants}:
        print(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(m.name for m in mutants)}")
        return 2
    mutants = [m for m in mutants if not names or m.name in names]
    try:
        for mutant in mutants:
            mutant.text(ROOT)
    except ValueError as problem:
        print(problem)
        return 2

    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folders: Queue[Path] = Queue()
        first = Path(temporary) / "0"
        shutil.copytree(ROOT, first, ignore=shutil.ignore_patterns(*LEFT_OUT))
        tests = sorted({test for m in mutants for test in m.tests})
        print(f"without a fault: {' '.join(tests)}", flush=True)
        if (clean := run_tests(first, *tests, keep_bytecode=True)).failed != []:
            print(clean.output)
            return 2
        for i in range(1, WORKERS):
            shutil.copytree(first, Path(temporary) / str(i))
        for i in range(WORKERS):
            folders.put(Path(temporary) / str(i))

        def attempt(mutant: Mutant) -> tuple[str | None, float]:
            folder, start = folders.get(), time.perf_counter()
            try:
                return caught_by(mutant, folder), time.perf_counter() - start
            finally:
                folders.put(folder)

        survivors, width = [], max(len(m.name) for m in mutants)
        with ThreadPoolExecutor(WORKERS) as pool:
            for i, (mutant, (test, seconds)) in enumerate(zip(mutants, pool.map(attempt, mutants), strict=True), 1):
                said = test or "SURVIVES"
                print(f"{i:3}/{len(mutants)}  {mutant.name:{width}}  {seconds:5.1f} s  {said}", flush=True)
                survivors += [] if test else [mutant.name]

    print(f"{len(mutants) - len(survivors)} of {len(mutants)} faults caught")
    if survivors:
        print(f"no test notices: {', '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
