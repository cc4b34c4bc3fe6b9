"""Classifiers of noisy data: the network, its loss, and the gradient that guides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tinydiff as td
from tinydiff.models.classifier import AttentionPool


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(**options):
    torch.manual_seed(0)
    net = td.models.NoisyClassifier(classes=3, size=8, width=8, mults=(1, 2), attention=(False, True), **options)
    with torch.no_grad():
        for p in net.parameters():  # the branches start at zero
            p += 0.1 * torch.randn_like(p)
    return net.eval()


def classifier():
    return td.NetClassifier(network(), td.Cosine())


def test_it_reads_the_image_and_the_noise_level():
    net, x = network(), normal(4, 1, 8, 8)
    low, high = net(x, torch.full((4,), 10.0)), net(x, torch.full((4,), 900.0))
    assert low.shape == (4, 3) and not torch.allclose(low, high, atol=1e-3)
    assert not torch.allclose(low, net(x.flip(3), torch.full((4,), 10.0)), atol=1e-3)
    torch.testing.assert_close(net(x[:1], torch.full((1,), 10.0)), low[:1], atol=1e-5, rtol=1e-4)  # each by itself


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="size must divide by 4; got 6"):
        td.models.NoisyClassifier(size=6)
    with pytest.raises(ValueError, match="one entry a resolution, 2; got 1"):
        td.models.NoisyClassifier(mults=(1, 2), attention=(True,))
    with pytest.raises(ValueError, match=r"x must be \(b, 1, 8, 8\).*got \(2, 1, 16, 16\)"):
        network()(normal(2, 1, 16, 16), torch.ones(2))


def test_attention_pooling_by_hand():
    """One head at a time: softmax(q k / sqrt(d)) v, where the mean of the pixels asks."""
    torch.manual_seed(0)
    pool, h = AttentionPool(8, pixels=6, out=5, heads=2), normal(3, 8, 2, 3)
    tokens = torch.stack([h.flatten(2).mean(2), *h.flatten(2).unbind(2)], dim=1) + pool.place  # (b, 7, 8)
    q, k, v = pool.qkv(tokens).split(8, dim=2)
    heads = []
    for i in (slice(0, 4), slice(4, 8)):
        share = (q[:, :1, i] @ k[..., i].mT / 2).softmax(2)
        heads.append((share @ v[..., i])[:, 0])
    torch.testing.assert_close(pool(h), pool.out(torch.cat(heads, dim=1)))


def test_the_loss_is_cross_entropy_of_noisy_images():
    d, x0, y = classifier(), normal(4, 1, 8, 8, seed=1), torch.tensor([0, 2, 1, 2])
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    loss = td.classifier_loss(d, x0, t, y, generator=torch.Generator().manual_seed(5))
    c = d.schedule(t, like=x0)
    x = c.alpha * x0 + c.sigma * normal(4, 1, 8, 8, seed=5)
    torch.testing.assert_close(loss, F.cross_entropy(d.net(x, 1000 * t), y, reduction="none"))
    assert loss.shape == (4,)


def test_the_gradient_is_that_of_the_class_of_each_sample():
    d, x, y = classifier(), normal(3, 1, 8, 8), torch.tensor([2, 0, 1])
    log_prob = d.log_prob(y)
    torch.testing.assert_close(log_prob(x, 0.5), d.logits(x, 0.5).log_softmax(1)[torch.arange(3), y])
    grad, step = td.guidance.gradient(log_prob, x, 0.5), 1e-2
    along = grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    slope = (log_prob(x + step * along, 0.5) - log_prob(x - step * along, 0.5)) / (2 * step)
    torch.testing.assert_close(slope, grad.flatten(1).norm(dim=1), rtol=2e-2, atol=1e-4)
    unet = td.NetDenoiser(td.models.UNet(width=8), td.Cosine(), td.targets.v)
    td.sample(td.classifier(unet, log_prob, 2.0), (3, 1, 8, 8), n=2, seed=0)


class Linear(nn.Module):
    """Logits linear in x, with a slope for each noise level: what two Gaussians of equal variance need."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x, noise_level):
        z = self.slope(noise_level[:, None] / 1000)[:, 0] * x.sum(1)
        return torch.stack([-z, z], dim=1)


def test_training_finds_the_posterior_of_a_mixture():
    """Within 0.03 of the exact p_t(y | x) at three times: 0.001 to 0.013 with the seeds 0, 1, 2."""
    mixture = td.GaussianMixture(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), 0.7, None, td.VP())
    x0, y = mixture.sample_labelled(20_000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    d = td.NetClassifier(Linear(), td.VP())
    fit = td.fit(d, dict(x0=x0, y=y), steps=600, loss=td.classifier_loss, lr=1e-2, batch_size=512, seed=0, ema=0.98)
    d = list(fit)[-1].denoiser
    for t in (0.05, 0.3, 0.6):
        c = d.schedule(t, like=x0[:500])
        x = c.alpha * x0[:500] + c.sigma * normal(500, 2, seed=7)
        found, exact = d.logits(x, t).softmax(1)[:, 1], mixture.posterior(x, t)[:, 1]
        assert (found - exact).abs().mean() < 0.03


def test_it_is_saved_and_loaded_as_what_it_is(tmp_path):
    d, x = classifier(), normal(2, 1, 8, 8)
    td.save_checkpoint(tmp_path / "c.safetensors", d, {"seed": 0})
    back = td.load_checkpoint(tmp_path / "c.safetensors")
    assert type(back) is td.NetClassifier and back.schedule == td.Cosine()
    torch.testing.assert_close(back.logits(x, 0.3), d.logits(x, 0.3), atol=0, rtol=0)
