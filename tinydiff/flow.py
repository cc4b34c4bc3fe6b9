"""Flow matching and rectified flow: straight paths between noise and data, and pairs that make them straighter.

    (1)  x_t = (1 - t) x0 + t eps,      v(x_t, t) = E[eps - x0 | x_t]

Conditional flow matching (Lipman et al. 2023; Liu et al. 2022) is `denoising_loss` with the schedule `Flow` and the
target `velocity`; their time runs the other way. Here is what goes beyond: which eps goes with which x0. Any pairing
with the right marginals gives a velocity that carries noise to data. But if noise and data are paired, eps is no longer
independent of x0, and the velocity says nothing of the score.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.losses import denoising_loss
from tinydiff.samplers import Sampler, euler, final, noise_like
from tinydiff.schedules import Times


def paired_by_transport(x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """The same noise in another order: row i is the one paired with x0[i], so that sum |x0 - eps|^2 is least.

    Optimal transport between the two halves of a mini-batch (Pooladian et al. 2023; Tong et al. 2024), by scipy's
    assignment solver: exact, in time that grows as b^3. Raises ValueError for different shapes.
    """
    if x0.shape != eps.shape:
        raise ValueError(f"eps must have the shape of x0, {tuple(x0.shape)}; got {tuple(eps.shape)}")
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()).square()
    _, order = linear_sum_assignment(cost.cpu().numpy())  # rows come sorted
    return eps[torch.from_numpy(order).to(eps.device)]


def transport_loss(
    d: Denoiser, x0: Float[Tensor, "b *d"], t: Times, *, generator: torch.Generator | None = None, **cond: Tensor
) -> Float[Tensor, " b"]:
    """`denoising_loss` with noise paired to the batch by transport: a loss for `fit`."""
    return denoising_loss(d, x0, t, eps=paired_by_transport(x0, noise_like(x0, generator)), **cond)


def reflow_pairs(
    d: Denoiser, eps: Float[Tensor, "b *d"], ts: Float[Tensor, " n"], sampler: Sampler = euler
) -> dict[str, Tensor]:
    """Noise and the data that the flow carries it to, as a batch for `fit`: rectified flow's next round (Algorithm 1).

        for step in fit(d, reflow_pairs(d, eps, ts), ...)      # denoising_loss takes the pairs' own eps

    Args:
        eps: draws of N(0, I). ts: a grid that ends in 0.
    """
    return {"x0": final(sampler(d, d.schedule.prior_std * eps, ts)), "eps": eps}


@torch.no_grad()
def straightness(d: Denoiser, eps: Float[Tensor, "b *d"], ts: Float[Tensor, " n"]) -> float:
    """S = int E |(x_1 - x_0) - v(x_t, t)|^2 dt along the flow's own paths; 0 if all are straight lines at even speed.

    By Euler's rule on the grid (Liu et al. 2022). x_1 is the noise and v points towards it, as in (1).
    Raises ValueError if ts does not end in 0.
    """
    if ts[-1] != 0:
        raise ValueError(f"ts must end in 0; got {float(ts[-1]):g}")
    x = start = d.schedule.prior_std * eps
    slopes = []
    for t, s in zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True):
        slopes.append(d(x, t).velocity(d.schedule(t, like=x)))
        x = x + (s - t) * slopes[-1]
    whole = (start - x) / (ts[0] - ts[-1]).item()
    uneven = [(whole - v).square().flatten(1).sum(1).mean().item() for v in slopes]
    return sum(u * w for u, w in zip(uneven, (ts[:-1] - ts[1:]).tolist(), strict=True))
