"""Text-to-image in latent space: its recipe, its first stages, its judge, and the study, in a few steps each."""

import json
from dataclasses import replace

import pytest
import torch

import tinydiff as td
from tinydiff import datasets, metrics, results
from tinydiff.checkpoints import load_network, read_checkpoint
from tinydiff.models import Codec, Identity, KLAutoencoder, calibrate
from tinydiff.models.cost import macs
from tinydiff.recipes import base, shapes_autoencoder, shapes_latent, study_latent
from tinydiff.recipes import shapes_classifier as judge
from tinydiff.training import drop_captions

TOKENS = torch.tensor([[1, 2, 5] + [0] * 17, [1, 3, 4] + [0] * 17])


def small(**changes):
    given = dict(pictures=30, width=8, steps=2, batch_size=4, sampling_steps=2, samples=12, device="cpu", threads=1)
    return shapes_latent.Settings(**given | changes)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return calibrate(KLAutoencoder(3, 4, 8, (1, 1, 1)).eval(), torch.rand(50, 3, 32, 32) * 2 - 1)


# ---- captions are dropped ------------------------------------------------------------------------


def test_a_dropped_caption_is_padding_alone():
    torch.manual_seed(0)
    tokens = TOKENS[:1].expand(4000, -1)
    batch = drop_captions(0.25)({"x0": torch.zeros(4000), "tokens": tokens})
    gone = (batch["tokens"] == 0).all(1)
    assert 0.22 < gone.double().mean() < 0.28  # four standard errors
    assert torch.equal(batch["tokens"][~gone], tokens[~gone]) and set(batch) == {"x0", "tokens"}
    assert torch.equal(drop_captions(0.0)({"tokens": tokens})["tokens"], tokens)
    assert not drop_captions(1.0)({"tokens": tokens})["tokens"].any()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_the_share_of_dropped_captions_is_checked(share):
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]; got"):
        drop_captions(share)


# ---- the recipe ----------------------------------------------------------------------------------


def test_it_trains_and_draws(codec):
    s = small()
    d = shapes_latent.denoiser(s, codec)
    data = shapes_autoencoder.encoded(codec, shapes_latent.pictures(s))
    assert data["x0"].shape == (30, 4, 8, 8) and data["tokens"].shape == (30, 20)
    real = datasets.shapes("shapes32-2", "train", 30, conditions=("tokens",))
    assert torch.allclose(data["x0"][3], codec.encode(real[3]["x0"][None])[0], atol=0.05)  # from 256 levels
    assert torch.equal(data["tokens"][3], real[3]["tokens"])
    for step in shapes_latent.train(s, d, data):
        pass
    assert step.number == 2
    x = shapes_latent.generate(step.denoiser, 6, s, batch=4)
    assert x.shape == (6, 3, 32, 32) and x.abs().max() <= 1
    same = shapes_latent.generate(step.denoiser, 6, s, batch=4, tokens=judge.asked(s.data, "test-iid", 6)["tokens"])
    assert torch.equal(x, same)


def test_each_batch_is_asked_its_own_captions(codec, monkeypatch):
    seen, guided = [], shapes_latent.guided
    monkeypatch.setattr(shapes_latent, "guided", lambda d, tokens, w: seen.append(tokens) or guided(d, tokens, w))
    tokens = judge.asked("shapes32-2", "test-iid", 6)["tokens"]
    shapes_latent.generate(shapes_latent.denoiser(small(), codec), 6, small(), batch=4, tokens=tokens)
    assert [len(part) for part in seen] == [4, 2] and torch.equal(torch.cat(seen), tokens)


def test_guidance_lies_between_the_caption_and_none(codec):
    d = shapes_latent.denoiser(small(), codec)
    for p in d.net.parameters():  # the last layers start at zero
        torch.nn.init.normal_(p, std=0.3)
    x, t = torch.randn(2, 4, 8, 8), 0.5
    with torch.no_grad():
        told, untold = d(x, t, tokens=TOKENS).x0, d(x, t, tokens=torch.zeros_like(TOKENS)).x0
        by = {w: shapes_latent.guided(d, TOKENS, w)(x, t).x0 for w in (0, 1, 3)}
        assert torch.allclose(d(x, t).x0, untold, atol=1e-5)  # no caption is the null caption
    assert (told - untold).abs().max() > 1e-3
    assert torch.allclose(by[0], untold, atol=1e-4) and torch.allclose(by[1], told, atol=1e-4)
    assert torch.allclose(by[3], untold + 3 * (told - untold), atol=1e-3)


def test_without_a_first_stage_it_is_the_pixel_model():
    """f = 1: bit for bit what a sampler gives that knows of no codec, but for the scale and shift of the data."""
    s = small(stage="none")
    d = shapes_latent.denoiser(s)
    a = d.codec.autoencoder
    assert isinstance(a, Identity) and d.codec.encode(judge.asked(s.data, "val", 500)["x0"]).std() == pytest.approx(
        1, abs=0.02
    )
    x = shapes_latent.generate(d, 4, s)
    tokens = judge.asked(s.data, "test-iid", 4)["tokens"]
    plain = td.sample(shapes_latent.guided(d, tokens, s.guidance), (4, 3, 32, 32), n=2, sampler=td.dpmpp_2m, seed=0)
    assert torch.equal(x, (plain / a.scale + a.shift).clamp(-1, 1))


@pytest.mark.parametrize(("side", "levels"), [(4, 1), (8, 2), (16, 3), (32, 4), (64, 5)])
def test_each_network_ends_at_the_same_side(side, levels):
    net = shapes_latent.net(4, side, small())
    with torch.no_grad():
        assert net(torch.zeros(2, 4, side, side), torch.zeros(2), tokens=TOKENS).shape == (2, 4, side, side)
    assert len(net.net.config["mults"]) == levels and sum(net.net.config["attention"]) == 1


def test_another_side_is_named():
    with pytest.raises(ValueError, match="side of the latents must be one of 4, 8, 16, 32, 64; got 7"):
        shapes_latent.net(4, 7, small())


# ---- first stages --------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kind", "side"), [(32, "kl", 8), (64, "vq", 16)])
def test_first_stages_run(size, kind, side):
    given = dict(kind=kind, steps=3, batch_size=4, width=8, samples=8, pictures=20, start=0.5, device="cpu")
    s = replace(shapes_autoencoder.SCALES["laptop"][size], **given)
    before = [p.clone() for p in judge.judge().parameters()]
    codec = shapes_autoencoder.train(s)
    assert all(torch.equal(p, q) for p, q in zip(judge.judge().parameters(), before, strict=True))
    assert codec.shape(1, size) == (1, 4, side, side)
    found = shapes_autoencoder.evaluate(codec, s, oracle=2)
    assert 0 < found["psnr"] < 20 and found["fd"] > found["fd_floor"] and found["exact"] < 0.5
    assert ("codes_used" in found) == (kind == "vq") and ("oracle_texture" in found) == (size == 64)
    json.dumps(found)


def test_main_writes_the_network_and_its_card(monkeypatch, tmp_path, capsys):
    """Command, settings, hardware, versions and metrics are in the file; the network comes back out of it."""
    few = replace(shapes_autoencoder.SCALES["laptop"][32], steps=2, batch_size=4, width=8, samples=8, pictures=20)
    monkeypatch.setitem(shapes_autoencoder.SCALES["laptop"], 32, few)
    monkeypatch.setattr(base, "DATA", tmp_path)
    monkeypatch.setenv("TINYDIFF_SCALE", "laptop")
    threads = torch.get_num_threads()
    shapes_autoencoder.main(32)
    torch.set_num_threads(threads)
    path = tmp_path / "shapes32-autoencoder.safetensors"
    _, _, made = read_checkpoint(path)
    assert made["command"] == "TINYDIFF_SCALE=laptop python -m tinydiff.recipes.shapes_autoencoder 32"
    assert made["settings"]["steps"] == 2 and {"hardware", "versions", "seconds"} <= made.keys()
    assert json.loads(capsys.readouterr().out) == made["metrics"]
    x = torch.zeros(1, 3, 32, 32)
    assert load_network(path).encode(x).shape == (1, 4, 8, 8)


def test_there_are_two_sizes():
    with pytest.raises(ValueError, match="size must be one of 32, 64; got 16"):
        shapes_autoencoder.main(16)


# ---- the judge -----------------------------------------------------------------------------------


def test_the_judge_reads_what_is_there():
    of = judge.asked("shapes32-2", "test-pair", 60)
    found = judge.judged(of["x0"], of, oracle=20)
    assert found["exact"] == found["oracle_exact"] == found["agrees"] == 1 and found["fd"] == found["fd_floor"]
    other = judge.asked("shapes32-2", "test-iid", 60)
    wrong = judge.judged(other["x0"], of)
    assert wrong["exact"] < 0.2 and wrong["colour"] < 0.6 and "agrees" not in wrong


def test_textures_are_the_oracles_to_read():
    of = judge.asked("shapes64-2t", "test-iid", 24)
    assert of["x0"].shape == (24, 3, 64, 64) and of["tokens"].shape == (24, 20)
    found = judge.judged(of["x0"], of, "shapes64-2t", oracle=24)
    assert found["oracle_texture"] > 0.95 and found["oracle_exact_textures"] > 0.9


def test_bad_pictures_are_far():
    """Blurred ones and ones of another split are farther than real ones are."""
    of = judge.asked("shapes32-2", "test-iid", 300)
    blurred = torch.nn.functional.avg_pool2d(of["x0"], 5, stride=1, padding=2)
    found = judge.judged(blurred, of)
    assert found["fd"] > 1.5 * found["fd_floor"]


# ---- the study -----------------------------------------------------------------------------------


def test_all_have_the_same_arithmetic(monkeypatch, codec):
    """Steps times multiply-accumulates are equal to within one step."""
    monkeypatch.setattr(study_latent, "stage", lambda f, kind="kl": stages[f])
    stages = {f: Codec(KLAutoencoder(3, 4, 8, (1,) * (1 + f.bit_length() - 1))) for f in (2, 4, 8)}
    stages[1] = Codec(Identity(3))
    s, spent = study_latent.settings(), {}  # steps times arithmetic
    for f in (4, 1, 2, 8):
        d = shapes_latent.denoiser(s, stages[f])
        one = macs(d.net, torch.zeros(d.codec.shape(1, 32)), torch.zeros(1), tokens=TOKENS[:1])
        spent[f] = study_latent.steps_for(f) * one
        assert abs(spent[f] - spent.get(4, spent[f])) <= one
    assert study_latent.steps_for(4) == study_latent.STEPS
    assert study_latent.steps_for(1) < study_latent.steps_for(2) < study_latent.STEPS < study_latent.steps_for(8)


def test_other_scales_decode_to_the_same_pictures(monkeypatch, codec):
    x = torch.rand(10, 3, 32, 32)
    z = codec.encode(x)
    monkeypatch.setattr(study_latent, "stage", lambda f, kind="kl": codec)
    monkeypatch.setattr(study_latent, "latents", lambda f: {"x0": z, "tokens": TOKENS})
    for std in (5.0, 0.2, study_latent.RAW):
        other, data = study_latent.rescaled(4, std)
        assert torch.allclose(other.decode(data["x0"]), codec.decode(z), atol=1e-4)
        assert torch.allclose(other.encode(x), data["x0"], atol=1e-4)
        if std != study_latent.RAW:
            assert data["x0"].std() == pytest.approx(std * z.std().item(), rel=1e-4)
    raw = study_latent.rescaled(4, study_latent.RAW)[1]["x0"]
    assert torch.allclose(raw, codec.autoencoder.encode(x), atol=1e-4)
    assert torch.equal(z, codec.encode(x))  # the first stage itself is as it was


def test_the_study_goes_on_where_it_stopped(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(study_latent, "FOLDER", tmp_path)
    monkeypatch.setattr(study_latent, "save_results", lambda n, r: results.save_results(n, r, tmp_path))
    monkeypatch.setattr(study_latent, "load_results", lambda n: results.load_results(n, tmp_path))
    row = lambda f: lambda: done.append(f) or {"fd": [1.0]}  # noqa: E731
    monkeypatch.setattr(study_latent, "factor", lambda: ((["factor", "kl", f], row(f)) for f in (4, 8)))
    study_latent.main(("factor",))
    study_latent.main(("factor",))
    assert done == [4, 8]
    found = results.load_results("16_latent", tmp_path)
    assert study_latent.row_of(found, "factor", "kl", 8)["fd"] == [1.0] and found["seeds"] == [0, 1, 2]
    with pytest.raises(ValueError, match="0 rows of part 'factor'"):
        study_latent.row_of(found, "factor", "kl", 2)
    with pytest.raises(ValueError, match="parts must be among stages, .*; got 'all'"):
        study_latent.main(("all",))


def test_asked_for_by_the_oracle_and_the_judge_alike():
    of = judge.asked("shapes32-2", "test-iid", 40)
    both = [judge.read(judge.judge(), of["x0"]), metrics.read_shapes(of["x0"])]
    assert torch.equal(both[0].attributes[..., [0, 1, 3]], both[1].attributes[..., [0, 1, 3]])


def test_each_texture_is_counted_where_it_is_asked_for():
    """Of real pictures all are read rightly; of pictures without textures all are read as plain."""
    of = judge.asked("shapes64-2t", "test-iid", 24)
    many = [int((of["attributes"][..., 2] == k).sum()) for k in (1, 2, 3)]
    assert min(many) > 3
    assert study_latent.read_textures(of["x0"], of["attributes"]) == torch.diag(torch.tensor(many)).tolist()
    flat = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(of["x0"], 4), scale_factor=4)
    assert sum(row[0] for row in study_latent.read_textures(flat, of["attributes"])) > 0.8 * sum(many)


def test_the_other_stage_of_textures_learns_from_the_absolute_error_alone(monkeypatch):
    """It sees more pictures than the one that ships beside it, and is otherwise like it."""
    full, made = shapes_autoencoder.SCALES["full"][64], []
    monkeypatch.setattr(shapes_autoencoder, "scale", lambda: "full")
    monkeypatch.setattr(shapes_autoencoder, "train_and_ship", lambda name, module, s, *rest: made.append((name, s)))
    shapes_autoencoder.main("64")
    shapes_autoencoder.main("64", "absolute")
    (one, s), (other, less) = made
    assert (one, s, other) == ("shapes64-autoencoder", full, "shapes64-absolute")
    assert s.squared > 0 == less.squared and less.steps * less.batch_size > 2 * s.steps * s.batch_size
    assert replace(less, squared=s.squared, steps=s.steps, batch_size=s.batch_size) == s
    with pytest.raises(ValueError, match="kind must be autoencoder or absolute; got 'l1'"):
        shapes_autoencoder.main("64", "l1")
