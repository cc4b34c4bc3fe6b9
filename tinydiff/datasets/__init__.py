"""Data sets: small, deterministic, in a scale that is written down. Nothing here knows about diffusion."""

from tinydiff.datasets.digits import Digits, digits, digits_test, digits_train
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
    "checkerboard",
    "digits",
    "digits_test",
    "digits_train",
    "gaussian_grid",
    "gaussian_ring",
    "grid_means",
    "ring_means",
    "swiss_roll",
    "two_moons",
]
