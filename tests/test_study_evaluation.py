"""The models whose fault is known, and the images changed on purpose, of notebook 15's study."""

import pytest
import torch

from tinydiff.recipes import study_evaluation as study
from tinydiff.results import load_results


def images(n=4, side=28):
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", study.CHANGES)
def test_a_change_leaves_shape_range_and_its_input_alone(name):
    x = images()
    before = x.clone()
    after = study.CHANGES[name](x)
    assert after.shape == x.shape and torch.equal(x, before) and after.abs().max() <= 1 + 1e-5
    assert torch.equal(after, x) == (name == "nothing")


def test_moved_goes_right_and_down_and_brings_paper_in():
    x = images()
    right, down = study.moved(x), study.moved(x, 0, 1)
    assert torch.equal(right[..., 1:], x[..., :-1]) and (right[..., 0] == study.PAPER).all()
    assert torch.equal(down[:, :, 1:], x[:, :, :-1]) and (down[:, :, 0] == study.PAPER).all()


def test_blur_keeps_the_ink_and_the_paper():
    x = torch.full((1, 1, 28, 28), study.PAPER)
    assert torch.allclose(study.blur(x, 0.5), x, atol=1e-6)
    x[:, :, 14, 14] = 1
    blurred = study.blur(x, 0.5)
    assert abs((blurred - x).sum()) < 1e-4 and blurred[0, 0, 14, 14] < 0.5


def test_gaussian_like_has_the_moments_of_its_data():
    data = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    x = study.gaussian_like(data, 40_000, torch.Generator().manual_seed(1))
    assert torch.allclose(x.mean(0), data.mean(0), atol=5 * data.std().item() / 200)
    assert torch.allclose(torch.cov(x.T), torch.cov(data.T), atol=0.05 * torch.cov(data.T).max().item())


def test_the_models_have_the_faults_that_their_names_say():
    parts = study.split(0)
    assert sorted(torch.cat(parts).tolist()) == list(range(5000))
    models, seen = study.models(0), study.training_set().x0
    assert all(x.shape == (study.S.samples, 1, 28, 28) for x in models.values())
    rows = {name: {row.numpy().tobytes() for row in x.flatten(1)} for name, x in models.items()}
    trained = {row.numpy().tobytes() for row in seen.flatten(1)}
    assert rows["copies"] <= trained and len(rows["copies"]) > 990 and not rows["fresh images"] & trained
    assert len(rows["20 images, again and again"]) == 20 and len(rows["the mean of each class"]) == 10
    again = study.models(0)
    assert all(torch.equal(x, again[name]) for name, x in models.items())


def test_the_stored_study_is_of_these_settings_and_holds_every_row():
    made = load_results("15_evaluation")
    assert made["settings"] == vars(study.S) and made["seeds"] == list(study.SEEDS)
    assert len(made["changes"]) == len(study.SEEDS) * len(study.CHANGES)
    names = {*study.models(0), "Gaussian features"}
    for seed in study.SEEDS:
        rows = [r for r in made["rows"] if r["seed"] == seed]
        assert {r["model"] for r in rows} == names and len(rows) == len(names)
        assert all({"seed", "model", *study.METRICS} - r.keys() <= {"copied, pixels"} for r in rows)
    assert made["floors"].keys() == set(study.METRICS)
