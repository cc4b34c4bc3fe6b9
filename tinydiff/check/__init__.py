"""Checks of the exercises: `td.check.jump(my_jump)` prints one line when right, and says what is wrong when not.

A check ships with mutants, plausible wrong solutions that it must reject with the right message; they are unit tests.
"""

from tinydiff.check.bound import letters_back, tilted_step, true_step
from tinydiff.check.core import CheckFailed
from tinydiff.check.ddpm import best_eps, cosine_betas, jump, reverse_mean, skip_step
from tinydiff.check.improved import discretised_log_prob, importance
from tinydiff.check.langevin import decaying_steps, escape_time, langevin_accept, minibatch_score, preconditioned_step
from tinydiff.check.ncsn import fill_level, ladder, loss_floor, overlap_ratio
from tinydiff.check.score_matching import energy_score, fit_gaussian, paired_loss, trace_std
