"""Students of the latent teacher: each method learns what it says, in a few steps of training."""

from dataclasses import replace

import pytest
import torch

import tinydiff as td
from tinydiff.recipes import fashion_few as few
from tinydiff.recipes import fashion_latent

S = few.Settings(steps=3, batch_size=4, samples=20, first=4)


@pytest.fixture(scope="module")
def teacher():
    small = fashion_latent.Settings(width=16, depth=1, heads=2)
    d = fashion_latent.denoiser(replace(small, device="cpu"))
    torch.manual_seed(0)
    for p in d.net.parameters():
        torch.nn.init.normal_(p, std=0.1)  # an untrained one answers 0 and has nothing to teach
    return d


@pytest.fixture(scope="module")
def data(teacher):
    return few.latents(replace(S), teacher)


def gap(a, b, of, y):
    """Mean square distance of two beliefs about noisy latents."""
    x0, y = of["x0"][:200], y[:200]
    t = torch.linspace(0.05, 0.95, 200)
    c = a.schedule(t, like=x0)
    x = c.alpha * x0 + c.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (a(x, t, y=y).x0 - b(x, t, y=y).x0).square().mean().item()


@pytest.mark.parametrize("method", few.METHODS)
def test_each_method_gives_what_ships(method, teacher, monkeypatch):
    students = few.train(method, S, teacher)
    names = {"pd": ["fashion-pd-2", "fashion-pd-1"]}.get(method, [f"fashion-{method}"])
    assert list(students) == names
    for d in students.values():
        assert (
            d.net is not teacher.net
            and d.codec is not None
            and not any(p.requires_grad for p in teacher.net.parameters())
        )
        said = few.evaluate(d, S, few.SAMPLERS[method], (1, 2))
        assert {"fd_at_1", "recall_at_2", "accuracy_at_1", "fd_floor"} <= said.keys() and said["n"] == 20


def test_one_pass_comes_to_believe_what_guidance_does(teacher, data):
    s = replace(S, steps=150, batch_size=32, lr=2e-3, guidance=3.0)
    y = data["y"]
    null = torch.full_like(y, 10)
    wanted = lambda x, t, y: td.cfg(teacher, 3.0, dict(y=y), dict(y=null[: len(y)]))(x, t)  # noqa: E731
    wanted.schedule = teacher.schedule
    student = few.train("guided", s, teacher)["fashion-guided"]
    before, after = gap(teacher, wanted, data, y), gap(student, wanted, data, y)
    assert after < 0.1 * before, (before, after)  # found over three seeds: 0.024 to 0.026


def test_a_students_few_steps_land_where_its_teachers_do(teacher, data):
    s = replace(S, steps=150, batch_size=32, lr=2e-3, first=2)
    student = few.train("pd", s, teacher)["fashion-pd-1"]
    x = torch.randn(64, *data["x0"].shape[1:], generator=torch.Generator().manual_seed(2))
    y = few.labels(64)
    go = lambda d, n: td.final(td.ddim(td.bind(d, y=y), x, td.grid(d.schedule, n)))  # noqa: E731
    far = lambda a, b: (a - b).square().mean().item()  # noqa: E731
    before, after = far(go(teacher, 1), go(teacher, 2)), far(go(student, 1), go(teacher, 2))
    assert after < 0.05 * before, (before, after)  # found over three seeds: 0.009


@pytest.mark.parametrize("distance", ["squared", "huber", "features"])
def test_distances(distance, teacher):
    d = few.distance(replace(S, distance=distance), teacher)
    x = torch.randn(3, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    assert d(x, x).shape == (3,) and (d(x, x).abs() < 1e-6).all() and (d(x, x + 0.5) > 1e-3).all()
    moved = x.clone().requires_grad_()
    d(moved, x + 0.5).sum().backward()
    assert (moved.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(("weight", "due"), [("inverse_sigma", few.consistency.inverse_sigma), ("one", None)])
def test_consistency_distillation_is_weighted_as_asked(weight, due, teacher, monkeypatch):
    seen, loss = [], few.consistency.consistency_loss
    monkeypatch.setattr(few.consistency, "consistency_loss", lambda *args: seen.append(args) or loss(*args))
    few.train("cd", replace(S, weight=weight), teacher)
    assert len(seen) == 1 and seen[0][2] is teacher and seen[0][3] is due


def test_what_is_unknown_is_refused(teacher):
    with pytest.raises(ValueError, match="method must be one of guided, pd, cd, ect; got 'cm'"):
        few.main("cm")
    with pytest.raises(ValueError, match="distance must be one of squared, huber, features; got 'l1'"):
        few.distance(replace(S, distance="l1"), teacher)
    with pytest.raises(ValueError, match="weight must be one of inverse_sigma, one; got 'snr'"):
        few.cd(replace(S, weight="snr"), teacher, {})


def test_each_round_is_taught_by_the_last(teacher, monkeypatch):
    """Four steps to two, taught by the teacher; two to one, taught by the student itself."""
    rounds = []
    loss = few.distill.progressive_loss
    monkeypatch.setattr(few.distill, "progressive_loss", lambda d, n, w: rounds.append((d, n)) or loss(d, n, w))
    students = few.train("pd", S, teacher)
    assert rounds[0] == (teacher, 2) and rounds[1] == (students["fashion-pd-2"], 1) and len(rounds) == 2
