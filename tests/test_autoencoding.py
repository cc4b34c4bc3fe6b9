"""Training of the first stage: each term of its loss, when it comes in, and that it learns."""

import math

import pytest
import torch
from torch import nn

from tinydiff import autoencoding, datasets, models
from tinydiff.checkpoints import load_network, shipped


@pytest.fixture(scope="module")
def images():
    return datasets.load("fashion-mnist-10k", "test").x0[:256]


@pytest.fixture(scope="module")
def features():
    return autoencoding.FeatureDistance(load_network(shipped("fashion-classifier")))


def autoencoder(kind=models.KLAutoencoder, **settings):
    torch.manual_seed(0)
    return kind(**dict(width=8, mults=(1, 2)) | settings)


def test_a_feature_distance_is_a_distance(features, images):
    x, y = images[:8], images[8:16]
    assert features(x, x).abs().max() == 0 and torch.allclose(features(x, y), features(y, x))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    far = [features(x, x + s * noise).mean() for s in (0.03, 0.1, 0.3)]
    assert 0 < far[0] < far[1] < far[2]
    assert torch.allclose(features(x, y)[3:4], features(x[3:4], y[3:4]), atol=1e-5)  # no batch statistics
    assert features.train().layers.training is False


def test_a_feature_distance_by_hand(images):
    """One layer: unit vectors at each place, squared distance, mean over places."""
    torch.manual_seed(0)
    net = models.ConvClassifier(width=8).eval()
    d = autoencoding.FeatureDistance(net)
    d.layers = d.layers[:3]
    x, y = images[:2], images[2:4]
    unit = [v / v.norm(dim=1, keepdim=True).clamp(min=1e-6) for v in (d.layers(x), d.layers(y))]
    due = sum(((unit[0][:, k] - unit[1][:, k]) ** 2).mean((1, 2)) for k in range(unit[0].shape[1]))
    assert torch.allclose(d(x, y), due, atol=1e-5) and due.min() > 0.01


def test_the_hinge_is_silent_beyond_one():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert autoencoding.hinge_loss(real, fake) == pytest.approx(((0.5 + 2) / 3 + 1 / 2) / 2)
    assert autoencoding.hinge_loss(real.abs() + 1, -real.abs() - 1) == 0


def test_the_adversarial_term_does_not_see_the_scale_of_its_logits():
    torch.manual_seed(0)
    last, x = nn.Parameter(torch.randn(4, 4)), torch.randn(8, 4)
    out = x @ last
    loss, adversarial = (out - 1).abs().mean(), -(out**3).mean()
    due = torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
    for k in (1.0, 7.0, 0.1):
        w = autoencoding.adaptive_weight(loss, k * adversarial, last)
        (g,) = torch.autograd.grad(w * k * adversarial, last, retain_graph=True)
        assert not w.requires_grad and g.norm() == pytest.approx(due.item(), rel=2e-3)
    assert autoencoding.adaptive_weight(loss, 0 * adversarial, last) == pytest.approx(due.item() / 1e-4, rel=1e-3)
    assert autoencoding.adaptive_weight(1e3 * loss, 0 * adversarial, last) == 1e4


def test_the_discriminator_comes_late(images):
    d = models.PatchDiscriminator(width=8)
    before = d.layers[0].weight.clone()
    said = {}
    for step in autoencoding.fit_autoencoder(
        autoencoder(), images, steps=6, batch_size=8, discriminator=d, start=0.5, lr=1e-4
    ):
        said[step.number] = set(step.losses)
        if step.number == 3:
            assert torch.equal(d.layers[0].weight, before)
    assert all(said[k] == {"pixels", "penalty"} for k in (1, 2, 3))
    assert all(said[k] == {"pixels", "penalty", "adversarial", "discriminator"} for k in (4, 5, 6))
    assert not torch.equal(d.layers[0].weight, before)


def test_the_squared_error_stands_beside_the_absolute_one(images):
    given = dict(steps=1, batch_size=8, lr=1e-9)
    first = next(autoencoding.fit_autoencoder(autoencoder(), images, squared=10, **given))
    assert set(first.losses) == {"pixels", "squared", "penalty"}
    a = autoencoder()
    with autoencoding.random_numbers_of(0, 0, torch.device("cpu")):  # what step 1 drew
        x = next(autoencoding.to_batches(images, 8))["x0"]
        gap = x - a(x).x
    assert first.losses["squared"] == pytest.approx(10 * (gap**2).mean().item(), rel=1e-4)
    assert first.losses["pixels"] == pytest.approx(gap.abs().mean().item(), rel=1e-4)


def test_the_squared_error_teaches_as_well(images):
    """The step taken is that of the sum: with a weight of 1,000 the absolute error hardly turns it."""
    ends = []
    for squared in (0.0, 1000.0):
        a = autoencoder()
        for _ in autoencoding.fit_autoencoder(a, images, steps=20, batch_size=16, lr=3e-3, squared=squared):
            pass
        with torch.no_grad():
            gap = images[:64] - a(images[:64]).x
        ends.append((gap.abs().mean().item(), gap.square().mean().item()))
    assert ends[1][1] < 0.95 * ends[0][1]  # found over three seeds: 0.75 to 0.85


def test_the_discriminators_gradient_stays_its_own(images):
    """The autoencoder's step leaves no gradient behind that the discriminator's would add to, and vice versa."""
    grads = []

    class Spy(torch.optim.Adam):
        def step(self):
            grads.append([p.grad.clone() for g in self.param_groups for p in g["params"]])

    original, torch.optim.Adam = torch.optim.Adam, Spy
    try:
        d, a = models.PatchDiscriminator(width=8), autoencoder()
        for _ in autoencoding.fit_autoencoder(a, images, steps=2, batch_size=8, discriminator=d, start=0.0):
            pass
    finally:
        torch.optim.Adam = original
    # nothing moved, so each step's gradient is that of its loss alone; batch normalisation sees each batch by itself
    with autoencoding.random_numbers_of(0, 0, torch.device("cpu")):
        x = next(autoencoding.to_batches(images, 8))["x0"]
        out = a(x)
    hinge = autoencoding.hinge_loss(d(x), d(out.x.detach()))
    due = torch.autograd.grad(hinge, list(d.parameters()))
    assert all(torch.allclose(g, h, atol=1e-6) for g, h in zip(grads[1], due, strict=True))


def test_the_autoencoder_is_to_please_the_discriminator(images):
    """Its term is -w_d w_a mean D(x'), with w_a from the gradients at its last layer."""
    d, a = models.PatchDiscriminator(width=8), autoencoder()
    with autoencoding.random_numbers_of(0, 0, torch.device("cpu")):
        x = next(autoencoding.to_batches(images, 8))["x0"]
        out = a(x)
    nll, logits = (x - out.x).abs().mean(), d(out.x).mean()
    w = autoencoding.adaptive_weight(nll, logits, a.last)
    step = next(
        autoencoding.fit_autoencoder(autoencoder(), images, steps=1, batch_size=8, discriminator=d, start=0.0, lr=1e-9)
    )
    assert step.losses["adversarial"] == pytest.approx(-0.5 * (w * logits).item(), rel=1e-4)
    assert abs(step.losses["adversarial"]) > 1e-6


@pytest.mark.parametrize("kind, weight", [(models.KLAutoencoder, 1e-6 / 784), (models.VQAutoencoder, 1.0)])
def test_the_penalty_has_the_official_weight(images, kind, weight):
    a = autoencoder(kind)
    with autoencoding.random_numbers_of(0, 0, torch.device("cpu")):
        x = next(autoencoding.to_batches(images, 8))["x0"]
        out = a(x)
    step = next(autoencoding.fit_autoencoder(autoencoder(kind), images, steps=1, batch_size=8))
    assert step.losses["penalty"] == pytest.approx(weight * out.penalty.mean().item(), rel=1e-5)
    assert step.losses["pixels"] == pytest.approx((x - out.x).abs().mean().item(), rel=1e-5)
    given = next(autoencoding.fit_autoencoder(autoencoder(kind), images, steps=1, batch_size=8, penalty=0.5))
    assert given.losses["penalty"] == pytest.approx(0.5 * out.penalty.mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", [models.KLAutoencoder, models.VQAutoencoder])
def test_it_learns_and_the_same_seed_learns_the_same(kind, images, features):
    """60 steps bring the error of pixels below 0.7 of the first: seeds 0 to 2 give 0.42 to 0.54, both kinds alike."""
    runs = []
    for _ in range(2):
        steps = autoencoding.fit_autoencoder(
            autoencoder(kind), images, steps=60, batch_size=16, lr=3e-3, features=features
        )
        runs.append([step.losses["pixels"] for step in steps])
    assert runs[0] == runs[1]
    assert sum(runs[0][-5:]) < 0.7 * sum(runs[0][:5])


def test_bad_input_is_named(images):
    with pytest.raises(ValueError, match="start must lie in"):
        next(autoencoding.fit_autoencoder(autoencoder(), images, steps=1, start=1.5))
    with pytest.raises(ValueError, match="squared must be at least 0; got -1"):
        next(autoencoding.fit_autoencoder(autoencoder(), images, steps=1, squared=-1))
    broken = autoencoder()
    nn.init.constant_(broken.last, float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        next(autoencoding.fit_autoencoder(broken, images, steps=1))


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 1, 4, 4)
    assert torch.allclose(
        autoencoding.psnr(x, x + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)), torch.tensor([20.0, 40.0])
    )


def test_sharpness_counts_fine_waves():
    n = torch.arange(32.0)
    waves = [torch.cos(2 * math.pi * k / 32 * n).expand(1, 32, 32) for k in (1, 7, 9, 16)]
    assert torch.allclose(autoencoding.sharpness(torch.stack(waves)), torch.tensor([0.0, 0.0, 1.0, 1.0]), atol=1e-6)
    assert torch.allclose(autoencoding.sharpness(torch.stack(waves[:1]) + 5), torch.zeros(1), atol=1e-6)
    mixed = (waves[0] + 2 * waves[2].mT)[None]
    assert torch.allclose(autoencoding.sharpness(mixed), torch.tensor([0.8]), atol=1e-6)
