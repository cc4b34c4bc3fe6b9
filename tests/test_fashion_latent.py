"""The recipes of latent diffusion on Fashion-MNIST, in a few steps: every part runs, and the judge stays as it was."""

from dataclasses import replace

import pytest
import torch

from tinydiff import datasets
from tinydiff.recipes import fashion_autoencoder, fashion_latent
from tinydiff.recipes import fashion_classifier as judge


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_both_stages_run(kind, monkeypatch):
    before = [p.clone() for p in judge.judge().parameters()]
    s = replace(fashion_autoencoder.SCALES["laptop"], kind=kind, steps=3, batch_size=4, width=8, samples=100, start=0.5)
    codec = fashion_autoencoder.train(replace(s, device="cpu"))
    assert all(torch.equal(p, q) and p.requires_grad for p, q in zip(judge.judge().parameters(), before, strict=True))
    found = fashion_autoencoder.evaluate(codec, replace(s, device="cpu"))
    assert found["fd"] > found["fd_floor"] and ("codes_used" in found) == (kind == "vq")
    assert found["latent_std"] == pytest.approx(1, abs=0.2)  # of test images; the scale is that of others

    few = datasets.load("fashion-mnist-10k").first(40)
    latents = fashion_autoencoder.encoded(codec, few)
    assert latents["x0"].shape == (40, 4, 7, 7) and torch.equal(latents["y"], few.y)
    assert torch.allclose(latents["x0"], codec.encode(few.x0), atol=1e-4)
    monkeypatch.setattr(fashion_autoencoder, "pretrained", lambda: codec)
    monkeypatch.setattr(datasets, "load", lambda *names: few)
    settings = dict(steps=2, batch_size=4, width=16, depth=1, heads=2, sampling_steps=2, device="cpu")
    small = replace(fashion_latent.SCALES["laptop"], **settings)
    for step in fashion_latent.train(small):
        assert step.denoiser.codec is codec
    x = fashion_latent.generate(step.denoiser, 6, small)
    assert x.shape == (6, 1, 28, 28) and x.abs().max() <= 1


def test_a_kind_that_is_none_is_named():
    with pytest.raises(ValueError, match="kind must be one of kl, vq; got 'ae'"):
        fashion_autoencoder.train(fashion_autoencoder.Settings(kind="ae"))
