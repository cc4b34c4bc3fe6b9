"""Each rule of tools/lint_notebooks.py refuses a notebook that breaks it, and the stored ones break none."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import lint_notebooks
from lint_notebooks import RULES, lint, main, notebooks


def good():
    """A notebook that keeps every rule, with words that look a little like trouble."""
    said = "t=0.5 s=0.25, 4 steps of 2\nand/or 1/2/3, 3 x 3\nhttps://example.org/a/b\nratio 0x1F\n"
    cells = [
        new_markdown_cell("Text; with a semicolon;"),
        new_code_cell("x = 1;\nx  # a comment;", outputs=[new_output("stream", name="stdout", text=said)]),
        new_code_cell("plt.show()", outputs=[new_output("display_data", data={"image/png": "aGk="})]),
        new_code_cell(""),
        new_code_cell("!pip install tinydiff", metadata={"tags": ["nbval-skip"]}),
        new_code_cell(
            "1 / 0",
            metadata={"tags": ["raises-exception"]},
            outputs=[new_output("error", ename="ZeroDivisionError", evalue="division by zero")],
        ),
    ]
    nb = new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for count, index in enumerate((1, 2, 5), 1):
        nb.cells[index].execution_count = count
    return nb


def rules_broken(nb, path) -> set[str]:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(nb))
    return {line.split(": ")[2] for line in lint(path)}


def says(text):
    return lambda nb: nb.cells[1].outputs.append(new_output("stream", name="stdout", text=text))


def shows(kind, value):
    return lambda nb: nb.cells[1].outputs.append(new_output("display_data", data={kind: value}))


def source(text):
    return lambda nb: nb.cells[1].update(source=text)


def counts(value):
    return lambda nb: nb.cells[1].update(execution_count=value)


BREAKS = [
    ("semicolon", source("plt.plot(x);")),
    ("semicolon", source("plt.plot(x);  # draw\n\n# end")),
    ("magic", source("%timeit f(x)")),
    ("magic", source("%%time\nf(x)")),
    ("magic", source("x = 1\n!pip install x")),
    ("magic", source("%pip install x")),
    ("display-update", source("from IPython.display import clear_output")),
    ("display-update", source("h = display(1, display_id=True)")),
    ("address", shows("text/plain", "<Line2D at 0x7f3a1c2b>")),
    ("path", says("saved to /home/me/run.pt\n")),
    ("path", shows("text/plain", "PosixPath('/srv/data/a')")),
    ("path", says("C:\\Users\\me\n")),
    ("path", says("~/data\n")),
    ("kernel-pid", says("ipykernel_4242/1.py:1: UserWarning\n")),
    ("time", says("took 3.2 s\n")),
    ("time", says("97.44it/s\n")),
    ("time", says("CPU times: user\n")),
    ("time", says("elapsed 0:01:12\n")),
    ("time", shows("text/html", "<b>12 ms</b>")),
    ("stderr", lambda nb: nb.cells[1].outputs.append(new_output("stream", name="stderr", text="warning\n"))),
    ("widget", shows("application/vnd.jupyter.widget-view+json", {"model_id": "1"})),
    ("widget", lambda nb: nb.metadata.update(widgets={"state": {}})),
    ("svg", shows("image/svg+xml", "<svg/>")),
    ("error", lambda nb: nb.cells[5].metadata.update(tags=[])),
    ("counts", counts(2)),
    ("counts", counts(None)),
    ("kernel", lambda nb: nb.metadata.kernelspec.update(name="tinydiff")),
    ("kernel", lambda nb: nb.metadata.pop("kernelspec")),
    ("size", shows("image/png", "A" * 1_000_001)),
    ("ids", lambda nb: nb.cells[1].pop("id")),
    ("ids", lambda nb: nb.cells[1].update(id=nb.cells[2].id)),
]


@pytest.mark.parametrize("rule, spoil", BREAKS, ids=[f"{rule}{i}" for i, (rule, _) in enumerate(BREAKS)])
def test_a_broken_rule_is_reported_and_only_that(rule, spoil, tmp_path):
    nb = good()
    spoil(nb)
    assert rules_broken(nb, tmp_path / "01_a.ipynb") == {rule}


def test_a_good_notebook_passes(tmp_path, capsys):
    assert rules_broken(good(), tmp_path / "01_a.ipynb") == set()
    assert main([str(tmp_path / "01_a.ipynb")]) == 0
    assert "nothing to mend" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["exercises", "masters"])
def test_exercises_and_masters_are_stored_unrun(folder, tmp_path):
    path, nb = tmp_path / folder / "01_a.ipynb", good()
    assert rules_broken(nb, path) == {"unrun"}
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    assert rules_broken(nb, path) == set()


def test_a_stored_time_can_be_allowed(tmp_path):
    nb = good()
    says("training took 120 s on one GPU\n")(nb)
    nb.cells[1].metadata["tags"] = ["allow-time"]
    assert rules_broken(nb, tmp_path / "01_a.ipynb") == set()


def test_every_rule_has_a_notebook_that_breaks_it():
    assert {rule for rule, _ in BREAKS} | {"unrun"} == set(RULES)


def test_main_reports_and_fails(tmp_path, capsys):
    nb = good()
    says("/home/me/x\n")(nb)
    path = tmp_path / "01_a.ipynb"
    nbformat.write(nb, path)
    assert main([str(path)]) == 1
    assert "cell 2: path: an absolute path" in capsys.readouterr().out


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_stored_notebook(path):
    assert lint(path) == []


def test_there_are_stored_notebooks():
    assert notebooks(), f"no notebook below {lint_notebooks.NOTEBOOKS}"
