"""Networks: tensors in, tensors out. They are called as net(x, noise_level, **cond) and know nothing of diffusion."""

from tinydiff.models import autoencoder, cost, dit, text
from tinydiff.models.autoencoder import Codec, Identity, KLAutoencoder, PatchDiscriminator, VQAutoencoder, calibrate
from tinydiff.models.classifier import ConvClassifier, NoisyClassifier, SceneClassifier
from tinydiff.models.dit import DiT
from tinydiff.models.mlp import MLP
from tinydiff.models.rbf import RBF
from tinydiff.models.text import Concatenated, TextEncoder, WithText
from tinydiff.models.unet import UNet
from tinydiff.models.unet2015 import UNet2015

__all__ = [
    "Codec",
    "Concatenated",
    "ConvClassifier",
    "DiT",
    "Identity",
    "KLAutoencoder",
    "MLP",
    "NoisyClassifier",
    "PatchDiscriminator",
    "RBF",
    "SceneClassifier",
    "TextEncoder",
    "UNet",
    "UNet2015",
    "VQAutoencoder",
    "WithText",
    "autoencoder",
    "calibrate",
    "cost",
    "dit",
    "text",
]
