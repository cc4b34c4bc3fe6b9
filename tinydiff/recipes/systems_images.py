"""The systems of the ledger, notebooks 11 and 14: the digits by a U-Net and by a transformer, told the class.

As in `systems`, which has the data and notebooks 01 to 05.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.guidance import bind, static, thresholded
from tinydiff.recipes import digits, study_dit
from tinydiff.recipes.systems import DIGITS, System, last
from tinydiff.samplers import ancestral, ddim, dpmpp_2m, sample


def _unet(seed: int) -> Denoiser:
    return last(digits.train(digits.Settings(seed=seed)))


def _dit(seed: int) -> Denoiser:
    return study_dit.train("adaln-zero", study_dit.Settings(), seed)


def by(sampler: Callable, n: int) -> Callable[[Denoiser, int, int], Tensor]:
    """n steps of a sampler; 0 1 2 ... 9 0 1 ... are asked for, and beliefs are clipped."""

    def draw(d: Denoiser, count: int, seed: int) -> Tensor:
        asked = thresholded(bind(d, y=digits.labels(count)), static())
        return sample(asked, (count, 1, 8, 8), n=n, sampler=sampler, seed=seed)

    return draw


digit_system = partial(System, data=DIGITS)
SYSTEMS = [
    digit_system("11", "U-Net told the class; DDPM", train=_unet, draw=by(ancestral, 250)),
    digit_system("11", "U-Net told the class; DPM-Solver++(2M)", train=_unet, draw=by(dpmpp_2m, 15)),
    digit_system("14", "DiT, adaLN-Zero, 400 steps; DDIM", train=_dit, draw=by(ddim, 50)),
]
