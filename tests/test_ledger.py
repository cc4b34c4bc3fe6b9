"""The ledger: the README shows the file's numbers, calls are counted, and every notebook has its rows."""

import json
import re
from pathlib import Path

import pytest
import torch

import tinydiff as td
from tinydiff.recipes import ledger, systems
from tinydiff.results import load_results

ROOT = Path(__file__).parent.parent
WITHOUT_SYSTEMS = {"15"}  # metrics, and nothing that draws samples
NOTEBOOKS = [p for p in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")) if p.stem[:2] not in WITHOUT_SYSTEMS]


@pytest.fixture
def results():
    return load_results("ledger")


def test_the_readme_shows_the_numbers_of_the_file(results):
    readme = ledger.README.read_text(encoding="utf-8")
    assert ledger.table(results) in readme
    assert ledger.with_table(readme, results) == readme
    results["rows"][0]["runs"][0]["calls"] = results["rows"][0]["runs"][1]["calls"] = 12_345
    assert "12,345" in ledger.with_table(readme, results) and "12,345" not in readme


def test_the_file_holds_the_systems_of_the_code(results):
    assert [row["system"] for row in results["rows"]] == [system.name for system in ledger.SYSTEMS]
    assert [row["notebook"] for row in results["rows"]] == sorted(system.notebook for system in ledger.SYSTEMS)
    assert len({system.name for system in ledger.SYSTEMS}) == len(ledger.SYSTEMS)
    for row in results["rows"]:
        assert [run["seed"] for run in row["runs"]] == results["seeds"] == list(ledger.SEEDS)
        assert results["floors"][row["data"]] > 0
    assert {"command", "hardware", "versions", "seconds"} <= results.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_shows_its_rows(path, results):
    number = path.stem[:2]
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert sum(f'ledger.show("{number}")' in source for source in sources) == 1
    assert any(row["notebook"] == number for row in results["rows"])


def exact(seed: int) -> td.Denoiser:
    return systems.mixture(td.Cosine())


def test_calls_are_counted_and_the_exact_answer_is_near_the_floor():
    draw = lambda d, n, seed: td.sample(d, (n, 2), n=100, sampler=td.ddim, seed=seed)  # noqa: E731
    row = ledger.measure(systems.System("00", "exact", systems.MIXTURE, exact, draw), seeds=(0, 1, 2))
    assert [run["calls"] for run in row["runs"]] == [100] * 3
    # seeds 0 to 5 give 0.7 to 1.9 floors; what plain Langevin gives is beyond 900
    assert all(run["distance"] < 8 * systems.MIXTURE.floor() for run in row["runs"])
    wrong = systems.System("03", "Langevin", systems.MIXTURE, systems._exact_score, systems._walk(td.langevin))
    far = ledger.measure(wrong, seeds=(0,))["runs"][0]
    assert far["calls"] == 1000 and far["distance"] > 100 * systems.MIXTURE.floor()


def test_samples_that_are_not_finite_are_no_result():
    broken = systems.System("00", "broken", systems.MIXTURE, exact, lambda d, n, seed: torch.full((n, 2), torch.nan))
    with pytest.raises(FloatingPointError, match="broken: samples of seed 0"):
        ledger.measure(broken, seeds=(0,))


def test_a_table_of_one_notebook_and_of_none():
    run = dict(seed=0, calls=7, distance=0.5, training_seconds=0.0, sampling_seconds=0.25)
    results = dict(floors={"d": 0.1}, rows=[dict(notebook="09", system="s", data="d", n=10, runs=[run])])
    last = ledger.table(results, "09").splitlines()[-1]
    assert last == "| 09 | s | d | 7 | 0.5000 | 0.1000 | 5.0 (5.0) | none | 0.2 s |"
    assert len(ledger.table(results, "08").splitlines()) == 2
    with pytest.raises(ValueError, match="no rows of notebook '99'"):
        ledger.show("99")


def test_the_digits_are_compared_with_those_held_out():
    data = systems.DIGITS
    assert torch.equal(data.reference(0), td.datasets.digits_test().x0) and len(data.draw(360, seed=0)) == 360
    assert not torch.equal(data.draw(360, seed=0), data.draw(360, seed=1))


def test_an_unknown_system_is_told():
    with pytest.raises(SystemExit, match=re.escape("unknown: nothing; known: ")):
        ledger.main(only=("nothing",))
