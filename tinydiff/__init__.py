"""tinydiff: diffusion models, built small enough to read and checked against the truth. `import tinydiff as td`."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "tinydiff needs torch: pip install -c constraints.txt torch==2.13.0 (python tinydiff/doctor.py checks the rest)"
    ) from None

from tinydiff import (
    autoencoding,
    binomial,
    check,
    checkpoints,
    consistency,
    datasets,
    denoisers,
    distill,
    dpm,
    entropy,
    exact,
    flow,
    guidance,
    hybrid,
    likelihood,
    losses,
    metrics,
    models,
    ncsn,
    ode,
    plotting,
    samplers,
    schedules,
    score_matching,
    targets,
    training,
)
from tinydiff.checkpoints import load_checkpoint, load_pretrained, save_checkpoint
from tinydiff.consistency import consistency_loss, tangent_loss
from tinydiff.denoisers import ConsistencyDenoiser, Denoiser, NetClassifier, NetDenoiser, denoiser
from tinydiff.distill import progressive_loss, progressive_target
from tinydiff.exact import GaussianMixture, IdealDenoiser
from tinydiff.guidance import autoguide, bind, cfg, classifier, counted, dynamic, interval, static, thresholded
from tinydiff.hybrid import hybrid_loss
from tinydiff.likelihood import vlb_term
from tinydiff.losses import classifier_loss, denoising_loss
from tinydiff.notebook import scale, setup, show_source
from tinydiff.ode import ode_log_likelihood
from tinydiff.progress import progress
from tinydiff.results import load_results, save_results
from tinydiff.samplers import (
    State,
    ancestral,
    annealed_langevin,
    consistency_multistep,
    ddim,
    ddim_inverse,
    ddim_step,
    dpm_solver_1,
    dpm_solver_2,
    dpmpp_2m,
    edm_stochastic,
    euler,
    final,
    guided_ancestral,
    heun,
    langevin,
    mala,
    pairs,
    posterior,
    predictor_corrector,
    probability_flow,
    reverse_sde,
    sample,
    sampler,
    slerp,
)
from tinydiff.schedules import (
    EDM,
    VE,
    VP,
    Coefs,
    Cosine,
    DiscreteVP,
    Flow,
    Schedule,
    Shifted,
    SubVP,
    before_end,
    cosine_betas,
    grid,
    karras,
    leading,
    linear_betas,
    logsnr_uniform,
    quadratic,
    scaled_linear_betas,
    strided,
    trailing,
    uniform,
)
from tinydiff.targets import Prediction, decode, encode
from tinydiff.training import EMA, Step, constant, fit, warmup_cosine

__version__ = "0.1.0"
