"""A small convolutional classifier, whose features judge images: the place that Inception has in FID."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvClassifier(nn.Module):
    """Images (b, in_channels, h, w) of any size from 16 pixels to logits (b, classes).

    `features(x)`, (b, width): what the last layer reads, before its SiLU, so that they are spread like a Gaussian
    rather than heaped at zero; a Fréchet distance takes them for one.
    """

    def __init__(self, classes: int = 10, in_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        self.config = dict(classes=classes, in_channels=in_channels, width=width)
        half, twice = width // 2, 2 * width
        self.convs = nn.Sequential(
            *conv(in_channels, half), *conv(half, width, stride=2), *conv(width, width),
            *conv(width, twice, stride=2), *conv(twice, twice),
        )  # fmt: skip
        self.to_features, self.last = nn.Linear(twice, width), nn.Linear(width, classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        if x.ndim != 4 or x.shape[1] != self.config["in_channels"]:
            raise ValueError(f"x must be (b, {self.config['in_channels']}, h, w); got {tuple(x.shape)}")
        return self.to_features(self.convs(x).mean((2, 3)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.last(F.silu(self.features(x)))


def conv(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    """Batch normalisation learns fastest here; no noise level makes its batches unlike each other."""
    return [nn.Conv2d(c_in, c_out, 3, padding=1, stride=stride), nn.BatchNorm2d(c_out), nn.ReLU()]
