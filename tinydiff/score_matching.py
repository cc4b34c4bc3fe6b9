"""Score matching: a network learns grad log p from samples of p alone, though grad log p is nowhere in the data.

With s the model, s* = grad log p the score of the data, z ~ N(0, I), and v random with E[v v^T] = I:

    (1)  explicit    1/2 ||s(x) - s*(x)||^2                  what we want; s* is known for toys only
    (2)  implicit    tr grad s(x) + 1/2 ||s(x)||^2           Hyvarinen 2005, theorem 1
    (3)  sliced      v^T grad s(x) v + 1/2 (v^T s(x))^2      Song et al. 2019, SSM
    (4)  sliced VR   v^T grad s(x) v + 1/2 ||s(x)||^2        Song et al. 2019, SSM-VR
    (5)  denoising   1/2 ||s(x + sigma z) + z / sigma||^2    Vincent 2011; the score of the noised data

Over the data, the means of (2), (3) and (4) are that of (1) less 1/2 E||s*||^2, a number without s in it. That is one
integration by parts, so it needs p s -> 0 far out and an s without jumps. The mean of (5) is that of (1) for the
noised data plus such a number. So all have the same minimiser, but for the noise in (5); they differ in cost and
variance.

Unit: sums over dimensions with the factor 1/2, as in the papers. `losses.denoising_loss` takes means without it, so
with the target `score` and a network of the same answers, (5) is dim / 2 times that.

A score is any function (b, ...) -> (b, ...) that treats each element of the batch alone (so no batch norm). Every loss
returns (b,) and can be differentiated in the parameters of s, not in x. Under `torch.no_grad` the values are the same.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Score = Callable[[Tensor], Tensor]
Projection = Callable[[Tensor, torch.Generator | None], Tensor]

# ---- projections: random tensors like x, with E[v v^T] = I ----------------------------------------


def rademacher(x: Float[Tensor, "b *d"], generator: torch.Generator | None = None) -> Float[Tensor, "b *d"]:
    """Signs: each entry is -1 or 1. Var v^T A v = 2 sum over i != j of a_ij^2, for symmetric A."""
    return 2.0 * torch.randint(2, x.shape, generator=generator, device=x.device).to(x) - 1


def gaussian(x: Float[Tensor, "b *d"], generator: torch.Generator | None = None) -> Float[Tensor, "b *d"]:
    """Standard normal. Var v^T A v = 2 sum over all i, j of a_ij^2, for symmetric A."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def sphere(x: Float[Tensor, "b *d"], generator: torch.Generator | None = None) -> Float[Tensor, "b *d"]:
    """Uniform on the sphere of radius sqrt(dim), not 1, so that E[v v^T] = I.

    Var v^T A v = 2 d / (d + 2) (sum a_ij^2 - tr(A)^2 / d), for symmetric A: below the Gaussian's, and below that of
    signs where the diagonal is constant.
    """
    v = gaussian(x, generator)
    flat = v.flatten(1)
    return (flat / flat.norm(dim=1, keepdim=True) * flat.shape[1] ** 0.5).reshape(x.shape)


# ---- the losses ----------------------------------------------------------------------------------


def explicit_loss(score: Score, x: Float[Tensor, "b *d"], true_score: Score) -> Float[Tensor, " b"]:
    """Equation (1), the Fisher divergence in the mean; `true_score` is a function like `score`."""
    error = _call(score, x) - _call(true_score, x)
    return _dot(error, error) / 2


def implicit_loss(score: Score, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Equation (2) with the exact trace: a backward pass for each dimension of x (Hyvarinen 2005, theorem 1).

    For this loss and the sliced ones s must be twice differentiable (SiLU, softplus, tanh). Through a ReLU the value is
    right, but its gradient is not: kinks that move with the parameters change the mean trace, unseen by autograd.
    """
    x, s = _evaluate(score, x)
    trace = 0.0
    for i in range(x[0].numel()):
        e = torch.zeros_like(x)
        e.flatten(1)[:, i] = 1
        trace = trace + _quadratic(s, x, e)
    return trace + _dot(s, s) / 2


def sliced_loss(
    score: Score,
    x: Float[Tensor, "b *d"],
    projection: Projection = rademacher,
    n: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """Equation (3), the mean over n projections: n backward passes whatever the dimension (Song et al. 2019, SSM).

    Args:
        projection: `rademacher`, `gaussian`, `sphere`, or any function (x, generator) -> v with E[v v^T] = I.
    """
    x, s = _evaluate(score, x)
    vs = _projections(projection, x, n, generator)
    return sum(_quadratic(s, x, v) + _dot(v, s) ** 2 / 2 for v in vs) / n


def sliced_loss_vr(
    score: Score,
    x: Float[Tensor, "b *d"],
    projection: Projection = rademacher,
    n: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " b"]:
    """Equation (4): as `sliced_loss`, with the mean of (v^T s)^2 over v in closed form (Song et al. 2019, SSM-VR)."""
    x, s = _evaluate(score, x)
    vs = _projections(projection, x, n, generator)
    return sum(_quadratic(s, x, v) for v in vs) / n + _dot(s, s) / 2


def denoising_score_loss(
    score: Score, x: Float[Tensor, "b *d"], sigma: float, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Equation (5): no derivative of s at all; its minimiser is the score of x + sigma z (Vincent 2011).

    Raises ValueError unless sigma is positive.
    """
    z = _noise(x, sigma, generator)
    error = _call(score, x + sigma * z) + z / sigma
    return _dot(error, error) / 2


def denoising_score_loss_cv(
    score: Score, x: Float[Tensor, "b *d"], sigma: float, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Equation (5) less two terms of it that teach nothing, so that its variance stays finite as sigma -> 0:

        1/2 ||s(x + sigma z)||^2 + z^T (s(x + sigma z) - s(x)) / sigma

    Left out are ||z||^2 / (2 sigma^2), without s in it, and z^T s(x) / sigma, a control variate: its mean is 0. So the
    mean is that of (5) less dim / (2 sigma^2). For sigma -> 0 it becomes (4) with Gaussian v: a finite difference in
    place of the derivative. Raises ValueError unless sigma is positive.
    """
    z = _noise(x, sigma, generator)
    s = _call(score, x + sigma * z)
    return _dot(s, s) / 2 + _dot(z, s - _call(score, x)) / sigma


# ---- parts ---------------------------------------------------------------------------------------


def _call(score: Score, x: Tensor) -> Tensor:
    s = score(x)
    if s.shape != x.shape:
        raise ValueError(f"score must return the shape of x, {tuple(x.shape)}; got {tuple(s.shape)}")
    return s


def _evaluate(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf of the graph, and s(x)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return x, _call(score, x)


def _quadratic(s: Tensor, x: Tensor, v: Tensor) -> Float[Tensor, " b"]:
    """v^T grad s(x) v by one backward pass. create_graph: the loss is differentiated again, in the parameters."""
    train = torch.is_grad_enabled()
    (row,) = torch.autograd.grad(s, x, v, create_graph=train, retain_graph=True, materialize_grads=True)
    return _dot(row, v)


def _projections(projection: Projection, x: Tensor, n: int, generator: torch.Generator | None) -> list[Tensor]:
    if n < 1:
        raise ValueError(f"n, the number of projections, must be at least 1; got {n}")
    return [projection(x.detach(), generator) for _ in range(n)]


def _noise(x: Tensor, sigma: float, generator: torch.Generator | None) -> Tensor:
    if not sigma > 0:
        raise ValueError(f"sigma must be positive: the loss divides by it; got {sigma}")
    return gaussian(x, generator)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, " b"]:
    return (a * b).flatten(1).sum(1)
