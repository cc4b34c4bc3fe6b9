"""The first U-Net (Ronneberger, Fischer and Brox 2015), for segmentation: what diffusion took over, and what it added.

Down: two convolutions, halve by the largest of four, twice the channels. Up: the same in reverse, each level also given
the map of its mirror image. No normalisation, no residual branches, no attention, and nothing tells it a noise level.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class UNet2015(nn.Module):
    """Images (b, in_channels, h, w) to scores (b, out_channels, h, w); h and w divide by 2^levels.

    The paper: width 64, 4 levels, 31.0 M parameters, 23 convolutions. One thing differs: its convolutions are without
    padding, so its output is smaller than its input (388 of 572 pixels) and its skips are cropped; here all are padded.
    Weights start with variance 2 / fan-in (section 3).

    Raises ValueError for images of another number of channels or side.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 2, width: int = 64, levels: int = 4) -> None:
        super().__init__()
        self.config = dict(in_channels=in_channels, out_channels=out_channels, width=width, levels=levels)
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(two_convs(a, b) for a, b in zip([in_channels, *widths], widths, strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in reversed(widths[:-1]))
        self.up = nn.ModuleList(two_convs(2 * c, c) for c in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        channels, halvings = self.config["in_channels"], 2 ** self.config["levels"]
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % halvings or x.shape[3] % halvings:
            raise ValueError(f"x must be (b, {channels}, h, w), h and w multiples of {halvings}; got {tuple(x.shape)}")
        *saved, h = self.encode(x)
        for grow, convs in zip(self.grow, self.up, strict=True):
            h = convs(torch.cat([saved.pop(), grow(h)], dim=1))
        return self.last(h)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The map of each level, the top one first: (b, 2^level width, h / 2^level, w / 2^level)."""
        maps = []
        for level, convs in enumerate(self.down):
            maps.append(convs(x if level == 0 else F.max_pool2d(maps[-1], 2)))
        return maps


def two_convs(c_in: int, c_out: int) -> nn.Sequential:
    convs = [nn.Conv2d(c, c_out, 3, padding=1) for c in (c_in, c_out)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU())
