"""The studies of notebooks 12 and 13: who is asked what, how often, and that they go on where they stopped."""

import pytest
import torch

import tinydiff as td
from tinydiff import datasets, results
from tinydiff.guidance import gradient
from tinydiff.recipes import study_cfg as study
from tinydiff.recipes import study_classifier_guidance as with_classifier
from tinydiff.recipes import systems_guidance

Y = torch.arange(4)
X = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
NULL = torch.full_like(Y, 10)


@pytest.fixture(scope="module")
def d():
    return td.load_pretrained("fashion-dit")


@torch.no_grad()
def same(a, b, t=0.5, tol=1e-4):  # batches of other sizes are summed in another order
    return (a(X, t).eps - b(X, t).eps).abs().max() < tol


def test_scales_mean_what_they_say(d):
    known, unknown = (td.bind(d, y=y) for y in (Y, NULL))
    assert same(study.guided(d, 1, Y), known) and same(study.guided(d, 0, Y), unknown)
    assert not same(known, unknown, tol=1e-2)
    assert same(study.plain(d, 7, Y), known)
    assert same(with_classifier.told(d, 0, Y), known) and same(with_classifier.untold(d, 0, Y), unknown)
    weak = td.bind(td.load_pretrained("fashion-dit-weak"), y=Y)
    assert same(study.away(d, 0, Y), weak) and same(study.away(d, 1, Y), known)


def test_only_the_middle_is_guided(d):
    mine, known, w = study.within(d, 3, Y), td.bind(d, y=Y), study.guided(d, 3, Y)
    levels = {t: torch.exp(-d.schedule.logsnr(t) / 2).item() for t in (0.05, 0.5, 0.95)}
    assert levels[0.05] < study.MIDDLE[0] < levels[0.5] < study.MIDDLE[1] < levels[0.95]
    assert same(mine, known, 0.05) and same(mine, w, 0.5) and same(mine, known, 0.95)


@pytest.mark.parametrize("make", [with_classifier.told, with_classifier.untold, with_classifier.naive])
def test_the_classifier_is_asked_at_its_time(d, make):
    """eps moves by -scale sigma times the gradient at x; the naive one has the gradient of an image taken for clean."""
    log_prob = td.load_pretrained("fashion-noisy-classifier").log_prob(Y)
    y = Y if make is with_classifier.told else NULL
    asked = with_classifier.CLEAN if make is with_classifier.naive else 0.6
    with torch.no_grad():
        moved = d(X, 0.6, y=y).eps - make(d, 3, Y)(X, 0.6).eps
    due = 3 * d.schedule.sigma(0.6) * gradient(log_prob, X, asked)
    assert (moved - due).abs().max() < 1e-3 * due.abs().max() + 1e-5 and due.abs().max() > 1e-3


def test_calls_are_those_of_the_networks():
    for name, make, steps, due in (
        ("plain", study.plain, 4, 4),
        ("cfg", study.guided, 4, 8),
        ("auto", study.away, 4, 8),
        ("interval", study.within, study.steps_for(12), 12),
    ):
        x, calls = study.generate(study.Run("", name, 2, make, steps), seed=0, n=10)
        assert x.shape == (10, 1, 28, 28) and x.abs().max() <= 1
        assert calls == due if name != "interval" else due - 2 < calls <= due


def test_equal_calls_are_equal():
    for run in study.runs("calls"):
        calls, kind = run.name.split()
        if kind != "interval":
            assert int(calls) == run.steps * (1 if kind == "plain" else 2)


def test_diversity_is_spread_within_classes():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(3000) % 3
    real = torch.randn(3000, 4, generator=g)
    far = 10 * torch.nn.functional.one_hot(y, 4)  # means far apart do not count
    assert study.diversity(0.5 * real + far, y, real - far, y) == pytest.approx(0.5, rel=1e-3)
    wrong = 0.5 * real + far.roll(1, 0)  # but images of another class than asked for would
    assert study.diversity(wrong, y.roll(1), real, y) == pytest.approx(0.5, rel=1e-3)
    assert study.diversity(wrong, torch.arange(3000) % 2, real, y) > 2


def test_white_is_what_saturates():
    x = torch.rand(20, 1, 28, 28)
    x[:, :, :14] = 1  # and of the others, 1 in 100
    assert study.judged(x)["white"] == pytest.approx(0.505, abs=2e-3)


def test_floors_are_of_real_images_that_differ():
    found = study.floors()
    assert len(set(found["fd"])) == len(study.SEEDS) and found["pooled"] < min(found["fd"])
    assert 0 < found["white"] < 0.05


def test_the_guide_reads_real_images():
    """Nine in ten real ones, and noise no better than chance would."""
    test = datasets.load("fashion-mnist-10k", "test")
    each = [test.x0[test.y == k][:30] for k in range(10)]
    x = torch.stack(each, 1).flatten(0, 1)
    assert with_classifier.read_by_guide(x)["guide"] > 0.8
    assert (
        with_classifier.read_by_guide(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))["guide"] < 0.2
    )


def test_no_run_is_listed_twice():
    keys = [tuple(run.key) for part in study.PARTS if part != "drop" for run in study.runs(part)]
    assert len(set(keys)) == len(keys)


def test_what_was_measured_under_another_name_is_not_measured_again():
    rows = [dict(part="scale", name="cfg", w=2, steps=25, fd=[1.0], seconds=9.0)]
    (mine,) = [run for run in study.runs("calls") if run.name == "50 cfg"]
    assert study.twin(mine, rows) == dict(part="calls", name="50 cfg", w=2, steps=25, fd=[1.0], seconds=0.0)
    others = [run for run in study.runs("calls") + study.runs("unet") + study.runs("interval") if run.name != "50 cfg"]
    assert not any(study.twin(run, rows) for run in others)


def test_a_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []

    def measure(run):
        asked.append(run.w)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return dict(part=run.part, name=run.name, w=run.w, steps=run.steps, fd=[run.w] * 3, seconds=1.0)

    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "measure", measure)
    monkeypatch.setattr(study, "load_results", lambda name: results.load_results(name, tmp_path))
    monkeypatch.setattr(study, "save_results", lambda name, what: results.save_results(name, what, tmp_path))
    monkeypatch.setattr(study, "floors", dict)
    with pytest.raises(KeyboardInterrupt):
        study.main(("scale",), "x")
    study.main(("scale",), "x")
    assert asked == [*study.SCALES[:3], *study.SCALES[2:]]
    found = results.load_results("x", tmp_path)
    assert study.row_of(found, "scale", "cfg", 2)["fd"] == [2] * 3 and found["seconds"] == len(study.SCALES)
    with pytest.raises(ValueError, match="0 rows of part 'scale', name 'cfg', w 9"):
        study.row_of(found, "scale", "cfg", 9)


@pytest.mark.parametrize(
    "name, where, row",
    [("13_cfg", study, row) for row in ("scale", "interval", "auto", "drop", "calls", "unet")]
    + [("12_guidance", with_classifier, row) for row in ("conditional", "unconditional", "naive", "adagn")],
)
def test_the_files_are_whole(name, where, row):
    found = results.load_results(name)
    assert {"command", "hardware", "versions", "seconds", "floors"} <= found.keys()
    rows, seeds = [r for r in found["rows"] if r["part"] == row], len(found["seeds"])
    assert seeds == 3 and rows and all(len(v) == seeds for r in rows for v in r.values() if isinstance(v, list))
    if where is study and row != "drop":
        listed = [run.key for run in study.runs(row)]
    elif row == "drop":
        listed = [[row, f"share {share}", w, 20] for share in study.SHARES for w in study.SCALES]
    elif row == "adagn":
        listed = [[row, kind, 0, 20] for kind in ("scale-shift", "add")]
    else:
        listed = [[row, "classifier", w, study.STEPS] for w in with_classifier.SCALES[row]]
    assert sorted([r["part"], r["name"], r["w"], r["steps"]] for r in rows) == sorted(listed)


def test_what_ships_is_guided_by_what_it_was_trained_beside(d):
    for name in ("fashion-dit-weak", "fashion-noisy-classifier"):
        assert td.load_pretrained(name).schedule == d.schedule


def test_the_ledgers_guide_is_within():
    """The wrapper answers as its denoiser does, and passes on the schedule and the guide."""
    gm = td.GaussianMixture(torch.tensor([[1.0], [-1.0]]), 0.1, [0.5, 0.5], td.Cosine())
    both = systems_guidance.Guided(gm, gm)
    x = torch.randn(5, 1)
    y = torch.tensor([0, 1, 0, 1, 2])
    assert torch.equal(both(x, 0.3, y=y).x0, gm(x, 0.3, y=y).x0) and both.schedule is gm.schedule
    assert both.guide is gm
