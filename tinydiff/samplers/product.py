"""Sampling from a product p(x0) r(x0) by tilting each reverse step (Sohl-Dickstein et al. 2015, section 2.5).

    (1)  p~(x_s | x_t)  is proportional to  p(x_s | x_t) r(x_s)

For a Gaussian r that is a Gaussian again, exactly; for an r that is smooth over a step it is a shift of the mean,

    (2)  mean + var * grad log r(mean)

to first order, which Dhariwal & Nichol 2021 (Algorithm 1) do with a classifier. That every step is (1) does not make
the last x a draw of p r: that needs r to be replaced, at time t, by h_t(x) = E[r(x0) | x_t = x] (see notebook 02).

A tilt is a function (mean, var, cs) -> (mean, var) of a step and of the coefficients at its end.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers.ancestral import posterior, small
from tinydiff.samplers.base import State, noise_like, pairs, sampler
from tinydiff.schedules import Coefs
from tinydiff.targets import Prediction

Tilt = Callable[[Tensor, Tensor, Coefs], tuple[Tensor, Tensor]]
Power = Callable[[Coefs], Tensor | float]


def constant_power(c: Coefs) -> float:
    """r itself at every step, as in the paper's code."""
    return 1.0


def fading_power(c: Coefs) -> Tensor:
    """r^(1 - t): absent at noise, whole at data (the paper has both)."""
    return (1 - c.t).to(c.alpha).reshape(c.alpha.shape)


def gaussian_tilt(y: Float[Tensor, "..."], std: Tensor | float, power: Power = constant_power) -> Tilt:
    """The exact product (1) with r = N(x; y, std^2): precisions add. A std of 0 sets a coordinate to y, inf leaves it.

    So y = known values and std = 0 where known, inf elsewhere, is the paper's inpainting.
    """
    var_r = torch.as_tensor(std, dtype=None if isinstance(std, Tensor) else torch.float64) ** 2

    def tilt(mean: Tensor, var: Tensor, cs: Coefs) -> tuple[Tensor, Tensor]:
        mine = var * power(cs)
        share = torch.where(var_r.to(mean) == 0, 1.0, mine / (mine + var_r.to(mean)))
        return mean + share * (y - mean), var * (1 - share)

    return tilt


def shift_tilt(log_r: Callable[[Tensor], Tensor], power: Power = constant_power) -> Tilt:
    """The mean's shift (2), for any smooth r.

    Args:
        log_r: (b, ...) -> (b,), up to a constant.
    """

    def tilt(mean: Tensor, var: Tensor, cs: Coefs) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = mean.detach().requires_grad_()
            value = log_r(x)
            if value.shape != x.shape[:1]:
                raise ValueError(f"log_r must have shape ({len(x)},), a number for each x; got {tuple(value.shape)}")
            (grad,) = torch.autograd.grad(value.sum(), x)
        return mean + var * power(cs) * grad, var

    return tilt


@sampler
def product(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    tilt: Tilt,
    var: Callable[[Prediction, Coefs, Coefs], Tensor] = small,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """`ancestral` with every step tilted as in (1); x itself should be a draw of N(0, I) r.

    Args:
        tilt: `gaussian_tilt(y, std)`, `shift_tilt(log_r)`, or any function of a step (see the module).
        var: variance of a step, as in `ancestral`.
    """
    for t, s in pairs(ts):
        p = d(x, t)
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        q = posterior(ct, cs)
        step_var = var(p, ct, cs) if s > 0 else torch.zeros_like(ct.alpha)  # the last step ends in data: no noise
        mean, step_var = tilt(q.a_x0 * p.x0 + q.a_x * x, step_var, cs)
        x = mean + step_var.sqrt() * noise_like(x, generator)
        yield State(s, x, p.x0)
