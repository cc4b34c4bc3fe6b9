"""Exercise and solution notebooks come from one master; unsolved exercises fail cleanly, solutions do not."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import exercises
import refresh

NOTEBOOKS = refresh.NOTEBOOKS
CLEAN = {"NotImplementedError", "CheckFailed"}

SOLUTION = """def double(x):
    \"\"\"Twice x.\"\"\"
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION"""


def master():
    check = {"tags": ["check", "raises-exception"]}
    cells = [
        new_markdown_cell("Write `double`.\n\n### BEGIN is no marker in text"),
        new_code_cell(SOLUTION, execution_count=7),
        new_code_cell("assert double(2) == 4\nprint('right')", metadata=check, id="check-1"),
        new_code_cell("print(double(3))", metadata={"tags": ["uses-solution"]}, id="uses"),
        new_code_cell("print('goes on')", outputs=[new_output("stream", name="stdout", text="old")]),
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "mine", "display_name": "Mine"}})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "masters").mkdir()
    nbformat.write(master(), tmp_path / "masters" / "01_toy.ipynb")
    return tmp_path


def read(folder, variant):
    return nbformat.read(folder / variant / "01_toy.ipynb", as_version=4)


def change(path, index, source):
    nb = nbformat.read(path, as_version=4)
    nb.cells[index].source = source
    nbformat.write(nb, path)


# --- the generator, on a made-up master -------------------------------------------------------


def test_exercise_has_the_stub_and_solution_has_the_code(folder):
    assert exercises.main([], folder) == 0
    exercise, solution = read(folder, "exercises"), read(folder, "solutions")
    head = 'def double(x):\n    """Twice x."""\n    '
    assert exercise.cells[1].source == head + 'raise NotImplementedError("your code here")'
    assert solution.cells[1].source == head + "y = x + x\n    return y"
    ids = [cell.id for cell in nbformat.read(folder / "masters" / "01_toy.ipynb", as_version=4).cells]
    for nb in (exercise, solution):
        nbformat.validate(nb)
        assert [cell.id for cell in nb.cells] == ids
        assert nb.cells[0].source == master().cells[0].source
        assert nb.metadata.kernelspec.name == "python3"
        assert all(c.execution_count is None and not c.outputs for c in nb.cells if c.cell_type == "code")


def test_only_exercises_may_fail(folder):
    exercises.main([], folder)
    tags = {v: [c.metadata.get("tags") for c in read(folder, v).cells[2:]] for v in ("exercises", "solutions")}
    assert tags["exercises"] == [["check", "raises-exception"], ["uses-solution", "raises-exception"], None]
    assert tags["solutions"] == [["check"], ["uses-solution"], None]


@pytest.mark.parametrize(
    "source, expected",
    [
        (
            "### BEGIN SOLUTION\nx = 1\n### END SOLUTION\ny = 2",
            'raise NotImplementedError("your code here")\ny = 2',
        ),
        (
            "if a:\n\t### BEGIN SOLUTION\n\tb\n\t### END SOLUTION",
            'if a:\n\traise NotImplementedError("your code here")',
        ),
    ],
)
def test_stub_takes_the_indentation_of_its_region(source, expected):
    assert exercises.regions(source, exercises.STUB) == expected


@pytest.mark.parametrize(
    "source, message",
    [
        ("### BEGIN SOLUTION\nx", "without END"),
        ("x\n### END SOLUTION", "line 2: END SOLUTION without BEGIN"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION", "inside a solution"),
        ("### BEGIN HIDDEN TESTS", "not a marker"),
        ("x = 1  ### BEGIN SOLUTION", "not a marker"),
    ],
)
def test_wrong_markers_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        exercises.regions(source, exercises.STUB)


def test_error_names_file_and_cell(folder):
    change(folder / "masters" / "01_toy.ipynb", 1, "### BEGIN SOLUTION")
    with pytest.raises(ValueError, match="01_toy.ipynb: cell 1: BEGIN SOLUTION without END"):
        exercises.main([], folder)


def test_check_finds_edits_and_ignores_outputs(folder, capsys):
    assert exercises.main(["--check"], folder) == 1  # nothing generated yet
    exercises.main([], folder)
    before = (folder / "exercises" / "01_toy.ipynb").read_bytes()
    assert exercises.main(["--check"], folder) == 0
    exercises.main([], folder)
    assert (folder / "exercises" / "01_toy.ipynb").read_bytes() == before
    path = folder / "solutions" / "01_toy.ipynb"
    refresh.main([str(path)], folder)
    assert exercises.main(["--check"], folder) == 0
    change(path, 1, "def double(x):\n    return 3 * x")
    capsys.readouterr()
    assert exercises.main(["--check"], folder) == 1
    said = capsys.readouterr().out
    assert "-    return 3 * x" in said and "+    y = x + x" in said and "stored solutions/01_toy.ipynb" in said
    (folder / "masters" / "01_toy.ipynb").unlink()
    assert exercises.main(["--check"], folder) == 1
    assert "has no master" in capsys.readouterr().out


def test_regenerating_keeps_outputs_of_unchanged_cells(folder):
    exercises.main([], folder)
    path = folder / "solutions" / "01_toy.ipynb"
    refresh.main([str(path)], folder)
    change(folder / "masters" / "01_toy.ipynb", 4, "print('goes on, changed')")
    exercises.main([], folder)
    cells = read(folder, "solutions").cells
    assert cells[2].outputs[0].text == "right\n" and cells[2].execution_count == 2
    assert cells[4].outputs == [] and cells[4].execution_count is None


def test_unknown_name_is_refused(folder):
    with pytest.raises(SystemExit):
        exercises.main(["02_other"], folder)


# --- refreshing -------------------------------------------------------------------------------


def test_refresh_stores_what_is_equal_on_every_machine(tmp_path):
    path = tmp_path / "01_a.ipynb"
    cells = [
        new_code_cell("import os, sys\nprint(os.environ['TINYDIFF_SCALE'], os.path.basename(os.getcwd()))"),
        new_code_cell("print('a'); print('noise', file=sys.stderr); print('b')"),
        new_code_cell("", execution_count=4),
        new_code_cell("no_such_program", metadata={"tags": ["nbval-skip"]}),
        new_code_cell("1 / 0", metadata={"tags": ["raises-exception"], "execution": {"a": "b"}}),
        new_code_cell("6 * 7"),
    ]
    nbformat.write(new_notebook(cells=cells, metadata={"widgets": {"state": {}}}), path)
    assert refresh.main([str(path)], tmp_path) == 0
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert [cell.execution_count for cell in nb.cells] == [1, 2, None, None, 3, 4]
    assert nb.cells[0].outputs[0].text == f"laptop {tmp_path.name}\n"
    assert [out.text for out in nb.cells[1].outputs] == ["a\nb\n"]
    assert nb.cells[4].outputs[0].traceback == ["ZeroDivisionError: division by zero"]
    assert nb.cells[4].metadata == {"tags": ["raises-exception"]}
    assert nb.cells[5].outputs[0].execution_count == 4
    assert nb.metadata.kernelspec.name == "python3" and "widgets" not in nb.metadata
    assert "version" not in nb.metadata.language_info
    assert '"01_a.ipynb" = ' in (tmp_path / "budget.toml").read_text()
    first = path.read_bytes()
    refresh.main([str(path)], tmp_path)
    assert path.read_bytes() == first


def test_refresh_leaves_a_failing_notebook_as_it_was(tmp_path, capsys):
    path = tmp_path / "01_a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("print(1)"), new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    assert refresh.main([str(path)], tmp_path) == 1
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["01_a.ipynb"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_refresh_clears_exercises_instead_of_running_them(folder):
    exercises.main([], folder)
    path = folder / "exercises" / "01_toy.ipynb"
    before = path.read_bytes()
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].execution_count = 3
    nb.cells[4].outputs = [new_output("stream", name="stdout", text="a learner's run\n")]
    nbformat.write(nb, path)
    assert refresh.main([str(path)], folder) == 0
    assert path.read_bytes() == before


# --- unsolved and solved ----------------------------------------------------------------------


def complaints(nb, folder) -> list[str]:
    """Run an unsolved exercise notebook; what is not as it should be."""
    refresh.execute(nb, folder, allow_errors=True)
    found = []
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        tags = set(cell.metadata.get("tags", []))
        errors = [out.ename for out in cell.outputs if out.output_type == "error"]
        if "check" in tags and not (errors and set(errors) <= CLEAN):
            found.append(f"cell {index}: the check of an unsolved exercise gave {errors or 'no error'}")
        if not tags & exercises.NEEDY and errors:
            found.append(f"cell {index}: {errors} in a cell without a tag")
    return found


def test_unsolved_toy_fails_cleanly_and_a_careless_check_is_found(folder):
    exercises.main([], folder)
    assert complaints(read(folder, "exercises"), folder) == []
    nb = read(folder, "exercises")
    nb.cells[2].source = "try:\n    double(2)\nexcept NotImplementedError:\n    print('right')"
    nb.cells[4].source = "double(2)"
    found = complaints(nb, folder)
    assert len(found) == 2 and "cell 2: the check" in found[0] and "cell 4" in found[1]


def stored(variant):
    return sorted((NOTEBOOKS / variant).glob("*.ipynb"))


def test_there_is_a_master():
    assert stored("masters"), "notebooks/masters/ holds no master"


def test_stored_notebooks_are_those_of_the_masters(capsys):
    assert exercises.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", stored("exercises"), ids=lambda p: p.stem)
def test_unsolved_exercise_fails_cleanly(path):
    nb = nbformat.read(path, as_version=4)
    assert any("check" in cell.metadata.get("tags", []) for cell in nb.cells)
    assert complaints(nb, path.parent) == []


@pytest.mark.parametrize("path", stored("solutions"), ids=lambda p: p.stem)
def test_stored_solution_holds_no_error(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
    assert not [cell for cell in code if "raises-exception" in cell.metadata.get("tags", [])]
    checks = [cell for cell in code if "check" in cell.metadata.get("tags", [])]
    assert checks and all(cell.execution_count and cell.outputs for cell in checks)
