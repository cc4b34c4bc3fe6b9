"""Denoisers that are exact: the truth that all else is measured against.

If x0 is drawn from p0 and x = alpha x0 + sigma eps, the best denoiser is the posterior mean E[x0 | x]. It has a closed
form when p0 is a mixture of Gaussians: p_t is one too, with means alpha m_k and variances alpha^2 s_k^2 + sigma^2.
With r_k(x) the probability that x came from component k (Bayes), and component k's own linear answer,

    (1)  E[x0 | x, k]  = m_k + alpha s_k^2 (x - alpha m_k) / (alpha^2 s_k^2 + sigma^2)
    (2)  E[eps | x, k] =           sigma   (x - alpha m_k) / (alpha^2 s_k^2 + sigma^2)
    (3)  E[. | x] = sum_k r_k(x) E[. | x, k],      score = -E[eps | x] / sigma

Neither divides by alpha or sigma, so both ends of the schedule are exact. A finite data set is the same with s_k = 0.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinydiff.schedules import Coefs, Schedule, Times, widest
from tinydiff.targets import Prediction


class GaussianMixture:
    """A mixture of k isotropic Gaussians in d dimensions, and its exact denoiser under a schedule.

    Args:
        means: (k, d).
        std: one number, or (k,); at least 0 (0 is a point).
        weights: (k,), positive; normalised here. None means equal.
        schedule: any.
        labels: (k,) class of each component, for class-conditional answers; by default 0 ... k - 1, one class each.

    Called with y = (b,) classes it answers for p(x0 | y); the class number `classes` (one past the last) means
    "no class given", as the null label of a network does. Raises ValueError for shapes or values that do not fit.
    """

    def __init__(
        self,
        means: Float[Tensor, "k d"],
        std: float | Float[Tensor, " k"],
        weights: Float[Tensor, " k"] | list[float] | None,
        schedule: Schedule,
        labels: Int[Tensor, " k"] | None = None,
    ) -> None:
        if means.ndim != 2 or not means.isfinite().all():
            raise ValueError(f"means must be finite and of shape (k, d); got shape {tuple(means.shape)}")
        k = len(means)
        std = torch.as_tensor(std, dtype=means.dtype, device=means.device).expand(k).clone()
        weights = (torch.ones(k) if weights is None else torch.as_tensor(weights, dtype=means.dtype)).to(means)
        if not (std >= 0).all() or not std.isfinite().all():
            raise ValueError(f"std must be at least 0; got {std.tolist()}")
        if weights.shape != (k,) or not (weights > 0).all() or not weights.isfinite().all():
            raise ValueError(f"weights must be {k} positive numbers, one a mean; got {weights.tolist()}")
        self.means, self.std, self.weights, self.schedule = means, std, weights / weights.sum(), schedule
        self.labels = torch.arange(k, device=means.device) if labels is None else labels.to(means.device)
        if self.labels.shape != (k,):
            raise ValueError(f"labels must have shape ({k},), one a mean; got {tuple(self.labels.shape)}")

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """n fresh draws of x0."""
        return self.sample_labelled(n, generator)[0]

    def sample_labelled(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """n fresh draws of x0 with the class of each."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(
            n, self.means.shape[1], generator=generator, device=self.means.device, dtype=self.means.dtype
        )
        return self.means[k] + self.std[k, None] * noise, self.labels[k]

    def _joint(self, x: Tensor, t: Times, y: Tensor | None) -> tuple[Tensor, Coefs, Tensor, Tensor, Tensor]:
        """log p(k) p_t(x | k) as (b, k), and what the answers need; components of another class than y have -inf."""
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise ValueError(f"x must have shape (b, {self.means.shape[1]}); got {tuple(x.shape)}")
        c = self.schedule(t, like=x)
        means, std, weights, labels = (
            self.means.to(x),
            self.std.to(x),
            self.weights.to(x),
            self.labels.to(x.device),
        )
        var = c.alpha**2 * std**2 + c.sigma**2  # (b, k)
        away = x[:, None] - c.alpha[:, None] * means  # (b, k, d)
        log_prior = weights.log().expand(len(x), -1)
        if y is not None:
            if y.shape != (len(x),) or not ((y >= 0) & (y <= self.classes)).all():
                raise ValueError(f"y must be ({len(x)},) classes from 0 to {self.classes} (no class given); got {y}")
            mine = (labels == y[:, None]) | (y[:, None] == self.classes)
            if not mine.any(1).all():
                raise ValueError(f"y names a class that no component has; labels are {labels.unique().tolist()}")
            log_prior = torch.where(mine, log_prior, -math.inf).log_softmax(1)
        log_normal = -(away**2).sum(-1) / var / 2 - x.shape[1] / 2 * (2 * math.pi * var).log()
        return log_prior + log_normal, c, var, away, means

    def log_prob(self, x: Float[Tensor, "b d"], t: Times, y: Tensor | None = None) -> Float[Tensor, " b"]:
        """log p_t(x), or log p_t(x | y), in nats."""
        return self._joint(x, t, y)[0].logsumexp(1)

    def posterior(self, x: Float[Tensor, "b d"], t: Times) -> Float[Tensor, "b k"]:
        """r_k(x) = p_t(k | x), the probability that x came from each component."""
        return self._joint(x, t, None)[0].softmax(1)

    def log_class(self, x: Float[Tensor, "b d"], t: Times, y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """log p_t(y | x), what the perfect classifier of noisy x says of class y."""
        log_r = self._joint(x, t, None)[0].log_softmax(1)
        return torch.where(self.labels.to(x.device) == y[:, None], log_r, -math.inf).logsumexp(1)

    def score(self, x: Float[Tensor, "b d"], t: Times, y: Tensor | None = None) -> Float[Tensor, "b d"]:
        """The gradient in x of log p_t(x), or of log p_t(x | y); finite at t = 0 as well if std > 0."""
        joint, _, var, away, _ = self._joint(x, t, y)
        return -(joint.softmax(1) / var)[:, None].matmul(away)[:, 0]

    def __call__(self, x: Float[Tensor, "b d"], t: Times, y: Tensor | None = None, **cond: Any) -> Prediction:
        joint, c, var, away, means = self._joint(x, t, y)
        r = joint.softmax(1)
        pull = c.alpha * self.std.to(x) ** 2 / var  # (b, k), equation (1)
        x0 = r @ means + (r * pull)[:, None].matmul(away)[:, 0]
        eps = c.sigma * (r / var)[:, None].matmul(away)[:, 0]
        return Prediction(x0, eps)


def times_gaussian(mixture: GaussianMixture, y: Float[Tensor, " d"], std: float) -> GaussianMixture:
    """The mixture whose density is p0(x) N(x; y, std^2 I), normalised: what a Gaussian factor makes of the data.

    A component's precisions add, and its weight is multiplied by N(y; m_k, s_k^2 + std^2).
    Raises ValueError if std <= 0 or y does not have the mixture's dimension.
    """
    dim = mixture.means.shape[1]
    if not std > 0 or y.shape != (dim,):
        raise ValueError(f"std must be positive and y of shape ({dim},); got {std} and {tuple(y.shape)}")
    y, var = y.to(mixture.means), mixture.std**2
    share = (var / (var + std**2))[:, None]  # of y in the mean
    log_fit = -((mixture.means - y) ** 2).sum(1) / (var + std**2) / 2 - dim / 2 * (var + std**2).log()
    weights = (mixture.weights.log() + log_fit).softmax(0)
    kept = weights > 0  # far away, where a weight is below the smallest number, nothing is lost
    new = (mixture.means + share * (y - mixture.means), (share[:, 0] * std**2).sqrt(), weights)
    return GaussianMixture(*(v[kept] for v in new), mixture.schedule, mixture.labels[kept])


def conditional(mixture: GaussianMixture, known: Float[Tensor, " d"], mask: Bool[Tensor, " d"]) -> GaussianMixture:
    """The mixture of the unknown coordinates, given the known ones: p(x0[~mask] | x0[mask] = known[mask]).

    A component keeps its mean and std there, and its weight is multiplied by N(known; m_k, s_k^2 I).
    Raises ValueError unless known and mask are (d,) and mask is true for some coordinates and not for all, and for
    std = 0, where a known value has no density.
    """
    dim = mixture.means.shape[1]
    if known.shape != (dim,) or mask.shape != (dim,) or not 0 < int(mask.sum()) < dim:
        raise ValueError(f"known and mask must be ({dim},), mask true for some of them; got {known}, {mask}")
    if not (mixture.std > 0).all():
        raise ValueError(f"std must be positive; got {mixture.std.tolist()}")
    away = mixture.means[:, mask] - known.to(mixture.means)[mask]
    log_fit = -(away**2).sum(1) / mixture.std**2 / 2 - mask.sum() * mixture.std.log()
    weights = (mixture.weights.log() + log_fit).softmax(0)
    kept = weights > 0  # as in `times_gaussian`
    new = (mixture.means[:, ~mask], mixture.std, weights)
    return GaussianMixture(*(v[kept] for v in new), mixture.schedule, mixture.labels[kept])


# ---- what guidance samples, where that is known ---------------------------------------------------


class Gaussian1D(NamedTuple):
    mean: float
    var: float


def guided_gaussian(mean: float, var: float, null_var: float, w: float, lam: float = 0.0) -> Gaussian1D:
    """What guidance samples between N(mean, var), with the condition, and N(0, null_var), without; in one dimension.

    The guided score at squared noise level u = (sigma / alpha)^2 is linear in x,

        -w (x - mean) / (var + u) - (1 - w) x / (null_var + u)

    and with r = 1 + lam^2 and M(u) = (var + u)^(r w) (null_var + u)^(r (1 - w)) the members of the family of
    `reverse_sde`, run from endless noise in endless steps, end in a Gaussian with

        mean = (r w mean / 2) integral sqrt(M(0) / M(u)) / (var + u) du,    u from 0 to infinity
        var  = M(0)  at lam = 0,    lam^2 integral M(0) / M(u) du  at lam > 0

    So the ODE gives var^w null_var^(1 - w) (Bradley and Nakkiran 2024), and `ancestral`, lam = 1, something wider.
    Neither is `tilted_gaussian`, the law that guidance is often said to sample, unless var = null_var.
    Raises ValueError unless the variances are positive and w and lam at least 0.
    """
    from scipy.integrate import quad

    if not (var > 0 and null_var > 0 and w >= 0 and lam >= 0):
        raise ValueError(f"var, null_var > 0 and w, lam >= 0 are needed; got {var}, {null_var}, {w} and {lam}")
    r = 1 + lam**2
    # u = null_var z / (1 - z), so that z runs over [0, 1]
    log_m = lambda u: r * (w * math.log(var + u) + (1 - w) * math.log(null_var + u))  # noqa: E731
    level = lambda z: null_var * z / (1 - z)  # noqa: E731
    over = lambda f: quad(lambda z: f(level(z)) * null_var / (1 - z) ** 2, 0, 1, epsabs=1e-12, epsrel=1e-10)[0]  # noqa: E731
    pull = over(lambda u: math.exp((log_m(0) - log_m(u)) / 2) / (var + u))
    spread = math.exp(log_m(0)) if lam == 0 else lam**2 * over(lambda u: math.exp(log_m(0) - log_m(u)))
    return Gaussian1D(r * w * mean / 2 * pull, spread)


def tilted_gaussian(mean: float, var: float, null_var: float, w: float) -> Gaussian1D:
    """N(mean, var)^w N(0, null_var)^(1 - w), normalised. Raises ValueError where it has no finite integral."""
    precision = w / var + (1 - w) / null_var
    if not precision > 0:
        raise ValueError(f"no density: w / var + (1 - w) / null_var must be positive; got {precision:g}")
    return Gaussian1D(w * mean / var / precision, 1 / precision)


class IdealDenoiser:
    """The exact denoiser of a finite data set: a softmax over its points. A perfect fit, so a perfect memoriser.

    Args:
        data: (n, ...), points or images, all of equal weight.
        schedule: any.
        y: (n,) labels; then the denoiser takes y = (b,) and answers from the points of that label.
        chunk: data points met at a time, which bounds the memory to b * chunk distances.

    Exact for t > 0. Raises ValueError if x is not of the data's shape.
    """

    def __init__(self, data: Tensor, schedule: Schedule, y: Tensor | None = None, chunk: int = 4096) -> None:
        if not len(data) or not data.isfinite().all():
            raise ValueError(f"data must be finite and not empty; got shape {tuple(data.shape)}")
        self.data, self.schedule, self.y, self.chunk = data, schedule, y, chunk

    def __call__(self, x: Float[Tensor, "b *d"], t: Times, y: Tensor | None = None, **cond: Any) -> Prediction:
        if x.shape[1:] != self.data.shape[1:]:
            raise ValueError(f"x must have shape (b, {', '.join(map(str, self.data.shape[1:]))}); got {tuple(x.shape)}")
        if y is not None and self.y is None:
            raise ValueError("y was given, but this IdealDenoiser was made without labels: pass y= when making it")
        c = self.schedule(t, like=x)
        flat, alpha, sigma = (widest(v.flatten(1)) for v in (x, c.alpha, c.sigma))  # squares of large / small numbers
        top = torch.full_like(alpha, -math.inf)  # the largest logit so far; the softmax's sums are kept relative to it
        total, mean = torch.zeros_like(alpha), torch.zeros_like(flat)
        for i in range(0, len(self.data), self.chunk):
            points = self.data[i : i + self.chunk].flatten(1).to(flat)
            logits = (2 * alpha * (flat @ points.T) - alpha**2 * (points**2).sum(1)) / (2 * sigma**2)
            if y is not None:
                logits = logits.masked_fill(self.y[i : i + self.chunk].to(x.device) != y[:, None], -math.inf)
            new_top = torch.maximum(top, logits.amax(1, keepdim=True)).clamp(min=torch.finfo(flat.dtype).min)
            scale, w = (top - new_top).exp(), (logits - new_top).exp()
            total, mean, top = total * scale + w.sum(1, keepdim=True), mean * scale + w @ points, new_top
        if y is not None and not (total > 0).all():
            raise ValueError(f"y names a label that no data point has; labels are {self.y.unique().tolist()}")
        x0 = (mean / total).to(x).reshape(x.shape)
        return Prediction(x0, (x - c.alpha * x0) / c.sigma)
