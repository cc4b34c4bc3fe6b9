"""The study of shipped students, in a few images: each is asked as often as it says, and none twice."""

from dataclasses import replace

import pytest
import torch

from tinydiff import results
from tinydiff.recipes import fashion_few, fashion_latent
from tinydiff.recipes import study_fashion_few as study


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "SAMPLES", 20)
    monkeypatch.setattr(study, "SEEDS", (0, 1))
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "save_results", lambda n, r: results.save_results(n, r, tmp_path))
    monkeypatch.setattr(study, "load_results", lambda n: results.load_results(n, tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def network():
    return fashion_latent.denoiser(replace(fashion_latent.Settings(), width=16, depth=1, heads=2, device="cpu"))


def counting(d, rows):
    """Adds the batch size to rows whenever the network is asked; returns what ends it."""
    return d.net.register_forward_hook(lambda net, args, out: rows.append(len(out)))


@pytest.mark.parametrize("method", study.METHODS)
def test_each_is_asked_as_often_as_it_says(small, network, method):
    asked, rows = [], []
    hook = counting(network, rows)
    found = study.row(method, lambda name: asked.append(name) or network)
    hook.remove()
    assert rows == 2 * [20] * sum(fashion_few.CALLS) and sum(fashion_few.CALLS) == 15
    assert len(set(asked)) == (4 if method == "PD" else 1)
    assert all(len(found[measure]) == 2 and len(found[measure][0]) == 4 for measure in study.MEASURES)


def test_the_teacher_is_guided(monkeypatch):
    """Two passes a step: of 4 images in 3 steps, 24 rows; and with guidance the images differ from those without."""
    d, rows = study.load_pretrained("fashion-latent"), []
    counting(d, rows)
    monkeypatch.setattr(study, "load_pretrained", lambda name: d)
    x = study.teacher(4, 3, 0)
    assert sum(rows) == 24 and x.shape == (4, 1, 28, 28) and x.abs().max() <= 1
    plain = fashion_few.Settings(guidance=1.0)
    monkeypatch.setattr(fashion_few, "Settings", lambda: plain)
    assert (study.teacher(4, 3, 0) - x).abs().mean() > 0.01


def test_it_goes_on_where_it_stopped(small, network, monkeypatch):
    done = []
    row = study.row
    monkeypatch.setattr(study, "row", lambda m: done.append(m) or row(m, lambda name: network))
    monkeypatch.setattr(study, "teacher", lambda n, calls, seed: torch.zeros(n, 1, 28, 28))
    monkeypatch.setattr(study, "METHODS", {m: study.METHODS[m] for m in ("DDIM", "PD")})
    study.main()
    study.main()
    found = results.load_results("23_fashion", small)
    assert done == ["DDIM", "PD"] and [r["method"] for r in found["rows"]] == done
    assert len(found["teacher"]["fd"]) == 2 and found["seconds"] >= sum(r["seconds"] for r in found["rows"])
