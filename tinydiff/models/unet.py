"""The U-Net of diffusion models: DDPM's (Ho et al. 2020, appendix B) and, by its arguments, ADM's.

Down: at each resolution a few residual blocks, then halve. Up: the same in reverse, each block also given the feature
map of its mirror image (the skip). Every residual block hears the noise level and the class.

What ADM changed (Dhariwal and Nichol 2021, section 3): the condition scales and shifts a normalised map (AdaGN) in
place of being added; attention at three resolutions, with 64 channels a head; blocks that halve and double (BigGAN's).
`ddpm_cifar`, `adm_64` and their like, at the end, are the papers' own sizes. The first U-Net is in `unet2015`.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from tinydiff.models.layers import NoiseAndClass, zero_
from tinydiff.models.text import SpatialTransformer

CONDITIONS = ("scale-shift", "add", "none")
RESAMPLES = ("conv", "block")


def norm(channels: int, groups: int = 8) -> nn.GroupNorm:
    """GroupNorm in 8 groups (the papers have 32), or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and SiLU. The condition acts in the middle, and may halve or double the map.

    condition: "scale-shift", GN(h) (1 + scale) + shift (AdaGN, ADM); "add", GN(h + shift) (DDPM); or "none".
    resample: what halves or doubles both branches (ADM's way), such as `halve`.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb: int,
        dropout: float = 0.0,
        condition: str = "scale-shift",
        norm: Callable[[int], nn.Module] = norm,
        zero: Callable[[nn.Module], nn.Module] = zero_,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.condition, self.resample = condition, resample
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = norm(c_out), zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        numbers = {"scale-shift": 2 * c_out, "add": c_out, "none": 0}[condition]
        self.emb = nn.Linear(emb, numbers) if numbers else None
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"] | None) -> Float[Tensor, "b c2 h2 w2"]:
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)  # (b, c_out, h2, w2)
        told = None if self.emb is None else self.emb(F.silu(emb))[:, :, None, None]  # (b, numbers, 1, 1)
        if self.condition == "scale-shift":
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h if told is None else h + told)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))  # (b, c_out, h2, w2)


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, as a residual."""

    def __init__(
        self,
        channels: int,
        heads: int = 4,
        norm: Callable[[int], nn.Module] = norm,
        zero: Callable[[nn.Module], nn.Module] = zero_,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide the {channels} channels of a feature map; got {heads}")
        self.norm, self.heads = norm(channels), heads
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        qkv = rearrange(self.qkv(self.norm(x)), "b (three n d) h w -> three b n (h w) d", three=3, n=self.heads)
        # with channels that lie apart, the fused kernels are not used: half the speed, and the whole matrix in memory
        h = F.scaled_dot_product_attention(*qkv.contiguous())  # (b, heads, h w, d)
        return x + self.out(rearrange(h, "b n (h w) d -> b (n d) h w", h=x.shape[2]))


def halve(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    return F.avg_pool2d(x, 2)


def double(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class UNet(nn.Module):
    """Images (b, in_channels, h, w) and noise levels (b,) to images of out_channels; h and w divide by 2^(levels - 1).

    With `classes`, forward takes y = (b,) labels; see `layers.NoiseAndClass` for the null label. The output and every
    residual branch start at zero.
    Raises ValueError for settings that do not go together, and for images of another number of channels or side.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,  # in_channels by default; twice that where a variance is learned
        width: int = 32,  # channels at the top resolution
        mults: tuple[int, ...] | list[int] = (1, 2),  # channels at each resolution, in widths
        blocks: int = 1,  # residual blocks at each resolution
        attention: tuple[bool, ...] | list[bool] = (False, True),  # at each resolution
        classes: int | None = None,
        dropout: float = 0.0,
        middle_attention: bool | None = None,  # None: as at the lowest resolution
        heads: int = 4,
        head_channels: int | None = None,  # channels of a head; given, it takes the place of `heads` (ADM: 64)
        condition: str = "scale-shift",  # or "add" (DDPM), or "none": the network is not told the noise level
        resample: str = "conv",  # a convolution (DDPM), or "block": within a residual block (BigGAN, ADM)
        groups: int = 8,  # of GroupNorm; 0 for no normalisation
        features: int | None = None,  # sinusoids that tell the noise level: 4 width; the papers' have `width`
        zero: bool = True,  # False: the last layer of each branch starts as torch starts it
        skips: bool = True,  # False: the decoder sees the lowest feature map only
        checkpoint: bool = False,  # keep the blocks' inputs only and compute them again going back: less memory
        context: int | None = None,  # width of a text's vectors: attention then hears them too (latent diffusion)
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.config |= dict(mults=list(mults), attention=list(attention))
        if context is None:
            del self.config["context"]  # checkpoints from before there was text say nothing of it
        if len(mults) != len(attention):
            raise ValueError(f"attention must have one entry a resolution, {len(mults)}; got {len(attention)}")
        for name, value, allowed in (("condition", condition, CONDITIONS), ("resample", resample, RESAMPLES)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        emb = 4 * width
        self.emb = NoiseAndClass(emb, classes, features) if condition != "none" or classes is not None else None
        if condition == "none" and classes is not None:
            raise ValueError("condition='none' tells the network nothing, so classes must be None")
        normalise = partial(norm, groups=groups) if groups else lambda channels: nn.Identity()
        start = zero_ if zero else lambda layer: layer
        block = partial(ResBlock, emb=emb, dropout=dropout, condition=condition, norm=normalise, zero=start)
        heads_of = lambda c: c // head_channels if head_channels else heads  # noqa: E731
        attend = lambda c: Attention(c, heads_of(c), normalise, start)  # noqa: E731
        if context is not None:
            attend = lambda c: SpatialTransformer(c, context, heads_of(c), normalise(c), start)  # noqa: E731
        stage = lambda c_in, c_out, look: Stage(block(c_in, c_out), attend(c_out) if look else nn.Identity())  # noqa: E731
        if resample == "conv":
            halved, doubled = lambda c: Resample(c, down=True), lambda c: Resample(c, down=False)
        else:
            halved, doubled = (
                lambda c: Whole(block(c, c, resample=halve)),
                lambda c: Whole(block(c, c, resample=double)),
            )

        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, saved = width, [width]  # channels now, and of each map that the decoder will be given
        for level, (mult, look) in enumerate(zip(mults, attention, strict=True)):
            if level > 0:
                self.down.append(halved(c))
                saved.append(c)
            for _ in range(blocks):
                self.down.append(stage(c, mult * width, look))
                c = mult * width
                saved.append(c)
        look = attention[-1] if middle_attention is None else middle_attention
        self.middle = nn.ModuleList([stage(c, c, look), stage(c, c, False)])
        for level, (mult, look) in reversed(list(enumerate(zip(mults, attention, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(stage(c + saved.pop() if skips else c, mult * width, look))
                c = mult * width
            if level > 0:
                self.up.append(doubled(c))
        self.last = nn.Sequential(normalise(c), nn.SiLU(), start(nn.Conv2d(c, out_channels, 3, padding=1)))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        noise_level: Float[Tensor, " b"],
        y: Tensor | None = None,
        text: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b c2 h w"]:
        channels, halvings = self.config["in_channels"], 2 ** (len(self.config["mults"]) - 1)
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"x must be (b, {channels}, h, w) for this network; got {tuple(x.shape)}")
        if x.shape[2] % halvings or x.shape[3] % halvings:
            raise ValueError(f"h and w must divide by {halvings}; got {x.shape[2]} x {x.shape[3]}")
        told = self.told(noise_level, y, text, mask)  # what each block hears
        h = self.first(x)
        saved = [h]
        for module in self.down:
            h = self.run(module, h, *told)
            saved.append(h)
        for module in self.middle:
            h = self.run(module, h, *told)
        for module in self.up:
            if isinstance(module, Stage) and self.config["skips"]:
                h = torch.cat([h, saved.pop()], dim=1)
            h = self.run(module, h, *told)
        return self.last(h)  # (b, out_channels, h, w)

    def told(
        self, noise_level: Tensor, y: Tensor | None, text: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """(emb,) or, with text, (emb, text, mask): noise level and class as one vector (b, emb)."""
        if (text is None) != ("context" not in self.config):
            said = "none was given" if text is None else "it was made without context="
            raise ValueError(f"text must go to a network made with context=, and to no other; here {said}")
        emb = None if self.emb is None else self.emb(noise_level, y)
        return (emb,) if text is None else (emb, text, mask)

    def run(self, module: nn.Module, h: Tensor, *told: Tensor | None) -> Tensor:
        if self.config["checkpoint"] and torch.is_grad_enabled():
            return recompute(module, h, *told, use_reentrant=False)
        return module(h, *told)


class Stage(nn.Module):
    """A residual block, and attention where it is asked for. In the decoder each is given a skip."""

    def __init__(self, block: ResBlock, attention: nn.Module) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, emb: Tensor | None, *text: Tensor | None) -> Tensor:
        h = self.block(x, emb)
        return self.attention(h, *text) if isinstance(self.attention, SpatialTransformer) else self.attention(h)


class Whole(nn.Module):
    """A residual block that halves or doubles."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, emb: Tensor | None, *text: Tensor | None) -> Tensor:
        return self.block(x, emb)


class Resample(nn.Module):
    """Halve by a strided convolution, or double by nearest neighbour and a convolution."""

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, stride=2 if down else 1)

    def forward(self, x: Tensor, *told: Tensor | None) -> Tensor:
        return self.conv(x if self.down else double(x))


# ---- the papers' sizes ---------------------------------------------------------------------------


def ddpm_cifar(**changes) -> UNet:
    """DDPM's U-Net for CIFAR-10 (Ho et al. 2020, appendix B): 35.7 M parameters."""
    at_16 = dict(mults=(1, 2, 2, 2), attention=(False, True, False, False), middle_attention=True)
    settings = dict(in_channels=3, width=128, blocks=2, condition="add", heads=1, groups=32, features=128, dropout=0.1)
    return UNet(**settings | at_16 | changes)


def _adm(side: int, width: int, mults: tuple[int, ...], blocks: int = 2, **settings) -> UNet:
    """ADM's U-Net: attention at 32, 16 and 8 pixels, learned variances (Dhariwal and Nichol 2021, section 3)."""
    attention = [side >> level in (32, 16, 8) for level in range(len(mults))]
    given = dict(in_channels=3, out_channels=6, width=width, mults=mults, blocks=blocks, attention=attention)
    usual = dict(head_channels=64, middle_attention=True, resample="block", groups=32, features=width)
    return UNet(**given | usual | settings)


def adm_64(**changes) -> UNet:
    """ADM for ImageNet at 64 pixels, class-conditional: 296 M parameters."""
    return _adm(64, 192, (1, 2, 3, 4), 3, **dict(classes=1000, dropout=0.1) | changes)


def adm_128(**changes) -> UNet:
    """ADM for ImageNet at 128 pixels, class-conditional, 4 heads: 422 M parameters."""
    return _adm(128, 256, (1, 1, 2, 3, 4), **dict(classes=1000, heads=4, head_channels=None) | changes)


def adm_256(**changes) -> UNet:
    """ADM at 256 pixels, unconditional: 553 M parameters."""
    return _adm(256, 256, (1, 1, 2, 2, 4, 4), **changes)


def adm_upsampler(**changes) -> UNet:
    """ADM's upsampler from 64 to 256 pixels: the low resolution comes as three more channels. 312 M parameters."""
    four = dict(in_channels=6, classes=1000, heads=4, head_channels=None)
    return _adm(256, 192, (1, 1, 2, 2, 4, 4), **four | changes)
