"""Progressive distillation: a student that does in one step what its teacher does in two (Salimans & Ho 2022).

Halving goes on until one step is left: `halved`. A round is a run of `fit`, from 2 n steps of the teacher to n of the
student, and its student is the teacher of the next.

A guided teacher goes the same way in two stages (Meng et al. 2022): first one network learns to give the guided belief
by itself (`match_loss`), which halves the calls, then its steps are halved as above.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser, NetDenoiser
from tinydiff.losses import snr, step_times
from tinydiff.samplers import ddim_step
from tinydiff.schedules import Coefs, Times, batch_times
from tinydiff.schedules.base import widest
from tinydiff.training import fit

Weight = Callable[[Coefs], Tensor]


def snr_plus_one(c: Coefs) -> Tensor:
    """SNR + 1, in x0 space: on a variance-preserving path, an even weight on the error of v (eq. 10)."""
    return snr(c) + 1


def truncated_snr(c: Coefs) -> Tensor:
    """max(SNR, 1), in x0 space: the larger of the errors of x0 and of eps (eq. 9). Neither vanishes at any noise."""
    return snr(c).clamp(min=1)


@torch.no_grad()
def progressive_target(
    teacher: Denoiser, x: Float[Tensor, "b *d"], t: Times, s: Times, **cond: Tensor
) -> Float[Tensor, "b *d"]:
    """The x0 from which one DDIM step from t lands at s where two of the teacher's do, with a stop half way in time.

    z'' = ratio x + (alpha_s - ratio alpha_t) x0, with ratio = sigma_s / sigma_t, solved for x0 (Algorithm 2). At s = 0
    that is z'' itself, the teacher's belief in the middle.
    """
    t, s = (widest(batch_times(when, x)) for when in (t, s))
    m = (t + s) / 2
    ct, cm, cs = (teacher.schedule(when, like=x) for when in (t, m, s))
    half = ddim_step(teacher(x, t, **cond), ct, cm)
    end = ddim_step(teacher(half, m, **cond), cm, cs)
    ratio = cs.sigma / ct.sigma
    return (end - ratio * x) / (cs.alpha - ratio * ct.alpha)


def progressive_loss(teacher: Denoiser, n: int, weight: Weight = truncated_snr) -> Callable[..., Tensor]:
    """The loss of a student of n steps, for `fit` with times=step_times(n), or for times t >= 1 / n of your own.

    weight: in x0 space, such as `truncated_snr`, `snr_plus_one`, `losses.snr`. The paper has them summed over an image,
    here the mean is taken.
    Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 step; got {n}")

    def loss(
        d: Denoiser,
        x0: Float[Tensor, "b *d"],
        t: Times,
        eps: Float[Tensor, "b *d"] | None = None,
        **cond: Tensor,
    ) -> Float[Tensor, " b"]:
        c = d.schedule(t, like=x0)
        eps = torch.randn_like(x0) if eps is None else eps
        x = c.alpha * x0 + c.sigma * eps
        s = widest(c.t) - 1 / n
        s = torch.where(s < 1e-6, 0.0, s)  # k / n - 1 / n may miss 0 by a rounding
        target = progressive_target(teacher, x, t, s, **cond)
        return (weight(c) * (target - d(x, t, **cond).x0) ** 2).flatten(1).mean(1)

    return loss


def match_loss(teacher: Callable[..., Denoiser], weight: Weight = truncated_snr) -> Callable[..., Tensor]:
    """The loss of a student that is to believe what a teacher does at the same x and t, for `fit`: the first stage.

    teacher: (**cond) -> a denoiser for this batch, such as lambda y, w: cfg(d, w[:, None], dict(y=y), dict(y=null)).
    What it is given, the scale of guidance too, the student is given as well.
    """

    def loss(
        d: Denoiser, x0: Float[Tensor, "b *d"], t: Times, eps: Float[Tensor, "b *d"] | None = None, **cond: Tensor
    ) -> Float[Tensor, " b"]:
        c = d.schedule(t, like=x0)
        x = c.alpha * x0 + c.sigma * (torch.randn_like(x0) if eps is None else eps)
        with torch.no_grad():
            target = teacher(**cond)(x, t).x0
        return (weight(c) * (target - d(x, t, **cond).x0) ** 2).flatten(1).mean(1)

    return loss


def student_of(teacher: NetDenoiser) -> NetDenoiser:
    """A copy to be trained, which starts with the teacher's weights (the average of `fit`'s steps has no gradients)."""
    student = copy.deepcopy(teacher)
    student.net.requires_grad_(True)
    return student


def to_zero(step: int, steps: int) -> float:
    """A learning rate that falls to zero along a line, anew in each round."""
    return 1 - step / steps


def halved(
    teacher: NetDenoiser, data: Any, first: int, weight: Weight = truncated_snr, **options: Any
) -> Iterator[tuple[int, NetDenoiser]]:
    """Algorithm 2: (n, student) for n = first / 2, ..., 2, 1, each student taught by the one before.

    A student has the weights of its last step: the paper distils without an average of them.

    Args:
        first: DDIM steps of the first teacher.
        options: `fit`'s, of a round.

    Raises ValueError unless first is a power of two, at least 2.
    """
    if first < 2 or first & (first - 1):
        raise ValueError(f"first must be a power of two, at least 2; got {first}")
    n = first // 2
    while n >= 1:
        student, loss = student_of(teacher), progressive_loss(teacher, n, weight)
        for _ in fit(student, data, loss=loss, times=step_times(n), **dict(lr_schedule=to_zero) | options):
            pass
        yield n, student
        teacher, n = student, n // 2
