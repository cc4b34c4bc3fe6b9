"""The U-Net of DDPM (Ho et al. 2020, appendix B), small enough here for 8x8 images on a laptop.

Down: at each resolution a few residual blocks, then halve. Up: the same in reverse, each block also given the feature
map of its mirror image (the skip). Every residual block hears the noise level and the class.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tinydiff.models.layers import NoiseAndClass, zero_


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in 8 groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and SiLU; the condition scales and shifts the middle (AdaGN, ADM)."""

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = (
            norm(c_out),
            zero_(nn.Conv2d(c_out, c_out, 3, padding=1)),
        )
        self.emb = nn.Linear(emb, 2 * c_out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c2 h w"]:
        h = self.conv1(F.silu(self.norm1(x)))  # (b, c_out, h, w)
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)  # (b, c_out, 1, 1) each
        h = self.norm2(h) * (1 + scale) + shift  # (b, c_out, h, w)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))  # (b, c_out, h, w)


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map, as a residual."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.norm, self.heads = norm(channels), heads
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), zero_(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        qkv = rearrange(self.qkv(self.norm(x)), "b (three n d) h w -> three b n (h w) d", three=3, n=self.heads)
        h = F.scaled_dot_product_attention(*qkv)  # (b, heads, h w, d)
        return x + self.out(rearrange(h, "b n (h w) d -> b (n d) h w", h=x.shape[2]))


class UNet(nn.Module):
    """Images (b, in_channels, h, w) and noise levels (b,) to images of out_channels; h and w divide by 2^(levels - 1).

    With `classes`, forward takes y = (b,) labels; see `layers.NoiseAndClass` for the null label.
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
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.config = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            width=width,
            mults=list(mults),
            blocks=blocks,
            attention=list(attention),
            classes=classes,
            dropout=dropout,
        )
        if len(mults) != len(attention):
            raise ValueError(f"attention must have one entry a resolution, {len(mults)}; got {len(attention)}")
        emb = 4 * width
        self.emb = NoiseAndClass(emb, classes)
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, skips = width, [width]
        for level, (mult, attend) in enumerate(zip(mults, attention, strict=True)):
            if level > 0:
                self.down.append(Resample(c, down=True))
                skips.append(c)
            for _ in range(blocks):
                self.down.append(Stage(c, mult * width, emb, dropout, attend))
                c = mult * width
                skips.append(c)
        self.middle = nn.ModuleList([Stage(c, c, emb, dropout, attention[-1]), Stage(c, c, emb, dropout, False)])
        for level, (mult, attend) in reversed(list(enumerate(zip(mults, attention, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(Stage(c + skips.pop(), mult * width, emb, dropout, attend))
                c = mult * width
            if level > 0:
                self.up.append(Resample(c, down=False))
        self.last = nn.Sequential(norm(c), nn.SiLU(), zero_(nn.Conv2d(c, out_channels, 3, padding=1)))

    def forward(
        self, x: Float[Tensor, "b c h w"], noise_level: Float[Tensor, " b"], y: Tensor | None = None
    ) -> Float[Tensor, "b c2 h w"]:
        halved = 2 ** (len(self.config["mults"]) - 1)
        if x.shape[2] % halved or x.shape[3] % halved:
            raise ValueError(f"h and w must divide by {halved}; got {x.shape[2]} x {x.shape[3]}")
        emb = self.emb(noise_level, y)  # (b, emb)
        h = self.first(x)
        skips = [h]
        for module in self.down:
            h = module(h, emb)
            skips.append(h)
        for module in self.middle:
            h = module(h, emb)
        for module in self.up:
            h = module(torch.cat([h, skips.pop()], dim=1) if module.takes_skip else h, emb)
        return self.last(h)  # (b, out_channels, h, w)


class Stage(nn.Module):
    """A residual block, and attention where it is asked for."""

    takes_skip = True

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.block = ResBlock(c_in, c_out, emb, dropout)
        self.attention = Attention(c_out) if attend else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.block(x, emb))


class Resample(nn.Module):
    """Halve by a strided convolution, or double by nearest neighbour and a convolution."""

    takes_skip = False

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, stride=2 if down else 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x if self.down else F.interpolate(x, scale_factor=2, mode="nearest"))
