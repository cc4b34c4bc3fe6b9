"""The study of few steps, in a few steps: every method runs and is asked as often as it says, and the truth is true."""

import pytest
import torch

from tinydiff import results
from tinydiff.guidance import counted
from tinydiff.recipes import study_few_steps as study
from tinydiff.recipes import study_solvers, systems_few
from tinydiff.recipes.ledger import Counted
from tinydiff.samplers import dpmpp_2m, heun, sample
from tinydiff.schedules import EDM, Cosine, grid, logsnr_uniform


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "STEPS", dict.fromkeys(study.STEPS, 3))
    for name, value in dict(TEACHER_STEPS=5, POINTS=200, SAMPLES=50, LEVELS=(0.5, 5.0), SEEDS=(0,)).items():
        monkeypatch.setattr(study, name, value)
    caches = (*study.TEACHERS, study.trained)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:  # teachers of five steps
        cache.cache_clear()


@pytest.mark.parametrize("name", study.METHODS)
def test_each_method_is_asked_as_often_as_it_says(small, name):
    trained = study.trained(name, 0)
    assert tuple(trained.by_calls) == study.CALLS and trained.passes > 0
    for calls, (d, sampler) in trained.by_calls.items():
        d = counted(d)
        x = sample(d, (7, 2), n=calls, sampler=sampler, seed=0)
        assert d.rows == 7 * calls and x.shape == (7, 2) and x.isfinite().all()
    found = study.row(name)
    assert len(found["quality"][0]) == 4 and len(found["errors"][0]) == 2 and found["passes"] == trained.passes
    assert trained.seconds > 0 and found["seconds"] == [round(trained.seconds, 1)]


def test_teachers_stay_as_they_are(small):
    before = [p.clone() for p in study.edm_teacher(0).net.parameters()]
    study.cd(0)
    study.ect(0)
    assert all(torch.equal(p, q) for p, q in zip(before, study.edm_teacher(0).net.parameters(), strict=True))


@pytest.mark.parametrize("schedule", [EDM(), Cosine()], ids=lambda s: type(s).__name__)
def test_the_truth_is_where_a_fine_solver_ends(schedule):
    """From noise level 5, on the exact roll: what is left of 2,000 steps of a second-order solver, to 0.01."""
    t, x, due = study.starts(schedule, 5.0, 40)
    exact = study_solvers.exact_roll(schedule)
    ts = grid(schedule, 2000, logsnr_uniform)
    ts = torch.cat([torch.tensor([t], dtype=torch.float64), ts[ts < t]])
    for state in (heun if schedule.jumps else dpmpp_2m)(exact, x, ts):  # noqa: B007
        pass
    assert (state.x - due).norm(dim=1).median() < 0.01


def test_it_goes_on_where_it_stopped(small, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "save_results", lambda n, r: results.save_results(n, r, tmp_path))
    monkeypatch.setattr(study, "load_results", lambda n: results.load_results(n, tmp_path))
    row = study.row
    monkeypatch.setattr(study, "row", lambda name: done.append(name) or row(name))
    study.main(("DDIM",))
    study.main(("DDIM", "PD"))
    found = results.load_results("23_few_steps", tmp_path)
    assert done == ["DDIM", "PD"] and [r["method"] for r in found["rows"]] == done and len(set(found["floor"])) == 9
    with pytest.raises(ValueError, match="methods must be among DDIM, .*; got 'GAN'"):
        study.main(("GAN",))


def test_a_teacher_is_trained_anew_for_each_method(small):
    """So that seconds and ledger count it for each; the same seed gives the same one."""
    study.trained("CD", 0)
    first = study.edm_teacher(0)
    study.trained("ECT", 0)
    assert study.edm_teacher(0) is not first
    for p, q in zip(first.net.parameters(), study.edm_teacher(0).net.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_ledger_asks_the_student_of_each_number_of_calls(small):
    """Calls are counted, and progressive distillation has a student for each number of them."""
    of = {s.name: s for s in systems_few.SYSTEMS}
    assert len(of) == 24 and {s.notebook for s in of.values()} == {"23", "24"}
    one, four = (of[f"progressive distillation, {n}"] for n in ("1 step", "4 steps"))
    assert one.train is four.train
    trained = one.train(0)
    for system, calls in ((one, 1), (four, 4)):
        fn = Counted(trained)
        x = system.draw(fn, 30, 5)
        d, sampler = trained.by_calls[calls]
        assert fn.calls == calls and torch.equal(x, sample(d, (30, 2), n=calls, sampler=sampler, seed=5))
