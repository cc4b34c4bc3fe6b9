"""The networks: shapes, gradients to every parameter, labels, and configurations that rebuild them."""

import math

import pytest
import torch
from torch import nn

from tinydiff.models import MLP, DiT, UNet
from tinydiff.models.layers import sinusoidal
from tinydiff.models.unet import Attention, ResBlock

# name -> (make, shape of x without the batch)
NETS = {
    "mlp": (lambda **k: MLP(**k), (2,)),
    "mlp 1-D, no features": (lambda **k: MLP(dim=1, width=8, depth=1, fourier=0, **k), (1,)),
    "mlp 7-D, odd width": (lambda **k: MLP(dim=7, width=31 * 2, depth=5, fourier=3, **k), (7,)),
    "unet 8": (lambda **k: UNet(width=8, **k), (1, 8, 8)),
    "unet 16, colour": (lambda **k: UNet(3, width=8, mults=(1, 2, 3), attention=(False, True, True), **k), (3, 16, 16)),
    "unet 8 x 12": (lambda **k: UNet(2, width=8, blocks=2, attention=(True, False), **k), (2, 8, 12)),
    "unet of one level, odd size": (lambda **k: UNet(width=12, mults=(1,), attention=(True,), **k), (1, 7, 5)),
    "unet, odd width": (
        lambda **k: UNet(width=20, mults=(1, 2), attention=(False, False), dropout=0.5, **k),
        (1, 6, 6),
    ),
    "dit": (lambda **k: DiT(width=16, depth=2, **k), (1, 8, 8)),
    "dit 9, colour, one head": (lambda **k: DiT(3, size=9, patch=3, width=8, depth=1, heads=1, **k), (3, 9, 9)),
    "dit, adaln": (lambda **k: DiT(width=16, depth=2, conditioning="adaln", **k), (1, 8, 8)),
    "dit, in-context": (lambda **k: DiT(width=16, depth=2, conditioning="in-context", **k), (1, 8, 8)),
    "dit, cross-attention": (lambda **k: DiT(width=16, depth=2, conditioning="cross-attention", **k), (1, 8, 8)),
}


ALL = pytest.mark.parametrize("name", NETS)


def build(name: str, seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return NETS[name][0](**options)


def inputs(name: str, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, *NETS[name][1], generator=g), 1000 * torch.rand(n, generator=g)


def awake(net: nn.Module) -> nn.Module:
    """The network with its zeros replaced, so that every path is open."""
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p += 0.1 * torch.randn(p.shape, generator=g)
    return net


@ALL
@pytest.mark.parametrize("n", [1, 3])
def test_output_is_like_the_input_and_zero_at_first(name, n):
    net = build(name)
    x, t = inputs(name, n)
    out = net(x, t)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert not out.any()
    assert awake(net)(x, t).isfinite().all()


@ALL
def test_every_element_of_the_batch_is_answered_alone(name):
    net = awake(build(name)).eval()
    x, t = inputs(name)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(net(x, t), alone, rtol=1e-4, atol=1e-5)


@ALL
@pytest.mark.parametrize("classes", [None, 4])
def test_gradients_reach_every_parameter_after_a_few_steps(name, classes):
    """What stands behind a layer of zeros hears nothing until that layer has moved: two such layers, two steps."""
    net = build(name, classes=classes)
    x, t = inputs(name, 10)
    cond = {} if classes is None else dict(y=torch.arange(10) % (classes + 1))
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(4):
        opt.zero_grad()
        (net(x, t, **cond) - torch.ones_like(x)).square().mean().backward()
        opt.step()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    if name == "dit, cross-attention" and classes is None:  # of a single token, every question has the same answer
        silent = [p for p in silent if ".norm2." not in p and ".cross.q." not in p]
    assert silent == []
    if classes is not None:  # each row of the table, the null label's too
        assert (net.emb.label.weight.grad != 0).any(1).all()


@ALL
def test_noise_level_and_class_change_the_answer(name):
    net = awake(build(name, classes=3)).eval()
    x, t = inputs(name)
    y = torch.tensor([0, 1, 2])
    out = net(x, t, y)
    assert (out != net(x, t + 5, y)).flatten(1).any(1).all()
    assert (out != net(x, t, (y + 1) % 3)).flatten(1).any(1).all()


@ALL
def test_no_label_is_the_null_label(name):
    net = awake(build(name, classes=3)).eval()
    x, t = inputs(name)
    assert torch.equal(net(x, t), net(x, t, y=torch.full((3,), 3)))
    assert torch.equal(net(x, t), net(x, t, y=torch.full((3,), 3, dtype=torch.int32)))


@ALL
def test_bad_labels_are_named(name):
    x, t = inputs(name)
    with pytest.raises(ValueError, match="made without classes: pass classes="):
        build(name)(x, t, y=torch.zeros(3, dtype=torch.long))
    net = build(name, classes=3)
    for bad in (torch.tensor([0, 1, 4]), torch.tensor([-1, 0, 0])):
        with pytest.raises(ValueError, match=r"y must lie in 0 \.\.\. 3 \(3 is no class\); got"):
            net(x, t, y=bad)
    with pytest.raises(ValueError, match=r"y must be 3 integer classes; got \(2,\)"):
        net(x, t, y=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"y must be 3 integer classes; got \(3,\) of torch.float32"):
        net(x, t, y=torch.zeros(3))


@ALL
@pytest.mark.parametrize("classes", [None, 3])
def test_config_rebuilds_the_same_network(name, classes):
    net = awake(build(name, seed=1, classes=classes)).eval()
    again = type(net)(**net.config)
    assert again.config == net.config
    again.load_state_dict(net.state_dict())
    x, t = inputs(name)
    assert torch.equal(again.eval()(x, t), net(x, t))


@ALL
def test_float64_and_bfloat16(name):
    net = awake(build(name)).eval()
    x, t = inputs(name)
    single = net(x, t)
    double = net.double()(x.double(), t.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)
    half = net.bfloat16()(x.bfloat16(), t.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all() and half.shape == x.shape


# ---- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width, max_period", [(2, 10_000.0), (16, 10_000.0), (64, 100.0)])
def test_sinusoidal_is_its_formula(width, max_period):
    t = torch.tensor([0.0, 0.25, 1.0, 999.0], dtype=torch.float64)
    emb = sinusoidal(t, width, max_period)
    half = width // 2
    for row, time in zip(emb, t.tolist(), strict=True):
        for i in range(half):
            angle = time * max_period ** (-i / half)
            assert math.isclose(row[i], math.cos(angle), abs_tol=1e-9)
            assert math.isclose(row[half + i], math.sin(angle), abs_tol=1e-9)


def test_sinusoidal_tells_neighbouring_steps_apart():
    emb = sinusoidal(torch.arange(1001.0), 64)
    nearest = torch.cdist(emb, emb) + 10 * torch.eye(1001)
    assert nearest.min() > 0.5


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="width must be even"):
        MLP(width=33)


def test_a_block_and_attention_start_as_the_identity():
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert torch.equal(ResBlock(8, 8, 16, dropout=0.0)(x, emb), x)
    assert torch.equal(Attention(8)(x), x)


def test_attention_is_its_formula():
    torch.manual_seed(0)
    net, x = awake(Attention(8, heads=2)), torch.randn(2, 8, 3, 5)
    q, k, v = net.qkv(net.norm(x)).reshape(2, 3, 2, 4, 15).unbind(1)  # (b, heads, d, pixels) each
    weight = (q.transpose(2, 3) @ k / math.sqrt(4)).softmax(-1)
    h = (v @ weight.transpose(2, 3)).reshape(2, 8, 3, 5)
    torch.testing.assert_close(net(x), x + net.out(h), rtol=1e-4, atol=1e-5)


def test_dropout_works_while_training_only():
    net = awake(UNet(width=8, dropout=0.5))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 500.0])
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


def test_twice_the_channels_for_a_variance():
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert UNet(3, out_channels=6, width=8)(x, t).shape == (2, 6, 8, 8)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="attention must have one entry a resolution, 3; got 2"):
        UNet(mults=(1, 2, 2), attention=(False, True))
    with pytest.raises(ValueError, match=r"h and w must divide by 2; got 7 x 8"):
        UNet(width=8)(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    with pytest.raises(ValueError, match=r"h and w must divide by 4; got 8 x 10"):
        UNet(width=8, mults=(1, 1, 1), attention=(False,) * 3)(torch.zeros(1, 1, 8, 10), torch.zeros(1))


def test_an_mlp_of_two_outputs_gives_both_halves():
    net = awake(MLP(dim=3, width=8, depth=1, outputs=2))
    out = net(torch.randn(5, 3), torch.zeros(5))
    assert out.shape == (5, 6) and net.config["outputs"] == 2
    mean, second = out.chunk(2, dim=1)
    assert not torch.allclose(mean, second)
