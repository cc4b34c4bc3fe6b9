"""Networks: tensors in, tensors out. They are called as net(x, noise_level, **cond) and know nothing of diffusion."""

from tinydiff.models.mlp import MLP
from tinydiff.models.rbf import RBF
from tinydiff.models.unet import UNet

__all__ = ["MLP", "RBF", "UNet"]
