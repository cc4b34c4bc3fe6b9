"""A radial-basis network with a read-out for every step of a chain."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RBF(nn.Module):
    """Points (b, dim) and noise levels (b,) to points (b, outputs dim): Gaussian bumps, read out anew at each step.

    The network of the swiss roll of Sohl-Dickstein et al. 2015: one hidden layer, shared by all steps, of 16 units
    exp(-|x - centre|^2 / (2 width^2)), and a linear read-out of each step's own. They do not print how centres and
    widths start: here from N(0, I) and at 1/2, all trained. The read-outs start at zero.

    Raises ValueError if a noise level is not 1000 k / steps for a step k = 1 ... steps.
    """

    def __init__(
        self,
        dim: int = 2,
        units: int = 16,
        steps: int = 40,  # T: how many read-outs
        outputs: int = 2,  # points that come back: 2 for a mean and a variance, (b, 2 dim) in two halves
        width: float = 0.5,  # of every bump at the start
    ) -> None:
        super().__init__()
        self.config = dict(dim=dim, units=units, steps=steps, outputs=outputs, width=width)
        if min(dim, units, steps, outputs) < 1 or width <= 0:
            raise ValueError(f"dim, units, steps, outputs must be at least 1 and width > 0; got {self.config}")
        self.steps = steps
        self.centres = nn.Parameter(torch.randn(units, dim))
        self.log_width = nn.Parameter(torch.full((units,), width).log())
        self.read = nn.Parameter(torch.zeros(steps, units, outputs * dim))
        self.bias = nn.Parameter(torch.zeros(steps, outputs * dim))

    def forward(self, x: Float[Tensor, "b d"], noise_level: Float[Tensor, " b"]) -> Float[Tensor, "b out"]:
        at = noise_level.double() * self.steps / 1000
        k = at.round().long()
        if not ((k >= 1) & (k <= self.steps) & ((at - k).abs() < 1e-3)).all():
            raise ValueError(
                f"noise_level must be 1000 k / {self.steps} for a step k = 1 ... {self.steps}, since each step has a "
                f"read-out of its own; got values from {noise_level.min():g} to {noise_level.max():g}"
            )
        square = (x[:, None] - self.centres).square().sum(-1)  # (b, units)
        bumps = (-square / 2 / (2 * self.log_width).exp()).exp()  # (b, units)
        return (bumps[:, None] @ self.read[k - 1])[:, 0] + self.bias[k - 1]  # (b, outputs dim)
