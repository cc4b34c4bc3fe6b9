"""What the network of Sohl-Dickstein et al. 2015 gives out, and betas that are learned.

Their reverse step has a mean around that of the forward step, and a covariance around the forward one (official code),
with m and c from the network, T the number of steps and beta that of the step from s to t:

    (1)  mean = sqrt(1 - beta) x + sqrt(beta) m,        var = sigmoid(logit(beta) + c / sqrt(T))

Setting the mean to that of the posterior q(x_s | x_t, x0) gives the m that the network has to learn,

    (2)  m = alpha_s sqrt(beta) (x0 - (alpha_t / sigma_t) eps) = -(alpha_s sqrt(beta) / sigma_t) v

on a variance-preserving chain: a row of two numbers like every target, and up to a factor of the step it is the v of
Salimans & Ho 2022. Data from N(0, I) have m = 0 at every step, and c = 0.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiff.denoisers import Denoiser, NetDenoiser, denoiser
from tinydiff.exact import GaussianMixture
from tinydiff.schedules import Coefs, DiscreteVP
from tinydiff.targets import Prediction, Row


def harmonic_betas(steps: int, first: float = 0.001) -> Float[Tensor, " T"]:
    """Betas 1 / linspace(T, 2, T): each step erases nearly the same share of the data (official code).

    As there, each is raised by a floor of 1e-6, the first by `first` more. About 1 / T of the variance remains at the
    end. (T,), float64. Raises ValueError unless steps >= 2 and first >= 0.
    """
    if steps < 2 or first < 0:
        raise ValueError(f"steps must be at least 2 and first at least 0; got {steps}, {first}")
    floor = torch.full((steps,), 1e-6, dtype=torch.float64)
    floor[0] += first
    return floor + (1 - floor - 1e-5) / torch.linspace(steps, 2, steps, dtype=torch.float64)


@dataclass(frozen=True)
class step_mean:
    """The target m of equation (2) on a chain.

    Args:
        schedule: the chain; also that of the denoiser.
    """

    schedule: DiscreteVP

    def __call__(self, ct: Coefs) -> Row:
        cs = self.schedule((ct.t - 1 / self.schedule.steps).clamp(min=0), like=ct.alpha)
        scale = cs.alpha * _root_beta(ct, cs)
        return scale, -scale * ct.alpha / ct.sigma


def _root_beta(ct: Coefs, cs: Coefs) -> Tensor:
    return ct.new_noise(cs).sqrt() * ct.sigma


@dataclass(frozen=True)
class logit_variance:
    """The variance of equation (1) from the network's second half of channels, c; T is 1 / (t - s)."""

    out: Tensor

    def __call__(self, ct: Coefs, cs: Coefs) -> Tensor:
        beta = ct.new_noise(cs) * ct.sigma**2
        root = (ct.t - cs.t).sqrt().to(beta).reshape(beta.shape)  # 1 / sqrt(T)
        return (beta.logit() + self.out * root).sigmoid()


def fixed_first_step(d: Denoiser) -> Denoiser:
    """The denoiser with the chain's first step reversed as for data from N(0, I), which is not learned.

    There m = 0 and the variance is beta, so E[x0 | x] = alpha x. All other steps are d's own.
    """
    first = d.schedule.t_min * (1 + 1e-4)

    def believe(x: Tensor, t: Tensor, **cond: object) -> Prediction:
        p, c = d(x, t, **cond), d.schedule(t, like=x)
        here = (c.t <= first).to(x.device).reshape(c.alpha.shape)
        return replace(p, x0=torch.where(here, c.alpha * x, p.x0), eps=torch.where(here, c.sigma * x, p.eps))

    return denoiser(believe, d.schedule)


def best_step(mixture: GaussianMixture) -> Denoiser:
    """The exact denoiser with the best variance of a Gaussian step: no network of this form has a larger K.

    Mean and variance of each coordinate are those of the true q(x_s | x_t), beta-tilde + A^2 Var(x0 | x_t) with A of
    `samplers.posterior`: a Gaussian with the right moments has the least KL.
    """

    def believe(x: Tensor, t: Tensor) -> Prediction:
        p, c = mixture(x, t), mixture.schedule(t, like=x)
        r, m, own = mixture.posterior(x, t), mixture.means.to(x), mixture.std.to(x) ** 2
        v = c.alpha**2 * own + c.sigma**2  # (b, k), of x in component k
        pull = (c.alpha * own / v)[..., None]  # E[x0 | x, k] = m + pull (x - alpha m)
        mean_k = m + pull * (x[:, None] - c.alpha[..., None] * m)  # (b, k, d)
        spread = (mean_k - p.x0[:, None]).square() + (own * c.sigma**2 / v)[..., None]
        var_x0 = (r[..., None] * spread).sum(1)  # (b, d)

        def var(ct: Coefs, cs: Coefs) -> Tensor:
            new = ct.new_noise(cs)
            return cs.sigma**2 * new + (cs.alpha * new) ** 2 * var_x0

        return replace(p, var=var)

    return denoiser(believe, mixture.schedule)


class LearnedBetas(nn.Module):
    """A network with betas that are trained beside it; beta_1 stays as it is (their section 2.4.1).

    They live in the network because `fit` trains d.net; what is in use is `up_to_date(d)`.

    Args:
        net: called as ever.
        betas: (T,), where they start.
        span: their logits are parameters divided by it: a larger one moves them faster.
    """

    def __init__(self, net: nn.Module, betas: Float[Tensor, " T"] | list[float], span: float = 1.0) -> None:
        super().__init__()
        betas = DiscreteVP(betas).betas.detach()
        self.config = dict(net=net, betas=betas.tolist(), span=span)
        self.net, self.span = net, span
        self.register_buffer("first", betas[:1].float())
        self.logits = nn.Parameter((betas[1:].logit() / span).float())

    def forward(self, x: Tensor, noise_level: Tensor, **cond: Tensor) -> Tensor:
        return self.net(x, noise_level, **cond)

    def schedule(self) -> DiscreteVP:
        """The chain of the betas as they are now; gradients reach the parameters."""
        return DiscreteVP(torch.cat([self.first.double(), (self.logits.double() * self.span).sigmoid()]))


def up_to_date(d: NetDenoiser) -> NetDenoiser:
    """The denoiser with the chain that its network holds now, in its schedule and in its target."""
    schedule = d.net.schedule()
    return replace(d, schedule=schedule, target=step_mean(schedule))
