"""Do the unit tests notice a fault? `python tools/mutants.py [names...]`, or `make mutants` for all.

tools/mutants.toml lists deliberate faults, each a text in a file of the library and what to put in its place. One at a
time they go into a copy of the tree, and the named test files run there until one test fails; if none does, all unit
tests run. The table says which test caught which fault.

Returns 1 if a fault survives: then a test is missing. Returns 2 if a text does not occur exactly once, or if the tests
fail before there is any fault: then nothing is known.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
TIMEOUT = 600.0  # seconds; a fault that makes a test run for ever is caught as well
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
    """The mutants of tools/mutants.toml."""
    return [Mutant(**entry) for entry in tomllib.loads((root / "tools" / "mutants.toml").read_text())["mutant"]]


@dataclass(frozen=True)
class Run:
    """What a run of pytest came to: the tests that failed, or None if it was stopped for taking too long."""

    failed: list[str] | None
    output: str


def run_tests(folder: Path, *arguments: str, keep_bytecode: bool = False) -> Run:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:nbval", "-p", "no:cacheprovider", "--tb=no", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "" if keep_bytecode else "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Run(None, f"more than {TIMEOUT:g} seconds")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode and not failed:
        failed = [f"pytest itself, status {done.returncode}"]
    return Run(failed, done.stdout + done.stderr)


def caught_by(mutant: Mutant, folder: Path) -> str | None:
    """The first test that fails with the fault in it, or None. The folder is left as it was."""
    file = folder / mutant.file
    kept = file.with_suffix(".kept")
    shutil.copy2(file, kept)
    try:
        file.write_text(mutant.text(folder))
        for tests in (mutant.tests, ["tests"]):
            run = run_tests(folder, "-x", *tests)
            if run.failed is None:
                return run.output
            if run.failed:
                return run.failed[0]
    finally:
        shutil.move(kept, file)  # with its old time, so that the bytecode is still right
    return None


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
