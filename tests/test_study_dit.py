"""The study of notebook 14: its networks, its list of runs, and that it goes on where it stopped."""

import json

import pytest
import torch

from tinydiff import results
from tinydiff.models.cost import macs, parameters
from tinydiff.recipes import study_dit as study

S = study.Settings()
IMAGE, LEVEL = torch.zeros(1, 1, 8, 8), torch.zeros(1)


def test_gates_start_where_they_are_said_to_and_all_else_at_zero():
    for name, gate in (("gates at one", torch.ones(64)), ("gates at random", None), ("adaln-zero", torch.zeros(64))):
        for block in study.network(name, S, 0).blocks:
            layer = block.adaln[1]
            for i, (weight, bias) in enumerate(zip(layer.weight.chunk(6), layer.bias.chunk(6), strict=True)):
                if i in (2, 5) and gate is None:
                    assert 0.05 < bias.abs().mean() < 0.08 and 0.05 < weight.abs().mean() < 0.08  # uniform to 1 / 8
                else:
                    assert not weight.any() and torch.equal(bias, gate if i in (2, 5) else torch.zeros(64))


def test_rows_for_columns_moves_patches_and_nothing_else():
    class Same(torch.nn.Module):
        patch = 2

        def forward(self, x, level, y=None):
            return x

    x = torch.randn(3, 1, 8, 8)
    out = study.RowsForColumns(Same())(x, torch.zeros(3))
    for i in range(4):
        for j in range(4):
            mine, due = (v[:, :, 2 * a : 2 * a + 2, 2 * b : 2 * b + 2] for v, a, b in ((out, j, i), (x, i, j)))
            assert torch.equal(mine, due)


def test_the_networks_are_what_the_notebook_says():
    for name in (*study.KINDS, *study.STARTS, *study.OTHERS):
        net = study.network(name, S, 0)
        out = net(torch.randn(2, 1, 8, 8), torch.tensor([10.0, 900.0]), torch.tensor([0, 9]))
        assert out.shape == (2, 1, 8, 8) and not out.any()
    first, again = (study.network("gates at random", S, 0).parameters() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    dit, unet = (study.network(name, S, 0) for name in ("adaln-zero", "U-Net"))
    assert macs(unet, IMAGE, LEVEL) == pytest.approx(macs(dit, IMAGE, LEVEL), rel=0.1)
    assert parameters(study.network("MLP", S, 0)) == pytest.approx(parameters(dit), rel=0.15)
    assert not study.network("no positions", S, 0).positions.any()


def test_no_run_is_listed_twice_and_seeds_are_three():
    listed = [
        (part, name, s.width, s.patch, seed) for part in (*study.PARTS, "long") for name, s, seed in study.runs(part, S)
    ]
    assert len(set(listed)) == len(listed)
    assert {seed for *_, seed in listed} == {0, 1, 2}
    assert {(s.width, s.patch) for _, s, _ in study.runs("size", S)} == set(study.SHAPES) - {(64, 2)}


def test_it_goes_on_where_it_stopped(monkeypatch, tmp_path):
    made, limit = [], [5]
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "load_results", lambda name: results.load_results(name, tmp_path))
    monkeypatch.setattr(study, "save_results", lambda name, what: results.save_results(name, what, tmp_path))
    monkeypatch.setattr(study, "floors", lambda n: {})
    fake = dict(loss=0.0, seconds=0.5)

    def run(name, s, seed):
        if len(made) == limit[0]:
            raise KeyboardInterrupt
        made.append((name, seed))
        return dict(name=name, width=s.width, patch=s.patch, lr=s.lr, seed=seed) | fake

    monkeypatch.setattr(study, "run", run)
    with pytest.raises(KeyboardInterrupt):
        study.main(("conditioning",))
    assert len(json.loads((tmp_path / "14_dit.json").read_text())["rows"]) == 5
    limit[0] = 100
    study.main(("conditioning",))
    assert len(made) == len(set(made)) == 18
    with pytest.raises(ValueError, match="14_dit.json has other settings: give another --name"):
        study.main(("conditioning",), steps=3)


def test_one_run_end_to_end():
    s = study.Settings(width=16, patch=4, depth=1, heads=2, steps=4, every=2, draws=2, samples=20, sampling_steps=2)
    one, two = (study.run("adaln-zero", s, 0) for _ in range(2))
    drop = lambda row: {k: v for k, v in row.items() if k != "seconds"}  # noqa: E731
    assert drop(one) == drop(two) and [k for k, _ in one["curve"]] == [2]
    assert one["loss"] > 0 and one["energy"] > 0.5 and 0 <= one["accuracy"] <= 1
