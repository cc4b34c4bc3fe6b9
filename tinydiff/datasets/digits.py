"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, so that nothing is downloaded.

Pixels count 0 to 16 dots of ink. Here they are k / 8 - 1: 17 grey levels from -1 (paper) to 1 (ink).
The split is random within each class, so both sides hold digits by the same writers.
Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository (its test part).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TEST_SIZE = 360  # a fifth: 35 to 37 of each class
SPLIT_SEED = 0  # part of the definition of the two halves: results refer to it, so it never changes


class Digits(NamedTuple):
    """Images and their labels: `x0, y = digits()`, or `digits()._asdict()` for a batch of named tensors.

    x0: (n, 1, 8, 8) float32 in [-1, 1]. y: (n,) int64 in 0..9.
    """

    x0: Float[Tensor, "n 1 8 8"]
    y: Int[Tensor, " n"]


def digits() -> Digits:
    """All 1,797 digits, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Digits(torch.from_numpy(pixels / 8.0 - 1.0).float().view(-1, 1, 8, 8), torch.from_numpy(labels).long())


def digits_train() -> Digits:
    """The 1,437 digits to train on: all that are not in `digits_test`."""
    return _part(0)


def digits_test() -> Digits:
    """The 360 digits to test on, the same ones on every machine, with each class in its share."""
    return _part(1)


def _part(which: int) -> Digits:
    from sklearn.model_selection import train_test_split

    x0, y = digits()
    parts = train_test_split(range(len(y)), test_size=TEST_SIZE, random_state=SPLIT_SEED, stratify=y.numpy())
    index = torch.tensor(parts[which])
    return Digits(x0[index], y[index])
