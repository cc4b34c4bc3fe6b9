"""Noise schedules: two functions of time, alpha and sigma. The theory is in `base`; `library` has the schedules
themselves, `betas` the tables of discrete chains, `grids` the times at which samplers stop."""

from tinydiff.schedules.base import Coefs, Schedule, Times, batch_times, widest
from tinydiff.schedules.betas import cosine_betas, linear_betas, scaled_linear_betas
from tinydiff.schedules.grids import (
    Spacing,
    before_end,
    grid,
    karras,
    leading,
    logsnr_uniform,
    quadratic,
    strided,
    trailing,
    uniform,
)
from tinydiff.schedules.library import EDM, VE, VP, Cosine, DiscreteVP, Flow, Shifted, SubVP
