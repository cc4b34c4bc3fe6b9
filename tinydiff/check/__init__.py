"""Checks of the exercises: `td.check.jump(my_jump)` prints one line when right, and says what is wrong when not.

A check ships with mutants, plausible wrong solutions that it must reject with the right message; they are unit tests.
"""

from tinydiff.check.core import CheckFailed
from tinydiff.check.ddpm import best_eps, cosine_betas, jump, reverse_mean, skip_step
