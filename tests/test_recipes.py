"""The command line and the recipes, from training to pictures, at settings that take a second."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tinydiff as td
from tinydiff.__main__ import main
from tinydiff.checkpoints import read_checkpoint
from tinydiff.recipes import RECIPES, digits
from tinydiff.recipes.base import restored

ROOT = Path(__file__).parent.parent
TINY = {
    "swiss_roll": "--points 500 --width 16 --depth 2 --steps 6 --batch-size 32 --sampling-steps 4 --samples 100",
    "digits": "--width 8 --steps 4 --batch-size 8 --sampling-steps 3 --samples 30 --threads 1",
    "dpm": "--chain 4 --points 500 --units 3 --steps 6 --batch-size 32 --samples 100",
    "fashion_unet": "--width 8 --steps 4 --batch-size 8 --sampling-steps 2 --samples 20 --threads 1",
    "fashion_dit": "--width 16 --depth 1 --steps 4 --batch-size 8 --sampling-steps 2 --samples 20 --threads 1",
    "fashion_noisy_classifier": "--width 8 --steps 4 --batch-size 8 --samples 20 --threads 1",
    "fashion_latent": "--width 16 --depth 1 --steps 4 --batch-size 8 --sampling-steps 2 --samples 20 --threads 1",
    "shapes_latent": "--width 8 --pictures 50 --steps 4 --batch-size 8 --sampling-steps 2 --samples 20 --threads 1",
}
IMAGES = {"n", "fd", "fd_floor", "kid", "precision", "recall", "density", "coverage", "accuracy"}
SHARES = {"size", "colour", "shape", "objects", "relation", "binding", "exact"}
EVALUATE = {
    "swiss_roll": "--sampling-steps 4 --samples 100",
    "digits": "--sampling-steps 3 --samples 30 --threads 1",
    "dpm": "--chain 4 --units 3 --samples 100",
    "fashion_unet": "--sampling-steps 2 --samples 20 --threads 1",
    "fashion_dit": "--sampling-steps 2 --samples 20 --threads 1",
    "fashion_noisy_classifier": "--samples 20 --threads 1",
    "fashion_latent": "--sampling-steps 2 --samples 20 --threads 1",
    "shapes_latent": "--sampling-steps 2 --samples 20 --threads 1",
}
METRICS = {
    "swiss_roll": {"sliced_wasserstein", "sliced_wasserstein_floor", "energy_distance", "energy_distance_floor"},
    "digits": {"accuracy", "energy_distance", "energy_distance_floor", "memorisation"},
    "dpm": {"K", "K_standard_error", "K_less_null", "energy_distance", "energy_distance_floor"},
    "fashion_unet": IMAGES,
    "fashion_dit": IMAGES,
    "fashion_noisy_classifier": {"n"} | {f"{m}_{t}" for m in ("accuracy", "loss") for t in (0.1, 0.3, 0.5, 0.7, 0.9)},
    "fashion_latent": IMAGES,
    "shapes_latent": {"n", "fd", "fd_floor", "oracle_exact", "agrees"} | SHARES,
}
EACH = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    """`main` sets torch's threads and TINYDIFF_SCALE."""
    monkeypatch.setenv("TINYDIFF_SCALE", "laptop")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(out: str) -> dict:
    """The JSON object in what was printed."""
    return json.loads(out[out.index("{") : out.rindex("}") + 1])


@pytest.fixture(scope="module", params=RECIPES)
def trained(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "sub" / f"{request.param}.safetensors"
    assert main(["train", request.param, *TINY[request.param].split(), "--out", str(path)]) == 0
    return request.param, path


def test_train_saves_and_prints_metrics(trained, capsys, tmp_path):
    name, _ = trained
    path = tmp_path / "again.safetensors"
    assert main(["train", name, *TINY[name].split(), "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    assert numbers(printed).keys() == METRICS[name] | {"seconds"}
    assert f"saved {path}" in printed
    d = td.load_checkpoint(path)
    assert type(d.net) is type(RECIPES[name].denoiser(RECIPES[name].Settings()).net)


def test_the_checkpoint_says_how_it_was_made(trained):
    name, path = trained
    recipe = read_checkpoint(path)[2]["recipe"]
    assert recipe["command"].startswith(f"python -m tinydiff train {name} --scale laptop ")
    given = dict(zip(TINY[name].split()[::2], TINY[name].split()[1::2], strict=True))
    said = dict(zip(recipe["command"].split()[7::2], recipe["command"].split()[8::2], strict=True))
    default = RECIPES[name].SCALES["laptop"]
    differs = {k for k, v in given.items() if str(getattr(default, k[2:].replace("-", "_"))) != v}
    assert said == {k: v for k, v in given.items() if k in differs}  # what is not the scale's own
    assert recipe["settings"]["steps"] == int(TINY[name].split("--steps ")[1].split()[0])
    assert recipe["settings"].keys() == {f.name for f in dataclasses.fields(RECIPES[name].Settings)}
    assert str(ROOT) not in json.dumps(recipe) and str(path.parent) not in json.dumps(recipe)


def test_evaluate_agrees_with_itself(trained, capsys):
    name, path = trained
    results = []
    for seed in ("0", "0", "1"):
        assert main(["evaluate", name, str(path), "--seed", seed, *EVALUATE[name].split()]) == 0
        results.append(numbers(capsys.readouterr().out))
    assert results[0].keys() == METRICS[name]
    assert results[0] == results[1]
    distance = next(m for m in ("fd", "energy_distance", "loss_0.9") if m in METRICS[name])
    assert results[0][distance] != results[2][distance]


def test_sample_writes_a_picture(trained, capsys, tmp_path):
    name, path = trained
    for extra, where in (["--picture", str(tmp_path / "x.png")], tmp_path / "x.png"), ([], path.with_suffix(".png")):
        assert main(["sample", name, str(path), "--n", "12", *EVALUATE[name].split()[:2], *extra]) == 0
        assert f"wrote {where}" in capsys.readouterr().out
        assert where.read_bytes().startswith(b"\x89PNG")


@EACH
def test_resume_continues_and_gives_the_same_weights(name, tmp_path, capsys):
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    assert main(["train", name, *TINY[name].split(), "--out", str(whole)]) == 0
    settings = restored(RECIPES[name].Settings, read_checkpoint(whole)[2]["recipe"]["settings"])
    for step in RECIPES[name].train(settings, checkpoint=part, every=2):
        if step.number == 3:
            break
    assert main(["train", name, *TINY[name].split(), "--out", str(part), "--resume"]) == 0
    a, b = read_checkpoint(whole)[0], read_checkpoint(part)[0]
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_resume_with_other_settings_is_refused(trained, capsys):
    name, path = trained
    assert main(["train", name, *TINY[name].split(), "--out", str(path), "--resume", "--lr", "0.5"]) == 1
    assert "tinydiff: " in (error := capsys.readouterr().err) and "lr was" in error and "is 0.5" in error


@EACH
def test_bad_checkpoints_are_named(name, tmp_path, capsys):
    for command in ("evaluate", "sample"):
        assert main([command, name, str(tmp_path / "none.safetensors")]) == 1
        assert f"tinydiff: there is no checkpoint at {tmp_path / 'none.safetensors'}" in capsys.readouterr().err
    (tmp_path / "noise.safetensors").write_bytes(b"no checkpoint at all")
    assert main(["evaluate", name, str(tmp_path / "noise.safetensors")]) == 1
    assert "is not a whole safetensors file" in capsys.readouterr().err


def test_a_checkpoint_of_the_other_recipe_is_named(trained, capsys):
    name, path = trained
    other = next(r for r in RECIPES if r != name)
    assert main(["evaluate", other, str(path)]) == 1
    assert f"is not of {other}: its network is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["train", "swiss_roll", "--colour", "blue"], "--colour"),
        (["train", "swiss_roll", "--steps", "many"], "many"),
        (["train", "swiss_rol"], "swiss_roll"),
        (["fly", "swiss_roll"], "choose from"),
        (["train"], "name"),
        (["evaluate", "digits"], "checkpoint (required)"),
        (["train", "digits", "--scale", "huge"], "huge"),
    ],
)
def test_bad_commands_exit_with_2_and_say_why(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert message in printed.err + printed.out


def test_a_bad_scale_in_the_environment_is_named(monkeypatch, capsys):
    monkeypatch.setenv("TINYDIFF_SCALE", "huge")
    assert main(["train", "digits"]) == 1
    assert "TINYDIFF_SCALE must be one of laptop, full, got 'huge'" in capsys.readouterr().err


def test_bare_call_and_help(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "python -m tinydiff train NAME" in capsys.readouterr().out


@EACH
def test_scale_changes_the_defaults(name, capsys, monkeypatch):
    """--help shows the defaults; an option beats them."""
    shown = {}
    for scale in ("laptop", "full"):
        with pytest.raises(SystemExit) as stop:
            main(["train", name, "--scale", scale, "--help"])
        assert stop.value.code == 0
        shown[scale] = capsys.readouterr().out
        monkeypatch.setenv("TINYDIFF_SCALE", scale)  # the same by the environment
        with pytest.raises(SystemExit):
            main(["train", name, "--help"])
        assert capsys.readouterr().out == shown[scale]
    for scale, out in shown.items():
        out = " ".join(out.replace("│", " ").split())  # lines are broken as the terminal is wide
        settings = RECIPES[name].SCALES[scale]
        for field in ("steps", "points" if name == "dpm" else "width", "batch_size", "lr"):
            assert f"(default: {getattr(settings, field)})" in out, (scale, field)
    assert shown["laptop"] != shown["full"]


@EACH
def test_a_recipe_leaves_the_random_state_alone_and_its_network_depends_on_the_seed(name):
    s = RECIPES[name].Settings()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = RECIPES[name].denoiser(s).net, RECIPES[name].denoiser(s).net
    other = RECIPES[name].denoiser(dataclasses.replace(s, seed=1)).net
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_digits_are_asked_for_in_turn():
    assert digits.labels(23).tolist() == [*range(10), *range(10), 0, 1, 2]


def test_doctor_is_reachable(monkeypatch):
    from tinydiff import doctor

    monkeypatch.setattr(doctor, "doctor", lambda: 7)
    assert main(["doctor"]) == 7


def test_it_runs_as_a_module(tmp_path):
    """As a reader runs it; tests/test_doctor.py runs the doctor itself."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tinydiff", "evaluate", "digits", "none.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "tinydiff: there is no checkpoint at none.safetensors"
    assert "Traceback" not in done.stderr
