"""The list of deliberate faults fits the library as it is: `make mutants` tries them, which takes minutes."""

import ast

import pytest

import mutants

LISTED = mutants.read()


def test_there_are_many_and_each_has_its_name():
    assert len(LISTED) >= 36 and len({m.name for m in LISTED}) == len(LISTED)
    assert {m.file for m in LISTED} >= {
        f"tinydiff/{name}.py"
        for name in "targets denoisers exact samplers/base losses guidance training metrics/samples".split()
    }


@pytest.mark.parametrize("mutant", LISTED, ids=lambda m: m.name)
def test_a_mutant_fits(mutant):
    text = mutant.text(mutants.ROOT)  # its text occurs exactly once
    assert mutant.find != mutant.replace and ast.dump(ast.parse(text)) != ast.dump(
        ast.parse((mutants.ROOT / mutant.file).read_text())
    )
    assert mutant.tests and all((mutants.ROOT / test).is_file() for test in mutant.tests)


def test_a_text_that_is_gone_or_not_alone_is_refused():
    for find in ("no such text", "return"):
        mutant = mutants.Mutant("name", "tinydiff/guidance.py", find, "", [])
        with pytest.raises(ValueError, match=r"name: the text to replace occurs \d+ times in tinydiff/guidance.py"):
            mutant.text(mutants.ROOT)
