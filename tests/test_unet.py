"""The U-Net: the papers' sizes, its value against diffusers' with the same weights, and what each argument changes."""

import math

import pytest
import torch
from torch import nn

from tinydiff.models import UNet, UNet2015, cost, unet
from tinydiff.models.unet import ResBlock, double, halve


def awake(net: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return net


def build(**options) -> UNet:
    torch.manual_seed(0)
    return UNet(**dict(width=8, mults=(1, 2), attention=(False, True)) | options)


def inputs(c: int = 1, side: int = 8, n: int = 3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, c, side, side, generator=g), 1000 * torch.rand(n, generator=g)


# ---- sizes ---------------------------------------------------------------------------------------

# official code, run; ours has one more class, the null label, of 4 width numbers
SIZES = {
    "ddpm_cifar": (35_746_307, 0),
    "adm_64": (295_904_454, 4 * 192),
    "adm_128": (421_529_606, 4 * 256),
    "adm_256": (552_814_086, 0),
    "adm_upsampler": (311_795_910, 4 * 192),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_papers_sizes(name):
    official, null_label = SIZES[name]
    with torch.device("meta"):
        assert cost.parameters(getattr(unet, name)()) == official + null_label


@pytest.mark.parametrize(
    "condition, resample, count",
    [("add", "conv", 1_164_259), ("add", "block", 1_314_083), ("scale-shift", "conv", 1_242_691)]
    + [("scale-shift", "block", 1_421_411)],
)
def test_a_small_network_has_the_official_number_of_parameters(condition, resample, count):
    given = dict(in_channels=3, width=32, mults=(1, 2, 2), attention=(False, True, True), features=32)
    with torch.device("meta"):
        assert cost.parameters(UNet(**given, condition=condition, resample=resample)) == count


def test_the_network_of_2015():
    """23 convolutions (4 of them double the side), 64 channels to 1,024."""
    with torch.device("meta"):
        net = UNet2015()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convs) == 23 and max(m.out_channels for m in convs) == 1024

    def two(a, b):
        return 9 * a * b + b + 9 * b * b + b

    widths = [64, 128, 256, 512, 1024]
    down = sum(two(a, b) for a, b in zip([1, *widths], widths, strict=False))
    up = sum(4 * 2 * c * c + c + two(2 * c, c) for c in widths[:-1])
    assert cost.parameters(net) == down + up + 2 * 64 + 2 == 31_030_658


def test_the_network_of_2015_keeps_the_size_and_hears_every_skip():
    torch.manual_seed(0)
    net, x = UNet2015(width=4, levels=2), torch.randn(2, 1, 8, 12)
    out = net(x)
    assert out.shape == (2, 2, 8, 12)
    assert [tuple(h.shape[1:]) for h in net.encode(x)] == [(4, 8, 12), (8, 4, 6), (16, 2, 3)]
    top, second, _ = net.encode(x)
    largest = top.reshape(2, 4, 4, 2, 6, 2).amax((3, 5))  # of each four
    torch.testing.assert_close(second, net.down[1](largest))
    assert math.isclose(net.down[1][0].weight.detach().std(), math.sqrt(2 / (9 * 4)), rel_tol=0.1)  # 2 / fan-in
    out.square().mean().backward()
    assert all(p.grad.any() for p in net.parameters())
    for k in range(2):  # the half of each decoder's weights that reads the skip
        assert net.up[k][0].weight.grad[:, : 8 // 2**k].any()
    for bad in (torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 6)):
        with pytest.raises(ValueError, match=r"x must be \(b, 1, h, w\), h and w multiples of 4; got"):
            net(bad)


# ---- the same weights, another implementation ----------------------------------------------------


def of_diffusers(ours: UNet, side: int):
    """diffusers' UNet2DModel with the architecture and the weights of ours."""
    from diffusers import UNet2DModel

    s = ours.config
    plain_down, plain_up = "DownBlock2D", "UpBlock2D"
    if s["resample"] == "block":
        plain_down, plain_up = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    theirs = UNet2DModel(
        sample_size=side,
        in_channels=s["in_channels"],
        out_channels=s["out_channels"],
        freq_shift=0,
        flip_sin_to_cos=True,
        block_out_channels=tuple(m * s["width"] for m in s["mults"]),
        down_block_types=tuple("AttnDownBlock2D" if a else plain_down for a in s["attention"]),
        up_block_types=tuple("AttnUpBlock2D" if a else plain_up for a in reversed(s["attention"])),
        layers_per_block=s["blocks"],
        attention_head_dim=s["head_channels"],
        norm_num_groups=s["groups"],
        attn_norm_num_groups=s["groups"],
        norm_eps=1e-5,
        resnet_time_scale_shift={"add": "default", "scale-shift": "scale_shift"}[s["condition"]],
        downsample_type="resnet" if s["resample"] == "block" else "conv",
        upsample_type="resnet" if s["resample"] == "block" else "conv",
        num_class_embeds=None if s["classes"] is None else s["classes"] + 1,
    )

    def same(mine: nn.Module, its: nn.Module) -> None:
        its.load_state_dict(mine.state_dict())

    def block(mine, its) -> None:
        for a, b in (("norm1", "norm1"), ("conv1", "conv1"), ("emb", "time_emb_proj"), ("norm2", "norm2")):
            same(getattr(mine, a), getattr(its, b))
        same(mine.conv2, its.conv2)
        if its.conv_shortcut is not None:
            same(mine.skip, its.conv_shortcut)

    def attention(mine, its) -> None:
        same(mine.norm, its.group_norm)
        w, b = mine.qkv.weight[:, :, 0, 0], mine.qkv.bias
        for layer, weight, bias in zip((its.to_q, its.to_k, its.to_v), w.chunk(3), b.chunk(3), strict=True):
            layer.load_state_dict(dict(weight=weight, bias=bias))
        its.to_out[0].load_state_dict(dict(weight=mine.out.weight[:, :, 0, 0], bias=mine.out.bias))

    def stages(mine: list, its) -> None:
        looks = its.attentions if hasattr(its, "attentions") else [None] * len(its.resnets)
        for stage, resnet, look in zip(mine, its.resnets, looks, strict=False):
            block(stage.block, resnet)
            if look is not None:
                attention(stage.attention, look)

    same(ours.emb.mlp[0], theirs.time_embedding.linear_1), same(ours.emb.mlp[2], theirs.time_embedding.linear_2)
    if s["classes"] is not None:
        same(ours.emb.label, theirs.class_embedding)
    same(ours.first, theirs.conv_in), same(ours.last[0], theirs.conv_norm_out), same(ours.last[2], theirs.conv_out)
    down, up, n = list(ours.down), list(ours.up), s["blocks"]
    for level, its in enumerate(theirs.down_blocks):
        stages([down.pop(0) for _ in range(n)], its)
        if level + 1 < len(s["mults"]):
            resample, sampler = down.pop(0), its.downsamplers[0]
            block(resample.block, sampler) if s["resample"] == "block" else same(resample.conv, sampler.conv)
    for stage, resnet in zip(ours.middle, theirs.mid_block.resnets, strict=True):
        block(stage.block, resnet)
    attention(ours.middle[0].attention, theirs.mid_block.attentions[0])
    for level, its in enumerate(theirs.up_blocks):
        stages([up.pop(0) for _ in range(n + 1)], its)
        if level + 1 < len(s["mults"]):
            resample, sampler = up.pop(0), its.upsamplers[0]
            block(resample.block, sampler) if s["resample"] == "block" else same(resample.conv, sampler.conv)
    return theirs


@pytest.mark.parametrize("resample", ["conv", "block"])
@pytest.mark.parametrize("condition", ["add", "scale-shift"])
@pytest.mark.parametrize("blocks, classes", [(1, None), (2, 5)])
def test_equal_to_diffusers_with_the_same_weights(condition, resample, blocks, classes):
    settings = dict(in_channels=3, width=16, mults=(1, 2, 3), attention=(False, True, True), head_channels=8)
    ours = build(**settings, features=16, condition=condition, resample=resample, blocks=blocks, classes=classes)
    awake(ours).eval()
    theirs = of_diffusers(ours, 8).eval()
    assert cost.parameters(theirs) == cost.parameters(ours)
    x, t = inputs(3)
    y = None if classes is None else torch.tensor([0, 3, 5])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, y), theirs(x, t, y).sample, rtol=1e-4, atol=1e-4)


# ---- what an argument changes --------------------------------------------------------------------


def test_halve_and_double_undo_each_other():
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(halve(double(x)), x) and double(x).shape == (2, 3, 8, 12)
    with torch.no_grad():
        block = ResBlock(8, 8, 16, resample=halve)  # starts as its own shortcut
        torch.testing.assert_close(
            block(x.repeat(1, 3, 1, 1)[:, :8], torch.randn(2, 16)), halve(x.repeat(1, 3, 1, 1)[:, :8])
        )


def test_adagn_with_a_silent_condition_is_group_norm():
    torch.manual_seed(0)
    block = awake(ResBlock(8, 8, 16))
    with torch.no_grad():
        block.emb.weight.zero_(), block.emb.bias.zero_()
    plain = ResBlock(8, 8, 16, condition="none")
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("emb")})
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x, torch.randn(2, 16)), plain(x, None))


def test_the_number_of_skips_is_that_of_the_decoders_blocks():
    net = build(mults=(1, 2, 2), blocks=2, attention=(False,) * 3)
    stages = sum(isinstance(m, unet.Stage) for m in net.up)
    assert stages == 3 * (2 + 1) == 1 + len(net.down)  # levels (blocks + 1)


def test_without_skips_the_decoder_sees_the_lowest_map_only():
    """What the first level saves reaches the output only through the lowest map: its size says so."""
    with_skips, without = awake(build()), awake(build(skips=False))
    assert cost.parameters(without) < cost.parameters(with_skips)
    x, t = inputs()
    assert without(x, t).shape == x.shape
    for net, expected in ((with_skips, True), (without, False)):
        with torch.no_grad():
            for module in list(net.down)[1:]:  # cut the way down
                module.register_forward_hook(lambda m, i, o: torch.zeros_like(o))
            changed = (net(x, t) - net(x + 1, t)).abs().max() > 1e-6
        assert bool(changed) == expected


def test_zero_false_starts_awake():
    x, t = inputs()
    assert not build()(x, t).any() and build(zero=False)(x, t).any()


def test_without_normalisation_there_is_none():
    assert not any(isinstance(m, nn.GroupNorm) for m in build(groups=0).modules())
    groups = {m.num_groups for m in build(groups=4).modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {4}


def test_the_output_does_not_see_the_scale_before_a_norm():
    """GroupNorm undoes it: the property that lets blocks be stacked."""
    block = awake(ResBlock(8, 8, 16, condition="none")).eval()
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(
        block(1000 * x, None) - 1000 * block.skip(x), block(10 * x, None) - 10 * block.skip(x), rtol=1e-2, atol=1e-2
    )


def test_a_network_that_is_not_told_hears_nothing():
    net = awake(build(condition="none"))
    x, t = inputs()
    assert torch.equal(net(x, t), net(x, t + 100)) and net.emb is None


def test_heads_by_number_and_by_width():
    def heads(net):
        return [m.heads for m in net.modules() if isinstance(m, unet.Attention)]

    deep = dict(mults=(1, 2, 4), attention=(True, True, True))
    assert set(heads(build(**deep))) == {4}
    assert heads(build(**deep, head_channels=8)) == [1, 2, 4] + [4, 4, 2, 2, 1, 1] + [4]  # down, up, middle


@pytest.mark.parametrize("resample", ["conv", "block"])
def test_checkpointing_changes_nothing(resample):
    x, t = inputs()
    plain, saving = (awake(build(dropout=0.0, resample=resample, checkpoint=c)) for c in (False, True))
    a, b = plain(x, t), saving(x, t)
    assert torch.equal(a, b)
    a.square().sum().backward(), b.square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), saving.parameters(), strict=True))


def test_settings_that_do_not_go_together_are_named():
    with pytest.raises(ValueError, match="condition must be one of scale-shift, add, none; got 'film'"):
        build(condition="film")
    with pytest.raises(ValueError, match="resample must be one of conv, block; got 'pool'"):
        build(resample="pool")
    with pytest.raises(ValueError, match="classes must be None"):
        build(condition="none", classes=3)
    with pytest.raises(ValueError, match="heads must divide the 16 channels of a feature map; got 5"):
        build(heads=5)
    with pytest.raises(ValueError, match=r"x must be \(b, 1, h, w\) for this network; got \(2, 3, 8, 8\)"):
        build()(torch.zeros(2, 3, 8, 8), torch.zeros(2))
