"""Data sets: small, deterministic, in a scale that is written down. Nothing here knows about diffusion."""

from tinydiff.datasets import captions, oracle, scenes
from tinydiff.datasets.captioned import Shapes, shapes
from tinydiff.datasets.digits import Digits, digits, digits_test, digits_train
from tinydiff.datasets.images import Images, load
from tinydiff.datasets.scenes import Object, Scene
from tinydiff.datasets.toy import (
    checkerboard,
    gaussian_grid,
    gaussian_ring,
    grid_means,
    ring_means,
    swiss_roll,
    two_moons,
)

__all__ = [
    "Digits",
    "Images",
    "Object",
    "Scene",
    "Shapes",
    "captions",
    "checkerboard",
    "digits",
    "digits_test",
    "digits_train",
    "gaussian_grid",
    "gaussian_ring",
    "grid_means",
    "load",
    "oracle",
    "ring_means",
    "scenes",
    "shapes",
    "swiss_roll",
    "two_moons",
]
