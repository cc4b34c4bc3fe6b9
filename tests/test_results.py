"""Results are written whole or not at all, say how they were made, and are found by name."""

import json

import pytest

from tinydiff import results


def test_round_trip(tmp_path):
    made = results.provenance("python -m something") | {"rows": [{"seed": 0, "distance": 0.5}]}
    path = results.save_results("study", made, folder=tmp_path / "new")
    assert results.load_results("study", folder=tmp_path / "new") == made
    assert path.name == "study.json" and [p.name for p in path.parent.iterdir()] == ["study.json"]
    assert made["command"] == "python -m something" and made["versions"]["torch"] and made["hardware"]["cpu"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    results.save_results("study", {"rows": [1]}, folder=tmp_path)
    with pytest.raises(TypeError):
        results.save_results("study", {"rows": [object()]}, folder=tmp_path)
    assert results.load_results("study", folder=tmp_path) == {"rows": [1]}


def test_a_missing_name_lists_what_there_is(tmp_path):
    results.save_results("a", {}, folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="no results 'b'; there are: a"):
        results.load_results("b", folder=tmp_path)


def test_shipped_studies_say_how_they_were_made():
    shipped = sorted(results.FOLDER.glob("[0-9]*.json"))
    assert shipped
    for path in shipped:
        made = json.loads(path.read_text())
        assert {"command", "seeds", "hardware", "versions", "seconds"} <= made.keys(), path.name
        # "rows", or in a study of several parts a list of rows for each
        assert any(isinstance(part, list) and part and isinstance(part[0], dict) for part in made.values()), path.name
