"""Checks of the exercises: `td.check.jump(my_jump)` prints one line when right, and says what is wrong when not.

A check ships with mutants, plausible wrong solutions that it must reject with the right message; they are unit tests.
"""

from tinydiff.check.bound import letters_back, tilted_step, true_step
from tinydiff.check.cfg import guided_eps, guided_moments, interval_scales, label_drop, rescale_guided
from tinydiff.check.classifier_guidance import (
    class_gradient,
    guided_belief,
    guided_step,
    noisy_posterior,
    tempting_law,
)
from tinydiff.check.consistency import boundary, ct_loss, ct_schedule, several_calls, whole_huber
from tinydiff.check.core import CheckFailed
from tinydiff.check.ddim import forward_given_data, invert_exactly, mix_latents, sampled_std
from tinydiff.check.ddpm import best_eps, cosine_betas, jump, reverse_mean, skip_step
from tinydiff.check.distill import guided_match, halvings, one_round, student_target, truncated_v_weight
from tinydiff.check.dit import adaln_single, attend, block_macs, patchify, place
from tinydiff.check.evaluation import extrapolate, frechet, kid_unbiased, nearest_shifted, precision
from tinydiff.check.flow import adopt_lipman, points_velocity, sorted_pairs, velocity_from_score
from tinydiff.check.images import decoder_channels, group_norm, iou, noise_embedding, receptive_field
from tinydiff.check.improved import discretised_log_prob, importance
from tinydiff.check.langevin import decaying_steps, escape_time, langevin_accept, minibatch_score, preconditioned_step
from tinydiff.check.latent import ask_words, critic_term, draw_latent, quantise, unit_latents
from tinydiff.check.likelihood import euler_log_prob, linear_flow_log_prob, pixel_bits, trace_estimate
from tinydiff.check.ncsn import fill_level, ladder, loss_floor, overlap_ratio
from tinydiff.check.score_matching import energy_score, fit_gaussian, paired_loss, trace_std
from tinydiff.check.sde import corrector_spread, noising_family, paste_along, path_to_sde
from tinydiff.check.solvers import adams, levels_for_calls, order_without_truth, unit_variance
