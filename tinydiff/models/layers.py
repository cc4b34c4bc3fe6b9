"""Layers that more than one network uses."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoidal(t: Float[Tensor, " b"], width: int, max_period: float = 10_000.0) -> Float[Tensor, "b width"]:
    """Cosines and sines of t at geometric frequencies from 1 to 1 / max_period (Vaswani et al. 2017, section 3.5)."""
    freqs = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=t.device, dtype=t.dtype) / (width // 2))
    angles = t[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class NoiseAndClass(nn.Module):
    """The vector that tells a network its noise level and, where there are classes, its class.

    Class number `classes`, one past the last, is the null label: no class given. Labels are dropped in the batch.
    The noise level comes in by `features` sinusoids, `width` by default.
    """

    def __init__(self, width: int, classes: int | None = None, features: int | None = None) -> None:
        super().__init__()
        self.features, self.classes = features or width, classes
        self.mlp = nn.Sequential(nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, noise_level: Float[Tensor, " b"], y: Tensor | None = None) -> Float[Tensor, "b width"]:
        first, *rest = self.parts(noise_level, y)
        return sum(rest, first)

    def parts(self, noise_level: Float[Tensor, " b"], y: Tensor | None = None) -> list[Float[Tensor, "b width"]]:
        """What `forward` adds up: the noise level's vector and, where there are classes, the class's."""
        emb = self.mlp(sinusoidal(noise_level, self.features))
        if self.label is None:
            if y is not None:
                raise ValueError("y was given, but this network was made without classes: pass classes= when making it")
            return [emb]
        if y is None:
            y = torch.full(noise_level.shape, self.classes, device=noise_level.device)
        if y.shape != noise_level.shape or y.is_floating_point():
            raise ValueError(f"y must be {len(noise_level)} integer classes; got {tuple(y.shape)} of {y.dtype}")
        # not while a GPU trains: it would be waited for in each step, and torch.compile would break off here
        unseen = y.is_meta or self.training and y.device.type != "cpu" or torch.compiler.is_compiling()
        if not unseen and not ((y >= 0) & (y <= self.classes)).all():
            raise ValueError(
                f"y must lie in 0 ... {self.classes} ({self.classes} is no class); got {y.unique().tolist()}"
            )
        return [emb, self.label(y)]


def zero_(layer: nn.Module) -> nn.Module:
    """The layer with its parameters set to zero, so that a residual branch starts as the identity."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
