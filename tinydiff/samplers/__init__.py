"""Samplers: from noise to data. `base` has what they share and how to write one; `run` has `sample`, which draws the
noise as well; `ancestral`, `ddim`, `langevin` and `product` have the samplers."""

from tinydiff.samplers.ancestral import Posterior, ancestral, large, learned, posterior, small
from tinydiff.samplers.base import Sampler, State, final, noise_like, pairs, sampler
from tinydiff.samplers.ddim import ddim, ddim_step
from tinydiff.samplers.langevin import (
    Chain,
    annealed_langevin,
    langevin,
    mala,
    sgld_constants,
    sgld_steps,
    stochastic_score,
)
from tinydiff.samplers.product import constant_power, fading_power, gaussian_tilt, product, shift_tilt
from tinydiff.samplers.run import sample
