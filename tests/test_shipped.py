"""What ships: each file says how it was made, is small, works, and stands on the page that lists all."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ship
import tinydiff as td
from tinydiff.checkpoints import DATA, read_checkpoint
from tinydiff.recipes import (
    RECIPES,
    fashion_autoencoder,
    fashion_classifier,
    fashion_few,
    shapes_autoencoder,
    shapes_classifier,
    shapes_latent,
)
from tinydiff.recipes.base import restored

ROOT = Path(__file__).parent.parent
FILES = sorted(DATA.glob("*.safetensors"))
EACH = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
DENOISERS = [p for p in FILES if "target" in read_checkpoint(p)[1]]

FULL = "TINYDIFF_SCALE=full python -m tinydiff.recipes."
COMMANDS = {  # of what is not a denoiser: networks with a `main` of their own
    FULL + "fashion_classifier": fashion_classifier.SCALES["full"],
    FULL + "fashion_autoencoder": fashion_autoencoder.SCALES["full"],
    FULL + "shapes_classifier": shapes_classifier.SCALES["full"],
    FULL + "shapes_autoencoder 32": shapes_autoencoder.SCALES["full"][32],
    FULL + "shapes_autoencoder 64": shapes_autoencoder.SCALES["full"][64],
    FULL + "shapes_autoencoder 64 absolute": replace(
        shapes_autoencoder.SCALES["full"][64], **shapes_autoencoder.ABSOLUTE
    ),
}
COMMANDS |= {FULL + f"fashion_few {method}": s for method, s in fashion_few.SCALES["full"].items()}
STUDENTS = [p for p in DENOISERS if read_checkpoint(p)[2]["command"].startswith(FULL + "fashion_few")]


def test_all_is_small():
    sizes = [p.stat().st_size for p in FILES]
    assert max(sizes) <= ship.LARGEST and sum(sizes) <= 60e6


def test_the_page_says_what_the_files_say():
    assert ship.PAGE.read_text(encoding="utf-8") == ship.page(), "run: python tools/ship.py"


@EACH
def test_each_says_how_it_was_made(path):
    _, _, made = read_checkpoint(path)
    assert {"command", "settings", "hardware", "versions", "metrics"} <= made.keys()
    assert "seed" in made["settings"] and all(isinstance(v, int | float) for v in made["metrics"].values())
    assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(made))


@EACH
def test_each_command_is_one_of_ours(path):
    """Its settings are those of the recipe, so that the command makes this network again."""
    _, description, made = read_checkpoint(path)
    if made["command"] in COMMANDS:
        full = COMMANDS[made["command"]]
        made_with = restored(type(full), made["settings"] | {"device": "cpu"})
        assert made_with == restored(type(full), vars(full) | {"device": "cpu"})
        return
    name = made["command"].split()[4]
    recipe = RECIPES[name]
    settings = restored(type(recipe.SCALES["full"]), made["settings"] | {"device": "cpu"})
    assert description == json.loads(json.dumps(td.checkpoints.describe_denoiser(recipe.denoiser(settings))))


def held_out(name):
    """(x0, conditions) of data that the network has not seen."""
    if name.startswith("shapes"):
        preset = "shapes64-2t" if "64" in name else "shapes32-2"
        of = td.datasets.shapes(preset, "test-iid", 64, conditions=("tokens",)).tensors()
        return of["x0"], {"tokens": of["tokens"]}
    test = td.datasets.load("fashion-mnist-10k", "test").first(64)
    return test.x0, {"y": test.y}


@pytest.mark.parametrize("path", [p for p in DENOISERS if p not in STUDENTS], ids=lambda p: p.stem)
def test_each_denoiser_knows_its_data(path):
    """Its error at half the noise is below that of the mean image by far: no weights were lost on the way."""
    d = td.load_pretrained(path.stem)
    x0, told = held_out(path.stem)
    if d.codec is not None:
        x0 = d.codec.encode(x0)
        assert abs(x0.std() - 1) < 0.15 and abs(x0.mean()) < 0.15
    c = d.schedule(0.5, like=x0)
    x = c.alpha * x0 + c.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (d(x, 0.5, **told).x0 - x0).square().mean()
    assert error < 0.25 * (x0 - x0.mean(0)).square().mean()


@pytest.mark.parametrize("path", STUDENTS, ids=lambda p: p.stem)
def test_each_student_draws_in_few_calls_what_its_card_says(path):
    """Of 200 images as many are read as asked for, to three standard errors (at a share of 0.9: 0.06)."""
    made, n = read_checkpoint(path)[2], fashion_few.calls_of(path.stem)[-1]
    sampler = fashion_few.SAMPLERS[made["command"].split()[-1]]
    x = fashion_few.generate(td.load_pretrained(path.stem), 200, n, sampler, seed=3)
    assert fashion_classifier.judged(x, fashion_few.labels(200))["accuracy"] == pytest.approx(
        made["metrics"][f"accuracy_at_{n}"], abs=0.06
    )


@pytest.mark.parametrize("path", [p for p in FILES if p.stem.endswith("autoencoder")], ids=lambda p: p.stem)
def test_each_first_stage_gives_back_what_it_is_given(path):
    """PSNR within 1 decibel of what its card says."""
    _, _, made = read_checkpoint(path)
    codec = td.models.Codec(td.checkpoints.load_network(path))
    x, _ = held_out(path.stem)
    psnr = td.autoencoding.psnr(x, codec(codec.encode(x)).clamp(-1, 1)).mean().item()
    assert psnr == pytest.approx(made["metrics"]["psnr"], abs=1)


@pytest.mark.parametrize("path", [p for p in DENOISERS if p.stem.startswith("shapes")], ids=lambda p: p.stem)
def test_captions_are_followed(path):
    """Of 20, most by the judge; of captions of other pictures, hardly any."""
    d, s = td.load_pretrained(path.stem), restored(shapes_latent.Settings, read_checkpoint(path)[2]["settings"])
    of = shapes_classifier.asked(s.data, "test-iid", 40)
    x = shapes_latent.generate(d, 20, replace(s, sampling_steps=10, device="cpu"), tokens=of["tokens"][:20])
    mine, other = ({k: v[part] for k, v in of.items()} for part in (slice(0, 20), slice(20, 40)))
    assert shapes_classifier.judged(x, mine, s.data)["exact"] >= 0.7
    assert shapes_classifier.judged(x, other, s.data)["exact"] <= 0.2


def test_the_judge_reads_fashion():
    test = td.datasets.load("fashion-mnist-10k", "test")
    accuracy = fashion_classifier.accuracy(fashion_classifier.judge(), test)
    _, _, made = read_checkpoint(td.checkpoints.shipped(fashion_classifier.NAME))
    assert accuracy == pytest.approx(made["metrics"]["test_accuracy"], abs=0.01)  # there of 10,000, here of half
    assert fashion_classifier.reference().n == 60_000


def test_the_judge_tells_good_from_bad():
    """Real images are at the floor, in blur and noise they are not; the parts of `judged` agree with their names."""
    test = td.datasets.load("fashion-mnist-10k", "test")
    real, y = test[slice(-1000, None)]  # what they are compared with begins at the other end
    blurred = torch.nn.functional.avg_pool2d(real, 5, stride=1, padding=2)
    noisy = real + 0.3 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    said = {name: fashion_classifier.judged(x, y) for name, x in dict(real=real, blurred=blurred, noisy=noisy).items()}
    assert 0.5 < said["real"]["fd"] / said["real"]["fd_floor"] < 2  # found: 0.65 to 1.24 in three parts of the data
    assert abs(said["real"]["kid"]) < 0.2 * said["blurred"]["kid"] and abs(said["real"]["density"] - 1) < 0.15
    for name in ("blurred", "noisy"):
        assert said[name]["fd"] > 3 * said["real"]["fd"] and said[name]["precision"] < said["real"]["precision"]
        assert said[name]["accuracy"] < said["real"]["accuracy"] and said[name]["kid"] > said["real"]["kid"]


def test_the_floor_has_the_classes_that_were_asked_for():
    of = torch.tensor([0, 0, 1, 0, 2, 1, 2, 2, 0])
    assert fashion_classifier.alike(torch.tensor([1, 0, 1, 0]), of).tolist() == [0, 1, 2, 5]
    few = fashion_classifier.alike(torch.tensor([0, 1] * 4), of)  # four of each wanted, and two of class 1 there
    assert few.tolist() == [0, 1, 2, 5]
    test = td.datasets.load("fashion-mnist-10k", "test")
    index = fashion_classifier.alike(torch.arange(2000) % 10, test.y)
    assert len(index) == len(index.unique()) == 2000 and torch.bincount(test.y[index]).tolist() == [200] * 10
    said = fashion_classifier.judged(test.x0[:500], torch.arange(500) % 10)
    assert said["fd_floor"] < 0.5 * fashion_classifier.judged(test.x0[:500])["fd_floor"]  # 0.29 against 1.21
