"""The study of compute on Fashion-MNIST, in a few steps: what is kept, when, and that each is judged as what it is."""

from dataclasses import replace

import pytest

from tinydiff import results
from tinydiff.checkpoints import read_checkpoint
from tinydiff.recipes import fashion_few, fashion_latent
from tinydiff.recipes import study_fashion_compute as study
from tinydiff.recipes.base import GPU

TINY = fashion_few.Settings(batch_size=4, samples=20, first=4)


@pytest.fixture
def small(monkeypatch, tmp_path):
    d = fashion_latent.denoiser(replace(fashion_latent.Settings(), width=16, depth=1, heads=2, device="cpu"))
    monkeypatch.setattr(fashion_few, "load_pretrained", lambda name: d)
    monkeypatch.setattr(fashion_few, "settings", lambda method: TINY)
    monkeypatch.setattr(study, "RUNS", tmp_path)
    monkeypatch.setattr(study, "SEEDS", (0, 1))
    monkeypatch.setattr(study, "save_results", lambda n, r: results.save_results(n, r, tmp_path))
    return tmp_path


def test_each_is_trained_by_its_own_loss_and_length(small, monkeypatch):
    seen, train = [], fashion_few.train
    monkeypatch.setattr(fashion_few, "train", lambda method, s: seen.append((method, s)) or train(method, s))
    monkeypatch.setattr(study, "LARGE", {})
    for variant, (method, changed) in study.VARIANTS.items():
        monkeypatch.setitem(study.VARIANTS, variant, (method, changed | dict(steps=2, batch_size=4)))
        study.train(variant)
    assert [(m, s.weight, s.distance) for m, s in seen if m == "cd"] == [
        ("cd", "one", d) for d in ("huber", "huber", "squared", "features")
    ]
    kept = sorted(p.stem for p in small.iterdir())
    assert kept == sorted(
        ["cd", "cd-large", "cd-large-squared", "cd-large-features", "ect-large", "pd-large-1", "pd-large-2"]
    )
    assert read_checkpoint(study.path("CD large, squared"))[2]["settings"]["distance"] == "squared"


def test_the_large_ones_see_sixteen_times_as_much():
    of = {variant: changed["steps"] * changed["batch_size"] for variant, (_, changed) in study.VARIANTS.items()}
    assert of["CD large"] == 16 * of["CD"] == of["ECT large"] == 6 * of["PD large"]
    full = fashion_few.SCALES["full"]["cd"]
    assert GPU or (of["CD"] == full.steps * full.batch_size and full.weight == "inverse_sigma")


def test_each_is_judged_at_its_own_calls(small, monkeypatch):
    monkeypatch.setattr(fashion_few, "CALLS", (1, 2))
    for variant in ("PD large", "ECT large"):
        monkeypatch.setitem(study.VARIANTS, variant, (study.VARIANTS[variant][0], dict(steps=2)))
        study.train(variant)
    asked, evaluate, load = [], fashion_few.evaluate, study.load_checkpoint
    monkeypatch.setattr(study, "load_checkpoint", lambda p: asked.append(p.stem) or load(p))

    def watched(d, s, sampler, calls, seed):
        asked.append((sampler.__name__, calls, seed, s.samples))
        return evaluate(d, s, sampler, calls, seed)

    monkeypatch.setattr(fashion_few, "evaluate", watched)
    monkeypatch.setattr(study, "VARIANTS", {k: study.VARIANTS[k] for k in ("PD large", "ECT large")})
    study.judge()
    found = results.load_results(study.NAME, small)
    of, off = found["rows"], found["errors"]
    assert off["fashion-cd"][1] < off["fashion-guided"][1] / 2 and len(off["fashion-cd"]) == len(study.TIMES)
    assert [(r["variant"], len(r["fd"]), len(r["fd"][0])) for r in of] == [("PD large", 2, 2), ("ECT large", 2, 2)]
    assert asked[:4] == ["pd-large-1", ("ddim", (1,), 0, 20), "pd-large-2", ("ddim", (2,), 0, 20)]
    assert asked[-2:] == ["ect-large", ("consistency_multistep", (2,), 1, 20)]


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part must be train or judge; got 'both'"):
        study.main("both")
