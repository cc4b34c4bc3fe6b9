"""The systems of the ledger, notebooks 23 and 24: the swiss roll in one, two, four and eight calls.

As in `systems`, which has the data and notebooks 01 to 05. Training is of all that a method needs, its teacher too.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from tinydiff.denoisers import denoiser
from tinydiff.recipes import study_few_steps as study
from tinydiff.recipes.systems import SWISS_ROLL, System
from tinydiff.samplers import sample

METHODS = {
    "DDIM": ("23", "DDIM"),
    "DPM-Solver++": ("23", "DPM-Solver++"),
    "PD": ("23", "progressive distillation"),
    "CD": ("24", "consistency distillation"),
    "CT": ("24", "consistency training"),
    "ECT": ("24", "easy consistency tuning"),
}
TRAIN = {method: partial(study.trained, method) for method in METHODS}  # one each, so that its rows share the training


def _draw(calls: int) -> Callable[[Callable, int, int], Tensor]:
    def draw(trained: Callable, n: int, seed: int) -> Tensor:
        d, sampler = trained.by_calls[calls]
        return sample(denoiser(partial(trained, calls), d.schedule), (n, 2), n=calls, sampler=sampler, seed=seed)

    return draw


def _system(method: str, calls: int) -> System:
    notebook, name = METHODS[method]
    return System(notebook, f"{name}, {calls} step{'s' * (calls > 1)}", SWISS_ROLL, TRAIN[method], _draw(calls))


SYSTEMS = [_system(method, calls) for method in METHODS for calls in study.CALLS]
