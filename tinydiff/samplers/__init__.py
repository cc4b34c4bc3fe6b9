"""Samplers: from noise to data. `base` has what they share and how to write one; `run` has `sample`, which draws the
noise as well; the other modules have the samplers."""

from tinydiff.samplers.ancestral import Posterior, ancestral, guided_ancestral, large, learned, posterior, small
from tinydiff.samplers.base import Sampler, State, final, noise_like, pairs, sampler
from tinydiff.samplers.consistency import consistency_multistep
from tinydiff.samplers.ddim import ddim, ddim_inverse, ddim_step, slerp
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
from tinydiff.samplers.sde import (
    ancestral_step,
    flow_step,
    langevin_corrector,
    predictor_corrector,
    probability_flow,
    reverse_diffusion_step,
    reverse_sde,
    rk1,
    rk2,
    rk4,
)
from tinydiff.samplers.solvers import dpm_solver_1, dpm_solver_2, dpmpp_2m, edm_stochastic, euler, heun, heun_step
