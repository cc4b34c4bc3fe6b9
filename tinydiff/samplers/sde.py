"""The SDE view (Song et al. 2021): one family of reverse processes, all with the same marginals.

Noising is dx = f x dt + g dw with f and g^2 of `schedules`, and run backwards in time for every lam >= 0

    (1)  dx = [f x - (1 + lam^2)/2 g^2 score] dt + lam g dw

has the marginals p_t of the data at every t: lam = 1 is the reverse SDE (eq. 6), lam = 0 the probability-flow ODE
(eq. 13). The proof is one line of the Fokker-Planck equation: g^2/2 lap p = div(g^2/2 p score).

A predictor is a function (p, x, ct, cs) -> (mean, std) of a step from t to s < t.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.denoisers import Denoiser
from tinydiff.samplers.ancestral import posterior
from tinydiff.samplers.base import State, known_part, noise_like, pairs, sampler
from tinydiff.schedules import Coefs
from tinydiff.targets import Prediction

Predictor = Callable[[Prediction, Tensor, Coefs, Coefs], tuple[Tensor, Tensor | float]]
Velocity = Callable[[Tensor, float], Tensor]
Rule = Callable[[Velocity, Tensor, float, float, Tensor], Tensor]


@sampler
def reverse_sde(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    lam: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Equation (1) by Euler's rule (Euler-Maruyama); the step into t = 0 returns the x0 believed in.

    Args:
        lam: how much noise: 0 is the ODE, 1 the reverse SDE, more is noisier still.

    Raises ValueError if lam is negative.
    """
    if lam < 0:
        raise ValueError(f"lam must be at least 0; got {lam}")
    for t, s in pairs(ts):
        p = d(x, t)
        c = d.schedule(t, like=x)
        drift = c.drift * x - (1 + lam**2) / 2 * c.diffusion2 * p.score(c)
        if s > 0:
            x = x - (t - s) * drift
            x = x + lam * ((t - s) * c.diffusion2).sqrt() * noise_like(x, generator) if lam > 0 else x
        else:
            x = p.x0
        yield State(s, x, p.x0)


# ---- the ODE, in t -------------------------------------------------------------------------------


@sampler
def probability_flow(
    d: Denoiser, x: Float[Tensor, "b *d"], ts: Float[Tensor, " n"], rule: Rule | None = None
) -> Iterator[State]:
    """dx/dt = velocity (Song et al. 2021, eq. 13; flow matching) by a Runge-Kutta rule in t.

    Args:
        rule: `rk1` (Euler's; the default), `rk2` (Heun's), `rk4`, or any function (v, x, t, s, v(x, t)) -> x_s.
            The step into t = 0 returns the x0 believed in.
    """

    def v(x: Tensor, t: float) -> Tensor:
        return d(x, t).velocity(d.schedule(t, like=x))

    for t, s in pairs(ts):
        p = d(x, t)
        x = (rule or rk1)(v, x, t, s, p.velocity(d.schedule(t, like=x))) if s > 0 else p.x0
        yield State(s, x, p.x0)


def rk1(v: Velocity, x: Tensor, t: float, s: float, first: Tensor) -> Tensor:
    """Euler's rule."""
    return x + (s - t) * first


def rk2(v: Velocity, x: Tensor, t: float, s: float, first: Tensor) -> Tensor:
    """Heun's rule: the mean of the slopes at both ends."""
    return x + (s - t) / 2 * (first + v(x + (s - t) * first, s))


def rk4(v: Velocity, x: Tensor, t: float, s: float, first: Tensor) -> Tensor:
    """The classical rule of Runge and Kutta, of fourth order."""
    h, m = s - t, (t + s) / 2
    second = v(x + h / 2 * first, m)
    third = v(x + h / 2 * second, m)
    return x + h / 6 * (first + 2 * second + 2 * third + v(x + h * third, s))


# ---- predictor and corrector ---------------------------------------------------------------------


def ancestral_step(p: Prediction, x: Tensor, ct: Coefs, cs: Coefs) -> tuple[Tensor, Tensor]:
    """The posterior with x0 believed, as in `ancestral` (Song et al. 2021, eq. 4 for VP, appendix F for VE)."""
    q = posterior(ct, cs)
    return q.a_x0 * p.x0 + q.a_x * x, q.var.sqrt()


def reverse_diffusion_step(p: Prediction, x: Tensor, ct: Coefs, cs: Coefs) -> tuple[Tensor, Tensor]:
    """The noising step from s to t taken as x_t - x_s, reversed (Song et al. 2021, eq. 46)."""
    new = ct.new_noise(cs) * ct.sigma**2  # G^2 of the noising step
    return (2 - ct.alpha / cs.alpha) * x + new * p.score(ct), new.sqrt()


def flow_step(p: Prediction, x: Tensor, ct: Coefs, cs: Coefs) -> tuple[Tensor, float]:
    """The same without noise, at half the score (Song et al. 2021, appendix D.3)."""
    return (2 - ct.alpha / cs.alpha) * x + ct.new_noise(cs) * ct.sigma**2 / 2 * p.score(ct), 0.0


def langevin_corrector(score: Tensor, x: Tensor, z: Tensor, a: Tensor | float, snr: float) -> Tensor:
    """A Langevin step whose noise and drift stand in the ratio snr (Song et al. 2021, Algorithms 4 and 5).

    x + eps score + sqrt(2 eps) z with eps = 2 a (snr |z| / |score|)^2. The norms are means over the batch, as in the
    official code, so the step of one element depends on the others.
    """
    eps = 2 * a * (snr * _norm(z) / _norm(score)) ** 2
    return x + eps * score + (2 * eps) ** 0.5 * z


def _norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).mean()


@sampler
def predictor_corrector(
    d: Denoiser,
    x: Float[Tensor, "b *d"],
    ts: Float[Tensor, " n"],
    predictor: Predictor | None = None,
    corrections: int = 1,
    snr: float = 0.16,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Correct x by Langevin steps at t, then predict it at s (Song et al. 2021, Algorithm 1; order of the code).

    Args:
        predictor: `reverse_diffusion_step` (default), `ancestral_step`, `flow_step`, or any function
            (p, x, ct, cs) -> (mean, std). The step into t = 0 returns the x0 believed in, without noise.
        corrections: Langevin steps before each prediction; 0 is a predictor alone. snr: r of the paper.
        known: data of the shape of x. mask: true where they are known; broadcasts to x. After each update the known
            part, noised to the level, is put in its place (Song et al. 2021, appendix I.2).

    Raises ValueError if corrections or snr is negative, or for known and mask that do not fit.
    """
    if corrections < 0 or snr < 0:
        raise ValueError(f"corrections and snr must be at least 0; got {corrections=}, {snr=:g}")
    predictor = predictor or reverse_diffusion_step
    known, mask = known_part(x, known, mask)

    def put(x: Tensor, c: Coefs) -> Tensor:
        return torch.where(mask, c.alpha * known + c.sigma * noise_like(x, generator), x) if mask.any() else x

    for t, s in pairs(ts):
        ct, cs = d.schedule(t, like=x), d.schedule(s, like=x)
        for _ in range(corrections):
            a = (ct.alpha / cs.alpha) ** 2 if s > 0 else 1.0  # alpha_i of the paper for VP, 1 for VE
            x = langevin_corrector(d(x, t).score(ct), x, noise_like(x, generator), a, snr)
            x = put(x, ct)
        p = d(x, t)
        mean, std = predictor(p, x, ct, cs)
        x = put(mean + std * noise_like(x, generator) if s > 0 else p.x0, cs)
        yield State(s, x, p.x0)
