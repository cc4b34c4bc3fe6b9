"""The bound of Sohl-Dickstein et al. 2015, by entropies: K, in bits (the sum over dimensions).

    (1)  E log2 p(x0)  >=  K = - sum_{k=2}^T E KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k))
                               + H(x_T | x0) - H(x_1 | x0) - H(N(0, I))                            (their eq. 14)

No term is there for the first step: it is not learned, and p(x0 | x_1) is the forward step turned round by detailed
balance with N(0, I), which is N(sqrt(1 - beta_1) x_1, beta_1). The bound of `likelihood` with the denoiser
`dpm.fixed_first_step(d)` and variance beta there is the same, up to the second moment of the data, in bits

    (2)  K = -dim * bound.total + dim / (2 ln 2) (beta_1 + alpha_T^2) (E x0^2 - 1)

so the two agree where E x0^2 = 1, to which the paper scales its data. K is compared with what N(0, I) gives such data:
`null_bits`, the paper's L_null.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.likelihood import ReverseVariance, vlb_term
from tinydiff.samplers import learned
from tinydiff.schedules import Coefs, DiscreteVP


def entropy_bits(var: Tensor | float) -> Tensor:
    """Entropy of a Gaussian of this variance, of each dimension, in bits: log2(2 pi e var) / 2."""
    var = torch.as_tensor(var, dtype=None if isinstance(var, Tensor) else torch.float64)
    return (2 * math.pi * math.e * var).log2() / 2


def null_bits(dim: int) -> float:
    """E log2 N(x0; 0, I) of data with E x0^2 = 1 in each dimension: -dim * 2.047 bits."""
    return -dim * entropy_bits(1.0).item()


def ends(schedule: DiscreteVP) -> Float[Tensor, ""]:
    """H(x_T | x0) - H(x_1 | x0) - H(N(0, 1)) of equation (1), in bits a dimension; differentiable in the betas."""
    t = torch.tensor([1.0, 1 / schedule.steps], dtype=torch.float64, device=schedule.betas.device)
    last, first = schedule.sigma(t) ** 2
    return entropy_bits(last) - entropy_bits(first) - entropy_bits(1.0).to(first)


@torch.no_grad()
def entropy_bound(
    d: Denoiser,
    x0: Float[Tensor, "b *d"],
    *,
    var: ReverseVariance = learned,
    eps: Float[Tensor, "b *d"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """K of equation (1) along all steps of d's chain, in bits; its mean over data and noise bounds E log2 p(x0).

    Args:
        d: with a DiscreteVP of at least two steps.
        var: variance of p(x_s | x_t).
        eps: one noise for all steps; by default each draws its own.

    Raises ValueError if the schedule is no chain.
    """
    steps = _steps(d)
    kl = sum(
        vlb_term(d, x0, k / steps, (k - 1) / steps, var=var, eps=eps, generator=generator) for k in range(2, steps + 1)
    )
    return x0[0].numel() * (ends(d.schedule).to(kl) - kl)


def entropy_loss(
    d: Denoiser,
    x0: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    *,
    var: ReverseVariance = learned,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """-K at one step k = 2 ... T of each element, in bits per dimension: a loss for `fit`, unbiased for uniform t.

    Betas that require gradients are trained as well: the noise is drawn apart from them ("frozen", their section
    2.4.1).

    Args:
        t: (b,) in (0, 1]; t in ((j - 1) / (T - 1), j / (T - 1)] stands for the step k = j + 1.
    """
    steps = _steps(d)
    k = (t.double() * (steps - 1) - 1e-6).ceil().clamp(min=1) + 1
    kl = vlb_term(d, x0, k / steps, (k - 1) / steps, var=var, generator=generator)
    return (steps - 1) * kl - ends(d.schedule).to(kl)


def reverse_entropy_bounds(ct: Coefs, cs: Coefs) -> tuple[Tensor, Tensor]:
    """Between which the entropy of the true step back, H(x_s | x_t), lies, whatever the data; bits per dimension.

        H(x_t | x_s) + H(x_s | x0) - H(x_t | x0)  <=  H(x_s | x_t)  <=  H(x_t | x_s)      (their section 2.6)

    The upper one needs H(x_t) >= H(x_s). On a variance-preserving chain these are the entropies of `samplers.small`
    and `samplers.large`.
    """
    upper = entropy_bits(ct.new_noise(cs) * ct.sigma**2)
    return upper + entropy_bits(cs.sigma**2) - entropy_bits(ct.sigma**2), upper


def _steps(d: Denoiser) -> int:
    steps = getattr(d.schedule, "steps", 0)
    if steps < 2:
        raise ValueError(f"d must have a chain, a DiscreteVP of at least two steps; got {d.schedule}")
    return steps
