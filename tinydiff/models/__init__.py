"""Networks: tensors in, tensors out. They are called as net(x, noise_level, **cond) and know nothing of diffusion."""

from tinydiff.models import cost, dit
from tinydiff.models.classifier import ConvClassifier, NoisyClassifier
from tinydiff.models.dit import DiT
from tinydiff.models.mlp import MLP
from tinydiff.models.rbf import RBF
from tinydiff.models.unet import UNet
from tinydiff.models.unet2015 import UNet2015

__all__ = ["ConvClassifier", "DiT", "MLP", "NoisyClassifier", "RBF", "UNet", "UNet2015", "cost", "dit"]
