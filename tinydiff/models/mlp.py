"""A residual MLP for points in a few dimensions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiff.models.layers import NoiseAndClass, zero_


class MLP(nn.Module):
    """Points (b, dim) and noise levels (b,) to points (b, outputs dim).

    Random Fourier features of x let a small network draw fine structure (Tancik et al. 2020). The output layer starts
    at zero. With `classes`, forward takes y = (b,) labels; see `layers.NoiseAndClass` for the null label.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,  # of every hidden layer
        depth: int = 3,  # hidden layers
        classes: int | None = None,
        fourier: int = 32,  # random frequencies of x; 0 for none
        fourier_scale: float = 1.0,  # their standard deviation, in radians per unit of x
        outputs: int = 1,  # points that come back: 2 with a learned variance, (b, 2 dim) in two halves
    ) -> None:
        super().__init__()
        self.config = dict(
            dim=dim,
            width=width,
            depth=depth,
            classes=classes,
            fourier=fourier,
            fourier_scale=fourier_scale,
            outputs=outputs,
        )
        if width % 2:
            raise ValueError(f"width must be even: half cosines and half sines of the noise level; got {width}")
        self.register_buffer("freqs", fourier_scale * torch.randn(dim, fourier))
        self.emb = NoiseAndClass(width, classes)
        self.first = nn.Linear(dim + 2 * fourier, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.last = zero_(nn.Linear(width, outputs * dim))
        self.act = nn.SiLU()

    def forward(
        self, x: Float[Tensor, "b d"], noise_level: Float[Tensor, " b"], y: Tensor | None = None
    ) -> Float[Tensor, "b out"]:
        angles = x @ self.freqs  # (b, fourier)
        h = self.first(torch.cat([x, angles.cos(), angles.sin()], dim=1))  # (b, width)
        h = h + self.emb(noise_level, y)  # (b, width)
        for layer in self.hidden:
            h = h + layer(self.act(h))  # (b, width)
        return self.last(self.act(h))  # (b, outputs dim)
